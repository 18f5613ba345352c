"""A protected file as a Python file object, for everything that reads and writes one: torch, pandas, safetensors.

>>> from adyton.pfile import Memory
>>> from adyton.pfile.stream import ProtectedStream
>>> from adyton.values import Key128
>>> key, host = Key128.generate(), Memory()
>>> with ProtectedStream(ProtectedFile.create(host, key, path="a")) as stream:
...     stream.write(b"hello")
5
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import TargetExists, UsageError
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from adyton.values import Key128

BUFFER_BYTES: Final = 1 << 20


class ProtectedStream(io.RawIOBase):
    """An unbuffered file object over a `ProtectedFile`, which it then owns. `flush` commits, `sync` makes durable."""

    def __init__(self, file: ProtectedFile, *, append: bool = False, readable: bool = True) -> None:
        super().__init__()
        self.file = file
        self.name = file.name
        self._append = append
        self._readable = readable
        self._at = file.size if append else 0

    def readable(self) -> bool:
        """Whether it was opened to be read."""
        return self._readable

    def writable(self) -> bool:
        """Whether it was opened to be written."""
        return self.file.writable

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The present offset."""
        self._check_open()
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to an offset from the start, from here, or from the end."""
        self._check_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"unknown whence {whence}")
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.file.size}[whence]
        if base + offset < 0:
            raise OSError(22, "the offset would be negative")
        self._at = base + offset
        return self._at

    def readinto(self, target: Buffer, /) -> int:
        """Read into a buffer."""
        self._check_open()
        if not self._readable:
            raise io.UnsupportedOperation("not open for reading")
        got = self.file.read_into(self._at, target)
        self._at += got
        return got

    def readall(self) -> bytes:
        """Everything from here to the end."""
        self._check_open()
        if not self._readable:
            raise io.UnsupportedOperation("not open for reading")
        rest = self.file.read_at(self._at, max(0, self.file.size - self._at))
        self._at += len(rest)
        return rest

    def write(self, data: Buffer, /) -> int:
        """Write all of `data`."""
        self._check_open()
        if not self.file.writable:
            raise io.UnsupportedOperation("not open for writing")
        if self._append:
            self._at = self.file.size
        size = memoryview(data).nbytes
        self.file.write_at(self._at, data)
        self._at += size
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend, to the present offset by default."""
        self._check_open()
        if not self.file.writable:
            raise io.UnsupportedOperation("not open for writing")
        size = self._at if size is None else size
        self.file.truncate(size)
        return size

    def flush(self) -> None:
        """Commit what was written."""
        if not self.closed and self.file.writable:
            self.file.flush()

    def sync(self) -> None:
        """Commit what was written, and return once it is durable."""
        self._check_open()
        self.file.flush(sync=True)

    def close(self) -> None:
        """Commit and close."""
        if not self.closed:
            try:
                super().close()  # flushes
            finally:
                self.file.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def buffered(stream: ProtectedStream) -> io.BufferedReader | io.BufferedWriter | io.BufferedRandom:
    """The stream behind Python's own buffer of 1 MiB."""
    if not stream.writable():
        return io.BufferedReader(stream, BUFFER_BYTES)
    if not stream.readable():
        return io.BufferedWriter(stream, BUFFER_BYTES)
    return io.BufferedRandom(stream, BUFFER_BYTES)


def open_protected(
    file: Path | str, mode: str = "rb", *, key: Key128, path: str | None = None, version: int = 2
) -> io.BufferedReader | io.BufferedWriter | io.BufferedRandom:
    """Like the built-in `open` for binary modes, of a protected file of the operating system.

    `path` is the embedded path: checked where the file exists (unless None), sealed in where it is made
    (then by default `file` as written).
    """
    if "b" not in mode or len(set(mode)) != len(mode) or sum(letter in mode for letter in "rwxa") != 1:
        raise UsageError(
            f"mode {mode!r} is not a binary mode", check="mode", expected="rb, r+b, wb, w+b, xb, ab", seen=mode
        )
    both = "+" in mode
    embedded = str(file) if path is None else path
    if "r" in mode:
        opened = ProtectedFile.open(OSFile(file, writable=both), key, path=path, writable=both)
        return buffered(ProtectedStream(opened))
    there = Path(file).exists()
    if "x" in mode and there:
        raise TargetExists(f"{file} exists already", check="target", expected="absent", seen="present")
    if "a" in mode and there:
        opened = ProtectedFile.open(OSFile(file, writable=True), key, path=path, writable=True)
    else:
        opened = ProtectedFile.create(OSFile(file, create=True), key, path=embedded, version=version)
    return buffered(ProtectedStream(opened, append="a" in mode, readable=both))
