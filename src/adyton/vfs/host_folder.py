"""An encrypted mount's folder on the host: every name is opened beneath it, and no link is ever followed.

This module alone turns a path of the mount into an open folder and a name in it. It opens with openat2
(RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS), so that the host cannot lead a read or a write elsewhere. It believes nothing:
what the host's answers mean is for its caller.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from adyton.errors import MountFailed
from adyton.pfile.backing import RECOVERY_SUFFIX
from adyton.vfs import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

FUSE_HIDDEN: Final = re.compile(r"\.fuse_hidden[0-9a-f]{16}")
"""Names under which libfuse keeps a file that was removed while open. No program may use such a name."""
_MAX_OPEN: Final = 64


def os_error(number: int, path: str) -> OSError:
    """The OSError of this errno at this path."""
    return OSError(number, os.strerror(number), path)


def _lock(fd: int, shown: str, *, shared: bool) -> None:
    """Keep a second run or mount away from the same folder: two writers would destroy each other's files."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MountFailed(
            f"{shown} is in use by another mount or run",
            check="lock on the encrypted folder",
            expected="nobody else using it",
            seen="another process holds the lock",
            remedy="wait until it has ended, or unmount it (`adyton umount`)",
        ) from None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOLCK):
            raise


class HostFolder:
    """The host's folder, or single file, behind one mount. Paths are relative to the mount. "" is the mount itself.

    `refusal` gives the error that the program sees for a failure of the host at a path.
    """

    def __init__(self, source: str, *, shared: bool, refusal: Callable[[OSError, str], OSError]) -> None:
        self.shown: Final = source or "."
        self._refusal = refusal
        base = os.open(self.shown, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._single: str | None = None
        _lock(base, self.shown, shared=shared)
        self._locked = base
        if stat.S_ISREG(os.fstat(base).st_mode):
            folder, _, self._single = self.shown.rpartition("/")
            base = os.open(
                folder or ("/" if self.shown.startswith("/") else "."), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        self.base: Final = base
        self._open: OrderedDict[str, int] = OrderedDict()

    @property
    def is_single_file(self) -> bool:
        """Whether the mount is one file and not a folder."""
        return self._single is not None

    def name_of(self, path: str) -> str:
        """A path as messages show it."""
        return f"{self.shown}/{path}" if path else self.shown

    def host_path(self, path: str) -> str:
        """The path below `base` on the host."""
        return path if self._single is None else self._single

    def split(self, path: str) -> tuple[int, str]:
        """The open host folder that holds a path, and its name in it."""
        folder, _, name = self.host_path(path).rpartition("/")
        if name.endswith(RECOVERY_SUFFIX) or not name or FUSE_HIDDEN.fullmatch(name):
            raise os_error(errno.ENOENT if FUSE_HIDDEN.fullmatch(name) else errno.EACCES, path)
        return self.folder(folder), name

    def folder(self, path: str) -> int:
        """The descriptor of a folder. This object closes it."""
        if not path:
            return self.base
        fd = self._open.get(path)
        if fd is not None and os.fstat(fd).st_nlink > 0:
            self._open.move_to_end(path)
            return fd
        if fd is not None:  # the host removed it: what is there now, if anything?
            os.close(self._open.pop(path))
        fd = self.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY)
        self._open[path] = fd
        if len(self._open) > _MAX_OPEN:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return fd

    def open_beneath(self, path: str, flags: int) -> int:
        """Open the file or folder at a path of the mount. The caller closes it."""
        try:
            return syscalls.open_beneath(self.base, path or ".", flags)
        except OSError as error:
            raise self._refusal(error, path) from error

    def forget(self, path: str) -> None:
        """Close the folders at and below a path that is moved or removed."""
        for known in [known for known in self._open if known == path or known.startswith(path + "/")]:
            os.close(self._open.pop(known))

    def entries(self, path: str) -> list[tuple[str, bool]]:
        """Every name that the host shows in a folder, and whether it is a folder. Recovery logs are left out."""
        fd = self.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as found:
                return [
                    (entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in found
                    if not entry.name.endswith(RECOVERY_SUFFIX)
                ]
        finally:
            os.close(fd)

    def remove_leftover_logs(self, path: str) -> None:
        """Remove recovery logs that no longer belong to a file, or a folder that looks empty could not be removed."""
        folder = self.folder(path)
        names = set(os.listdir(folder))
        for name in names:
            if name.endswith(RECOVERY_SUFFIX) and name.removesuffix(RECOVERY_SUFFIX) not in names:
                os.unlink(name, dir_fd=folder)

    def show_mode(self, path: str, mode: int, *, is_folder: bool) -> None:
        """Leave a mode on the host for the owner to see, as far as the host lets it."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (os.O_DIRECTORY if is_folder else 0)
        with contextlib.suppress(OSError):
            fd = syscalls.open_beneath(self.base, self.host_path(path), flags)
            try:
                os.fchmod(fd, (mode | (0o700 if is_folder else 0o600)) & 0o777)
            finally:
                os.close(fd)

    def show_times(self, path: str, *, atime_ns: int, mtime_ns: int) -> None:
        """Leave times on the host for the owner to see, as far as the host lets it."""
        folder, name = self.split(path)
        with contextlib.suppress(OSError):
            os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)

    def close(self) -> None:
        """Close every folder, and let go of the lock."""
        for fd in {*self._open.values(), self.base, self._locked}:
            os.close(fd)
        self._open.clear()
