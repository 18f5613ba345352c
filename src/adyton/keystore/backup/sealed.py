"""A part of a file as the backing of a protected file. The sealed content of a backup is read in place.

So nothing of a backup is written before its key is verified, whatever size its parts claim to have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import StorageFailed
from adyton.pfile.backing import OSFile

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


class Part:
    """Bytes `start` to `start + length` of a file, read-only. There is no recovery log."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file = OSFile(path)
        self._start, self._length = start, length

    @property
    def name(self) -> str:
        """The whole file's path."""
        return self._file.name

    def size(self) -> int:
        """The length of the part, or less where the file ends early."""
        return max(0, min(self._length, self._file.size() - self._start))

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Read into `target` from `offset`, at most to the end of the part."""
        view = memoryview(target).cast("B")
        return self._file.read_into(self._start + offset, view[: max(0, self._length - offset)])

    def will_read(self, offset: int, size: int, /) -> None:
        """Tell the kernel to read ahead."""
        self._file.will_read(self._start + offset, size)

    def write_at(self, _offset: int, _data: Buffer, /) -> None:
        """Refused: a backup is never written to."""
        raise self._read_only()

    def truncate(self, _size: int, /) -> None:
        """Refused: a backup is never written to."""
        raise self._read_only()

    def sync(self) -> None:
        """Does nothing: nothing was written."""

    def open_log(self, *, create: bool) -> None:
        """Does nothing: there is no log."""
        if create:
            raise self._read_only()

    def remove_log(self) -> None:
        """Does nothing: there is no log."""

    def moved_to(self, _place: Path, /, *, sync: bool) -> None:  # noqa: ARG002 - the protocol's name
        """Refused: a part has no name of its own."""
        raise self._read_only()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_only(self) -> StorageFailed:
        return StorageFailed(f"{self.name} is read only", check="writing to a backup")
