"""The process that serves a program's files over FUSE, and the keeper's side of it: its events, its end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from adyton.check import Check
from adyton.errors import Error, MountFailed
from adyton.roots.pinned_folder import Checked, PinnedFolder
from adyton.runtime import host
from adyton.runtime.run_plan import EncryptedMount
from adyton.runtime.signals import PASSED_ON
from adyton.values import Key128
from adyton.vfs import syscalls
from adyton.vfs.node import FileState
from adyton.vfs.owner import Owner
from adyton.vfs.stage import StagedFile
from adyton.vfs.storage_watchdog import STALLED_STATUS, START_S, StorageWatchdog

if TYPE_CHECKING:
    from adyton.attest.report_data import ProgramEvidence
    from adyton.roots.root import Root
    from adyton.vfs.fuse import Tree

FLUSH_LIMIT_S: Final = 120.0
END_LIMIT_S: Final = 2.0


ATTESTATION: Final = "attestation"
TRUSTED: Final = "trusted"


@dataclass(frozen=True, slots=True)
class Attestation:
    """The parts of /dev/attestation."""

    evidence: ProgramEvidence | None
    keys: Mapping[str, Key128]
    kind: str


@dataclass(frozen=True, slots=True)
class Served:
    """The trees to serve, by top-level name: encrypted mounts by number, TRUSTED files by number, ATTESTATION.

    `owner` is the program's. `umask` is that of the user who started the run, for files made on the host.
    """

    owner: Owner
    umask: int
    mounts: Sequence[tuple[EncryptedMount, Key128]]
    files: Sequence[StagedFile]
    attestation: Attestation | None
    pinned: Mapping[str, tuple[Checked, str]] = field(default_factory=dict)
    """By the id of a pinned folder: what is in it, and the name under which this run writes to it."""
    tells_states: bool = False
    """Whether the server says at its end which state each file of the encrypted mounts has."""

    def trees(
        self,
        event: Callable[[str], None],
        watchdog: StorageWatchdog,
        committed: Callable[[str, Root], None],
    ) -> dict[str, Tree]:
        """The file systems, made in the process that serves them. `committed` hears of the roots of pinned folders."""
        from adyton.vfs.attestation import AttestationTree
        from adyton.vfs.fuse import calling_process
        from adyton.vfs.linked import LinkedTree
        from adyton.vfs.trusted import TrustedTree

        found: dict[str, Tree] = {}
        for number, (mount, key) in enumerate(self.mounts):
            found[str(number)] = LinkedTree(
                mount.source,
                key,
                sealed_as=mount.source,
                read_only=mount.read_only,
                power_safe=mount.recovery,
                points={point.path: point.is_folder for point in mount.points},
                side_files=bool(mount.path),  # at the root, links of a program would show where the sandbox is made
                event=event,
                watchdog=watchdog,
                **self._pinning(mount, committed),
            )
        if self.files:
            found[TRUSTED] = TrustedTree(self.files, event=event, watchdog=watchdog)
        if self.attestation is not None:
            what = self.attestation
            found[ATTESTATION] = AttestationTree(
                what.evidence, what.keys, kind=what.kind, event=event, watchdog=watchdog, caller=calling_process
            )
        return found

    def _pinning(self, mount: EncryptedMount, committed: Callable[[str, Root], None]) -> dict[str, Any]:
        """What holds a pinned mount to its root."""
        if not mount.pinned:
            return {}
        checked, writer = self.pinned[mount.pinned]
        if mount.read_only:
            return {"entries": checked.entries}
        return {"pinned": lambda: PinnedFolder(checked, writer, told=partial(committed, mount.pinned))}


class FileServer:
    """The keeper's side of the process that serves files: its events, its end.

    The server writes one line of JSON for each event, {"event": text}. Where it fails, its last line is the error.
    """

    def __init__(self, pid: int, events_fd: int) -> None:
        self._pid = pid
        self.events_fd = events_fd
        self._status: int | None = None
        self._rest = b""
        self._error: Error | None = None
        self.roots: dict[str, dict[str, Any]] = {}
        """By the id of a pinned folder: the root of its last commit."""
        self.states: list[tuple[int, FileState]] = []
        """After the end, where they are told: files that the run opened, with the number of their mount."""

    @classmethod
    def start(cls, fuse_fd: int, served: Served) -> FileServer:
        """Fork the server. The mount is up already, and a process that looks into it waits until the server answers."""
        events_out, events_in = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(events_out)
                status = _serve(parent, fuse_fd, events_in, served)
            finally:
                os._exit(status)
        os.close(fuse_fd)
        os.close(events_in)
        return cls(pid, events_out)

    def read_events(self) -> list[str] | None:
        """The events that have come in, and the words of its error; None once the server has ended."""
        data = os.read(self.events_fd, 65_536)
        if not data:
            self._await_end()
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [told for line in lines if (told := self._heard(line)) is not None]

    def _heard(self, line: bytes) -> str | None:
        """The words of one line. None for one that tells a state or a root."""
        try:
            message = json.loads(line)
            if "event" in message:
                return str(message["event"])
            if "root" in message:
                folder, root = message["root"]
                self.roots[folder] = root
                return None
            if "state" in message:
                number, path, size, found, root = message["state"]
                self.states.append((number, FileState(path, size, bytes.fromhex(found), bytes.fromhex(root))))
                return None
        except (ValueError, TypeError):
            return line.decode(errors="replace")
        self._error = Error.from_dict(message, unknown=MountFailed)
        return _one_line(self._error.message)

    def _await_end(self) -> None:
        """Wait for the server to end, but not for ever: on stalled storage even that hangs until the host answers."""
        deadline = time.monotonic() + END_LIMIT_S
        while self.status() is None:
            if time.monotonic() > deadline:
                self._status = STALLED_STATUS
            time.sleep(0.005)

    def status(self) -> int | None:
        """The exit status of the server; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def failure(self, source: str, error: OSError) -> MountFailed:
        """Why a mount could not be looked into."""
        gone = error.errno in (errno.ENOTCONN, errno.ECONNABORTED) or self.status() is not None
        told: list[str] = []
        while (gone or (error.errno == errno.EIO and not told)) and self._says_something():
            lines = self.read_events()
            if lines is None:
                break
            told += lines
        reason = "; ".join(told) or error.strerror or str(error)
        text = f"encrypted mount {source}: {reason}"
        if self._error is not None and self._error.failed:
            return MountFailed(text, checks=self._error.checks)
        return MountFailed(
            text,
            check="served mount",
            expected="a folder of protected files, or a protected file under this key and path",
            seen=reason,
            remedy="check key, path and files; `adyton inspect` says what a protected file holds",
        )

    def kill_now(self) -> None:
        """End the server without waiting for it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _says_something(self) -> bool:
        """Whether events, or the end of the server, arrive soon."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.events_fd, selectors.EVENT_READ)
            return bool(selector.select(END_LIMIT_S))

    def finish(self, event: Callable[[str], None]) -> Error | None:
        """After the unmount: hear the last events, wait for the flush. What could not be flushed is the error."""
        deadline = time.monotonic() + FLUSH_LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.events_fd, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                if not selector.select(1.0):
                    continue
                lines = self.read_events()
                if lines is None:
                    break
                for line in lines:
                    event(line)
        os.close(self.events_fd)
        if self.status() is None:
            os.kill(self._pid, signal.SIGKILL)
            self._await_end()
        if self._status == 0:
            return None
        flush = Check(
            "flush of the encrypted mounts",
            "every file flushed and closed",
            f"file server ended with status {self._status}",
            ok=False,
            remedy="see what the run said before; files are as of their last flush",
        )
        why = () if self._error is None else self._error.checks
        return MountFailed("the outputs could not be written completely", checks=(flush, *why))


