"""A protected file's bytes on the host, reached through an open folder, with its recovery log beside it."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from adyton.errors import StorageFailed
from adyton.pfile.backing import RECOVERY_SUFFIX, OSFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from adyton.vfs.storage_watchdog import StorageWatchdog

IN_THE_WAY: Final = (errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENXIO)
"""Errors of an open that met a link, a mount, a file or a device of the host in the place of something else."""


class HostFile(OSFile):
    """A host file known by an open folder and a name in it. It owns both descriptors."""

    def __init__(self, fd: int, folder: int, name: str, shown: str, watchdog: StorageWatchdog) -> None:
        self._watchdog = watchdog
        self._folder = folder
        self._entry: str | None = name
        super().__init__(fd, name=shown)

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Read, and note that the host has answered."""
        got = super().read_into(offset, target)
        self._watchdog.progress()
        return got

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write, and note that the host has answered."""
        super().write_at(offset, data)
        self._watchdog.progress()

    def open_log(self, *, create: bool) -> OSFile | None:
        """The recovery log in the same folder. A removed file has none."""
        if self._entry is None:
            return None
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        flags |= (os.O_RDWR | os.O_CREAT) if create else os.O_RDONLY
        try:
            fd = os.open(self._entry + RECOVERY_SUFFIX, flags, 0o600, dir_fd=self._folder)
            return OSFile(fd, name=self._name + RECOVERY_SUFFIX)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no room for the suffix: this file can have no log
                return None
            in_the_way = error.errno == errno.EISDIR or error.errno in IN_THE_WAY
            cause = OSError(errno.EIO, os.strerror(errno.EIO), self._name) if in_the_way else error
            raise StorageFailed(f"the recovery log of {self._name} cannot be opened: {error.strerror}") from cause

    def sync(self) -> None:
        """Make it durable. An honest disk may be slow at that."""
        with self._watchdog.syncing():
            super().sync()

    def remove_log(self) -> None:
        """Remove the recovery log, if the file still has a name."""
        if self._entry is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._entry + RECOVERY_SUFFIX, dir_fd=self._folder)

    def renamed(self, folder: int, name: str, shown: str) -> None:
        """The host file has another name now: let its recovery log follow."""
        if self._entry is not None:
            with contextlib.suppress(OSError):
                os.rename(
                    self._entry + RECOVERY_SUFFIX, name + RECOVERY_SUFFIX, src_dir_fd=self._folder, dst_dir_fd=folder
                )
        os.close(self._folder)
        self._folder, self._entry, self._name = os.dup(folder), name, shown

    def removed(self) -> None:
        """The host file has no name any more, and so no recovery log."""
        self.remove_log()
        self._entry = None

    def close(self) -> None:
        """Close file and folder."""
        if not self._closed:
            with contextlib.suppress(OSError):
                os.close(self._folder)
        super().close()
