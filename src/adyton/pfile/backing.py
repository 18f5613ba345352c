"""Where the nodes of a protected file are stored: the interface between the format and storage.

A backing reads, writes, cuts and syncs bytes. It may open a second backing beside itself, for the recovery log. The
host can change what a backing returns. So the caller verifies it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from adyton.atomic_file import sync_directory
from adyton.errors import NotProtectedFile, StorageFailed
from adyton.os_failure import storage_failed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

RECOVERY_SUFFIX: Final = ".gramine.recovery"


class Backing(Protocol):
    """A flat file of bytes on the host. Every failure of the host raises StorageFailed."""

    @property
    def name(self) -> str:
        """Its name in error messages."""

    def size(self) -> int:
        """Its length in bytes."""

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Fill `target` from `offset`. Returns the number of bytes, which is smaller than `target` only at the end."""

    def will_read(self, offset: int, size: int, /) -> None:
        """These bytes are read next but for others that lead to them: they may be fetched meanwhile."""

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write all of `data` at `offset`, growing the file where needed."""

    def truncate(self, size: int, /) -> None:
        """Cut or extend to `size` bytes."""

    def sync(self) -> None:
        """Return only once everything written is durable, its directory entry too."""

    def open_log(self, *, create: bool) -> Backing | None:
        """The recovery log beside it. None where it has none and none is to be made, or none is possible."""

    def remove_log(self) -> None:
        """Remove the recovery log if there is one."""

    def moved_to(self, place: Path, /, *, sync: bool) -> None:
        """It was renamed to `place`: make that durable if `sync`, then remove the log at the old place."""

    def close(self) -> None:
        """Close it. A second call does nothing."""


def read_at(backing: Backing, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset`."""
    buffer = bytearray(size)
    got = backing.read_into(offset, buffer)
    return bytes(buffer[:got])