def _serve(parent: int, fuse_fd: int, events: int, served: Served) -> int:
    """In the file server: serve until unmounted. Signals of the terminal are not for this process."""
    syscalls.die_with_parent(parent)
    syscalls.name_process("adyton-files")
    host.lock_memory()
    for number in (*PASSED_ON, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    os.umask(served.umask)
    host.allow_many_files()

    def event(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(events, json.dumps({"event": _one_line(text)[:4000]}).encode() + b"\n")

    def committed(folder: str, root: Root) -> None:
        with contextlib.suppress(OSError):
            os.write(events, json.dumps({"root": [folder, root.to_dict()]}).encode() + b"\n")

    from adyton.vfs import fuse

    try:
        os.set_inheritable(fuse_fd, True)
        watchdog = StorageWatchdog()
        watchdog.watch(event)
        watchdog.start("opening the mounts")
        with watchdog.lasting(START_S):
            trees = served.trees(event, watchdog, committed)
        watchdog.stop()
        fuse.serve(trees, f"/dev/fd/{fuse_fd}", event=event, watchdog=watchdog, owner=served.owner)
        if served.tells_states:
            _tell_states(trees, events)
    except Error as error:
        with contextlib.suppress(OSError):
            os.write(events, error.to_bytes() + b"\n")
        return error.exit_code
    except OSError as error:
        event(f"{error.filename}: {error.strerror}")
        return 1
    return 0


def _tell_states(trees: Mapping[str, Tree], events: int) -> None:
    """One line for each file of the encrypted mounts that the run opened. The keeper listens until the end."""
    with open(os.dup(events), "wb") as lines:
        for name, tree in trees.items():
            for state in getattr(tree, "states", tuple)():
                told = [int(name), state.path, state.size, state.found_root.hex(), state.root.hex()]
                lines.write(json.dumps({"state": told}).encode() + b"\n")


def _one_line(text: str) -> str:
    """A text as one line that can be printed anywhere; what is no Unicode in it becomes a question mark."""
    return text.replace("\n", " ").encode(errors="replace").decode()
