"""/dev/attestation as Gramine has it, so that a program written for Gramine runs unchanged.

`user_report_data` takes up to 64 bytes and fills up with zeros. `quote` and `report` are made when they are opened.
`keys/NAME` holds the 16 raw bytes of a key that was released to this run. Each process has its own user report data.

Differences to Gramine:

- Evidence is over a hash of the user report data (`attest.report_data`). So a program cannot ask for evidence that
  Adyton's own protocols would take.
- A process that wrote nothing has what any process wrote last. So a shell's `echo` and `cat` belong together.
- A key cannot be replaced from inside: writing another one is EACCES. The mounts that use it are open already.
"""

from __future__ import annotations

import errno
import hmac
import os
import stat
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

from adyton.attest.report_data import REPORT_DATA_BYTES, ProgramEvidence
from adyton.lru import Recent
from adyton.values import Key128
from adyton.vfs.node import FIXED_TIME_NS, Node
from adyton.vfs.read_only_tree import ReadOnlyTree
from adyton.vfs.storage_watchdog import StorageWatchdog

MAX_PROCESSES: Final = 4096
"""Whose data is kept, the last to write it."""
QUOTE_S: Final = 120.0
"""How long the hardware may take for a quote. It may have to fetch, which takes tens of seconds."""
_QUOTE_HEADER_BYTES: Final = 48
_REPORT_BODY_BYTES: Final = 384
_SGX_QUOTE_VERSION: Final = b"\x03\x00"


@dataclass(slots=True)
class _Opened:
    name: str
    content: bytes
    path: str


class AttestationTree(ReadOnlyTree):
    """The pseudo-files. `evidence` makes evidence over the bytes that the program wrote."""

    direct: Final = True
    refusal = errno.EPERM

    def __init__(
        self,
        evidence: ProgramEvidence | None,
        keys: Mapping[str, Key128],
        *,
        kind: str,
        event: Callable[[str], None] = lambda _text: None,
        watchdog: StorageWatchdog | None = None,
        caller: Callable[[], Hashable] = lambda: None,
    ) -> None:
        self._caller = caller
        self._watchdog = watchdog or StorageWatchdog()
        self._source = evidence
        self._keys = dict(keys)
        self._kind = kind
        self._event = event
        self._user_data: Recent[Hashable, bytes] = Recent(MAX_PROCESSES)
        files = {"attestation_type": 0o444}
        if evidence is not None and kind != "none":
            files |= {"user_report_data": 0o666, "quote": 0o444, "report": 0o444}
        self._nodes: dict[str, Node] = {}
        for path in ("", "keys"):
            self._add(path, 0o555, is_folder=True)
        for path, mode in files.items():
            self._add(path, mode)
        for name in self._keys:
            self._add("keys/" + name, 0o666)

    def _add(self, path: str, mode: int, *, is_folder: bool = False) -> None:
        self._nodes[path] = Node(len(self._nodes) + 1, is_folder, mode, FIXED_TIME_NS, FIXED_TIME_NS, 0)

    def node(self, path: str) -> Node:
        """The pseudo-file at a path. One that is made when it is opened has size 0."""
        node = self._nodes.get(path)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if path == "attestation_type":
            node.size = len(self._kind)
        elif path.startswith("keys/"):
            node.size = len(self._keys[path[5:]].reveal())
        return node

    def listing(self, path: str) -> list[tuple[str, int]]:
        """The names in a folder."""
        prefix = path + "/" if path else ""
        names = [name[len(prefix) :] for name in self._nodes if name != path and name.startswith(prefix)]
        return [
            (name, stat.S_IFDIR if self._nodes[prefix + name].is_folder else stat.S_IFREG)
            for name in names
            if "/" not in name
        ]

    def open(self, path: str, *, truncate: bool = False) -> _Opened:  # noqa: ARG002 - every write replaces all anyway
        """Open a pseudo-file. Quotes and reports are made here."""
        if self.node(path).is_folder:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        content = b""
        if path == "attestation_type":
            content = self._kind.encode()
        elif path == "quote":
            content = self._evidence()
        elif path == "report":
            content = self._report()
        elif path.startswith("keys/"):
            content = self._keys[path[5:]].reveal()
        return _Opened(path, content, path)

    def _evidence(self) -> bytes:
        if self._source is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "quote")
        with self._watchdog.lasting(QUOTE_S):
            return self._source.over(self._user_data_of_caller())

    def _user_data_of_caller(self) -> bytes:
        """What the caller wrote last; where it wrote nothing, what anybody wrote last."""
        return self._user_data.peek(self._caller()) or self._user_data.newest() or bytes(REPORT_DATA_BYTES)

    def _report(self) -> bytes:
        """An SGX report, 432 bytes, around a quote's report body. Key id and MAC are random, as no CPU made it."""
        evidence = self._evidence()
        if not evidence.startswith(_SGX_QUOTE_VERSION):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), "report")
        body = evidence[_QUOTE_HEADER_BYTES : _QUOTE_HEADER_BYTES + _REPORT_BODY_BYTES]
        return body + os.urandom(32 + 16)

    def create(self, path: str, mode: int) -> _Opened:  # noqa: ARG002
        """Nothing can be created here."""
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def read_into(self, opened: _Opened, offset: int, target: memoryview) -> int:
        """Read what was made at opening."""
        part = opened.content[offset : offset + len(target)]
        target[: len(part)] = part
        return len(part)

    def write(self, opened: _Opened, data: memoryview, offset: int) -> int:  # noqa: ARG002 - Gramine ignores offsets too
        """Replace what evidence is asked over, or offer a key that must be the one already there."""
        raw = bytes(data)
        if opened.name == "user_report_data":
            self._user_data.put(self._caller(), raw[:REPORT_DATA_BYTES].ljust(REPORT_DATA_BYTES, b"\0"))
            return len(raw)
        if opened.name.startswith("keys/") and hmac.compare_digest(raw, self._keys[opened.name[5:]].reveal()):
            return len(raw)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), opened.name)

    def handle_node(self, opened: _Opened) -> Node:
        """The node of an open file."""
        return self.node(opened.name)

    def truncate(self, path: str, size: int) -> None:  # noqa: ARG002
        """Writing replaces everything, so cutting first, as open(…, "w") does, changes nothing."""
        self.node(path)

    def resize(self, opened: _Opened, size: int) -> None:  # noqa: ARG002
        """As `truncate`."""
        self.node(opened.name)

    def release(self, opened: _Opened) -> None:
        """Forget what was made at opening."""
        opened.content = b""

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:  # noqa: ARG002
        """Times stay fixed."""
        self.node(path)

    def close(self) -> None:
        """Forget the keys."""
        self._keys.clear()