class OSFile:
    """A file of the operating system, by path or by an open descriptor (which it then owns).

    By path, its recovery log is the file of the same name with `.gramine.recovery` behind it; by
    descriptor there is a log only where `path` says what the file is called; `name` is for errors alone.
    """

    def __init__(
        self,
        source: Path | str | int,
        *,
        writable: bool = False,
        create: bool = False,
        path: Path | None = None,
        name: str | None = None,
        mode: int = 0o600,
    ) -> None:
        self._path: Path | None
        if isinstance(source, int):
            self._fd = source
            self._path = path
            self._name = name or (str(path) if path is not None else f"descriptor {source}")
        else:
            self._path = Path(source)
            self._name = str(source)
            flags = (os.O_RDWR if writable or create else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            if create:
                flags |= os.O_CREAT
            try:
                self._fd = os.open(self._path, flags, mode)
            except OSError as error:
                raise storage_failed(error, self._name, "opening") from error
        self._closed = False
        self._entry_durable = not create
        if not stat.S_ISREG(self._stat().st_mode):
            self.close()
            raise NotProtectedFile(
                f"{self._name} is not a regular file",
                check="kind of file",
                expected="a regular file",
                seen="a directory, a device, a pipe or a socket",
                remedy="name the protected file itself",
            )

    def _stat(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise storage_failed(error, self._name, "looking at") from error

    @property
    def name(self) -> str:
        """The path, or the number of the descriptor."""
        return self._name

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def size(self) -> int:
        """The file's length now."""
        return self._stat().st_size

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Fill `target` from `offset`."""
        try:
            got = os.preadv(self._fd, (target,), offset)
        except OSError as error:
            raise storage_failed(error, self._name, "reading") from error
        wanted = memoryview(target).nbytes
        if got == wanted or got == 0:
            return got
        rest = memoryview(target).cast("B")
        while got < wanted:
            try:
                more = os.preadv(self._fd, (rest[got:],), offset + got)
            except OSError as error:
                raise storage_failed(error, self._name, "reading") from error
            if more == 0:
                break
            got += more
        return got

    def will_read(self, offset: int, size: int, /) -> None:
        """Have the kernel fetch them."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write all of `data`. A short write is continued where it stopped, or fails."""
        rest = memoryview(data).cast("B")
        while rest:
            try:
                done = os.pwrite(self._fd, rest, offset)
            except OSError as error:
                raise storage_failed(error, self._name, "writing") from error
            if done == 0:
                raise storage_failed(OSError(errno.EIO, "nothing was written"), self._name, "writing")
            rest = rest[done:]
            offset += done

    def truncate(self, size: int, /) -> None:
        """Cut or extend."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise storage_failed(error, self._name, "cutting") from error

    def sync(self) -> None:
        """Make content and, the first time for a file that this created, its directory entry durable."""
        try:
            os.fsync(self._fd)
            if not self._entry_durable and self._path is not None:
                sync_directory(self._path.parent)
        except OSError as error:
            raise storage_failed(error, self._name, "syncing") from error
        self._entry_durable = True

    def _log_path(self) -> Path | None:
        return None if self._path is None else self._path.with_name(self._path.name + RECOVERY_SUFFIX)

    def open_log(self, *, create: bool) -> OSFile | None:
        """The recovery log beside it, readable and, if `create`, writable; never through a symbolic link."""
        path = self._log_path()
        if path is None:
            return None
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        flags |= (os.O_RDWR | os.O_CREAT) if create else os.O_RDONLY
        try:
            log = OSFile(os.open(path, flags, 0o600), path=path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no room for the suffix: this file can have no log
                return None
            raise storage_failed(error, str(path), "opening") from error
        log._entry_durable = False
        return log

    def remove_log(self) -> None:
        """Remove the recovery log."""
        path = self._log_path()
        if path is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    return
                raise storage_failed(error, str(path), "removing") from error

    def moved_to(self, place: Path, /, *, sync: bool) -> None:
        """The file was renamed to `place`. Its next recovery log is made there."""
        before, old_log = self._path, self._log_path()
        self._path, self._name = place, str(place)
        try:
            if sync and before is not None:
                sync_directory(place.parent)
                if before.parent != place.parent:
                    sync_directory(before.parent)
            if old_log is not None:
                old_log.unlink(missing_ok=True)
        except OSError as error:
            raise storage_failed(error, str(place), "renaming") from error

    def close(self) -> None:
        """Close the descriptor."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Memory:
    """A backing in memory, with its log. It outlives `close`, so that it can be opened again."""

    def __init__(self, content: Buffer = b"", *, name: str = "<memory>") -> None:
        self.content = bytearray(content)
        self.log: Memory | None = None
        self._name = name

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    def size(self) -> int:
        """The length."""
        return len(self.content)

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Copy out."""
        view = memoryview(target).cast("B")
        got = max(0, min(len(view), len(self.content) - offset))
        view[:got] = memoryview(self.content)[offset : offset + got]
        return got

    def will_read(self, offset: int, size: int, /) -> None:
        """Memory has it here."""

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Copy the data in. A gap reads as zeros."""
        view = memoryview(data).cast("B")
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(view)] = view

    def truncate(self, size: int, /) -> None:
        """Cut or extend with zeros."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def sync(self) -> None:
        """Memory has nothing to sync."""

    def open_log(self, *, create: bool) -> Memory | None:
        """The log, in memory too."""
        if self.log is None and create:
            self.log = Memory(name=self._name + RECOVERY_SUFFIX)
        return self.log

    def remove_log(self) -> None:
        """Forget the log."""
        self.log = None

    def moved_to(self, place: Path, /, *, sync: bool) -> None:  # noqa: ARG002 - the protocol's name
        """Take the new name. The log under the old name is removed."""
        self._name = str(place)
        self.log = None

    def close(self) -> None:
        """Nothing to let go of."""


class Overlay:
    """A backing seen through an undo log, without writing to it: the nodes of `places` come from the log."""

    def __init__(self, below: Backing, log: Backing, places: Mapping[int, int], *, node_bytes: int, size: int) -> None:
        self._below = below
        self._log = log
        self._places = places
        self._node_bytes = node_bytes
        self._size = size

    @property
    def name(self) -> str:
        """The name of what lies below."""
        return self._below.name

    def size(self) -> int:
        """The length that the log restores."""
        return self._size

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Read, node by node where the log has it."""
        view = memoryview(target).cast("B")
        view = view[: max(0, self._size - offset)]
        done = 0
        while done < len(view):
            node, within = divmod(offset + done, self._node_bytes)
            part = view[done : done + self._node_bytes - within]
            place = self._places.get(node)
            if place is None:
                got = self._below.read_into(offset + done, part)
            else:
                got = self._log.read_into(place + within, part)
            done += got
            if got < len(part):
                break
        return done

    def will_read(self, offset: int, size: int, /) -> None:
        """Pass it on."""
        self._below.will_read(offset, size)

    def write_at(self, _offset: int, _data: Buffer, /) -> None:
        """Never: it is there to read."""
        raise StorageFailed(f"{self.name} is open for reading only", check="writing", expected="a writable handle")

    def truncate(self, _size: int, /) -> None:
        """Never: it is there to read."""
        raise StorageFailed(f"{self.name} is open for reading only", check="cutting", expected="a writable handle")

    def sync(self) -> None:
        """Nothing was written."""

    def open_log(self, *, create: bool) -> Backing | None:  # noqa: ARG002 - the protocol's name
        """A log has no log."""
        return None

    def remove_log(self) -> None:
        """The log stays: nothing was recovered on the host."""

    def moved_to(self, place: Path, /, *, sync: bool) -> None:
        """Nothing was renamed: it is there to read."""

    def close(self) -> None:
        """Close both."""
        self._log.close()
        self._below.close()
