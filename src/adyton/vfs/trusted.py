"""Trusted files that do not fit the memory budget: verified whole at the first open, chunk by chunk at every read.

At the first open the file is read once and hashed. Beside the SHA-256 of the whole, a truncated one of every chunk
is kept in memory. A later read hashes the chunks that it touches again, as the host may change the file in between. A
file that failed once is never served again.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from adyton.errors import DigestMismatch, StorageFailed
from adyton.vfs.node import FIXED_TIME_NS, Node
from adyton.vfs.read_only_tree import ReadOnlyTree
from adyton.vfs.stage import StagedFile
from adyton.vfs.storage_watchdog import StorageWatchdog

CHUNK_BYTES: Final = 128 << 10
CHUNK_DIGEST_BYTES: Final = 16


@dataclass(slots=True)
class _File:
    entry: StagedFile
    node: Node
    path: str
    fd: int = -1
    chunks: bytes = field(default=b"", repr=False)
    failed: bool = False


def _chunk_digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()[:CHUNK_DIGEST_BYTES]


class TrustedTree(ReadOnlyTree):
    """The files, named by their number, read-only. Relative paths count from the folder where this is made."""

    direct: Final = False

    def __init__(
        self,
        files: Sequence[StagedFile],
        *,
        event: Callable[[str], None] = lambda _text: None,
        watchdog: StorageWatchdog | None = None,
    ) -> None:
        self._event = event
        self._watchdog = watchdog or StorageWatchdog()
        self._top = Node(1, True, 0o555, FIXED_TIME_NS, FIXED_TIME_NS)
        self._files: dict[str, _File] = {}
        for number, entry in enumerate(files):
            time_ns = FIXED_TIME_NS if entry.mtime_s is None else entry.mtime_s * 10**9
            mode = 0o555 if entry.executable else 0o444
            size = -1 if entry.size_bytes is None else entry.size_bytes
            self._files[str(number)] = _File(
                entry, Node(number + 2, False, mode, time_ns, time_ns, size), os.path.abspath(entry.source)
            )

    def _file(self, path: str) -> _File:
        found = self._files.get(path)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def node(self, path: str) -> Node:
        """The file's size, mode and time, as the manifest has them. Without them there, the file is verified first."""
        if not path:
            return self._top
        found = self._file(path)
        if found.node.size < 0:
            self._verify(found)
        return found.node

    def listing(self, path: str) -> list[tuple[str, int]]:
        """The numbers."""
        if path:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return [(name, stat.S_IFREG) for name in self._files]

    def open(self, path: str, *, truncate: bool = False) -> _File:
        """Open, and verify all of it the first time."""
        found = self._file(path)
        if truncate:
            raise self._refuse(path)
        if found.failed or not found.chunks:
            self._verify(found)
        return found

    def _verify(self, file: _File) -> None:
        name = file.entry.source
        if file.failed:
            raise self._mismatch(file, "another, when it was read before")
        if file.fd < 0:
            try:
                file.fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError as error:
                raise StorageFailed(f"{name} cannot be read: {error.strerror}", check="trusted file") from OSError(
                    errno.EIO, os.strerror(errno.EIO)
                )
            if not stat.S_ISREG(os.fstat(file.fd).st_mode):
                file.failed = True
                raise self._mismatch(file, "no regular file")
        whole = hashlib.sha256()
        chunks = bytearray()
        size = 0
        most = file.node.size
        while data := self._read(file, size):
            self._watchdog.progress()
            whole.update(data)
            chunks += _chunk_digest(data)
            size += len(data)
            if 0 <= most < size:
                break
        if not hmac.compare_digest(whole.digest(), file.entry.digest.raw):
            file.failed = True
            raise self._mismatch(file, whole.hexdigest())
        file.node.size = size
        file.chunks = bytes(chunks) or _chunk_digest(b"")

    def _read(self, file: _File, offset: int) -> bytes:
        """A whole chunk, or what is left of the file."""
        try:
            data = os.pread(file.fd, CHUNK_BYTES, offset)
            while 0 < len(data) < CHUNK_BYTES:
                more = os.pread(file.fd, CHUNK_BYTES - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise StorageFailed(
                f"{file.entry.source} cannot be read: {error.strerror}", check="trusted file"
            ) from error
        return data

    def _mismatch(self, file: _File, seen: str) -> DigestMismatch:
        return DigestMismatch(
            f"{file.entry.source} is not the file that the manifest lists",
            check=f"SHA-256 of {file.entry.source}",
            expected=file.entry.digest.hex(),
            seen=seen,
            remedy="put the right file back, or build the manifest again and have its owner approve it",
        )

    def read_into(self, opened: _File, offset: int, target: memoryview) -> int:
        """Fill `target` from verified chunks."""
        end = min(offset + len(target), opened.node.size)
        done = 0
        while offset + done < end:
            number, within = divmod(offset + done, CHUNK_BYTES)
            data = b"" if opened.failed else self._read(opened, number * CHUNK_BYTES)
            expected = opened.chunks[number * CHUNK_DIGEST_BYTES : (number + 1) * CHUNK_DIGEST_BYTES]
            if not hmac.compare_digest(_chunk_digest(data), expected):
                opened.failed = True
                target[:done] = bytes(done)
                raise self._mismatch(opened, f"another chunk at {number * CHUNK_BYTES} than when it was verified")
            part = data[within : within + end - offset - done]
            target[done : done + len(part)] = part
            done += len(part)
        return done

    def handle_node(self, opened: _File) -> Node:
        """The node of an open file."""
        return opened.node

    def release(self, opened: _File) -> None:
        """The descriptor stays, with what was verified of it."""

    def close(self) -> None:
        """Close the descriptors."""
        for file in self._files.values():
            if file.fd >= 0:
                os.close(file.fd)
                file.fd = -1
