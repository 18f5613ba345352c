"""A folder of protected files, served as ordinary files: names on the host, content and sizes from what verifies.

This module alone decides what of the host's answers is believed. Names of entries are the host's (the format gives
directories no integrity), with these exceptions within one run: what was seen or listed and then vanishes is an I/O
error and not "no such file"; what the program removed stays removed; a folder that the program made or renamed holds
what it put there and nothing else; and a file whose last state is remembered is refused in any other state. Modes and
times are what the program set during the run, else fixed; the host's own are believed only where the caller says so
(`adyton mount`, on the owner's machine).

No link is ever followed on the host: every name is opened beneath the mount's folder (openat2, RESOLVE_BENEATH,
RESOLVE_NO_SYMLINKS), so that the host cannot lead a write elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.errors import Error, MountFailed, StorageFailed, UsageError
from adyton.pfile.backing import RECOVERY_SUFFIX, OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128
from adyton.vfs import syscalls
from adyton.vfs.mount_table import join
from adyton.vfs.native_reader import shortcut_to
from adyton.vfs.stage import FIXED_TIME_S
from adyton.vfs.storage_watchdog import Pulse

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from adyton.vfs._reads import Shortcut

FIXED_TIME_NS: Final = FIXED_TIME_S * 10**9
_FOLDERS_OPEN: Final = 64
_HIDDEN: Final = re.compile(r"\.fuse_hidden[0-9a-f]{16}")
"""Where libfuse moves a file that is removed while it is open; no program may use such a name."""
_IN_THE_WAY: Final = (errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENXIO)
"""What the host's links, mounts, files and devices in the place of something else lead to."""
_CACHE_BYTES: Final = ((2, 16 << 20), (10, 2 << 20), (50, 256 << 10), (1 << 30, 64 << 10))
"""Cache of one more open file, by how many are open already: 1000 open files stay below 64 MiB."""


def _os_error(number: int, path: str) -> OSError:
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


class HostFile(OSFile):
    """A host file known by an open folder and a name in it; its recovery log lies in the same folder."""

    def __init__(self, fd: int, folder: int, name: str, shown: str, pulse: Pulse) -> None:
        self._pulse = pulse
        self._folder = folder
        self._entry: str | None = name
        super().__init__(fd, name=shown)

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Read; the host has answered."""
        got = super().read_into(offset, target)
        self._pulse.beat()
        return got

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write; the host has answered."""
        super().write_at(offset, data)
        self._pulse.beat()

    def open_log(self, *, create: bool) -> OSFile | None:
        """The recovery log in the same folder; none for a file that was removed."""
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
            in_the_way = error.errno == errno.EISDIR or error.errno in _IN_THE_WAY
            cause = _os_error(errno.EIO, self._name) if in_the_way else error
            raise StorageFailed(f"the recovery log of {self._name} cannot be opened: {error.strerror}") from cause

    def sync(self) -> None:
        """Make it durable; an honest disk may take its time for that."""
        with self._pulse.syncing():
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


@dataclass(slots=True)
class Node:
    """What is remembered of one path for the length of the run."""

    inode: int
    is_folder: bool
    mode: int
    mtime_ns: int
    atime_ns: int
    size: int = -1
    root: bytes = b""
    links: int = 1
    complete: bool = False
    """Of a folder: what is not known to be in it is not there, whatever the host shows."""
    lost_to: int = 0
    """Of a file that was closed with more than the host had room for: the size that the kernel goes on to believe."""
    opened: OpenFile | None = None


@dataclass(slots=True)
class OpenFile:
    """A protected file held open by one or more handles; `path` is None once it was removed."""

    file: ProtectedFile
    host: HostFile
    node: Node
    path: str | None
    shortcut: Shortcut | None
    handles: int = 0


class EncryptedTree:
    """One encrypted mount: a host folder (or single file), its key, and what its files' sealed paths begin with.

    Paths are relative to the mount, without a slash at either end; "" is the mount itself. Every method raises
    OSError or Error; the adapter turns both into an errno.
    """

    direct: Final = False

    def __init__(
        self,
        source: str,
        key: Key128,
        *,
        sealed_as: str,
        read_only: bool = False,
        believe_host: bool = False,
        power_safe: bool = False,
        event: Callable[[str], None] = lambda _text: None,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or Pulse()
        self._key = key
        self._sealed_as = sealed_as
        self._read_only = read_only
        self._believe_host = believe_host
        self._power_safe = power_safe
        self._event = event
        self._shown = source or "."
        base = os.open(source or ".", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._single: str | None = None
        _lock(base, self._shown, shared=read_only)
        self._locked = base
        if stat.S_ISREG(os.fstat(base).st_mode):
            folder, _, self._single = self._shown.rpartition("/")
            base = os.open(
                folder or ("/" if self._shown.startswith("/") else "."), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        self._base = base
        self._folders: OrderedDict[str, int] = OrderedDict()
        self._nodes: dict[str, Node] = {}
        self._names: dict[str, dict[str, int]] = {}
        """By folder, what was seen or listed in it, with its kind (S_IFDIR or S_IFREG)."""
        self._gone: set[str] = set()
        self._hidden: set[str] = set()
        self._open_count = 0
        self._inodes = 1

    # ---------------------------------------------------------------- names on the host

    @property
    def is_single_file(self) -> bool:
        """Whether the mount is one file and not a folder."""
        return self._single is not None

    def _host_path(self, path: str) -> str:
        return path if self._single is None else self._single

    def _sealed(self, path: str) -> str:
        return self._sealed_as if not path else join(self._sealed_as, path)

    def _split(self, path: str) -> tuple[int, str]:
        """The open host folder that holds a path, and its name in it."""
        folder, _, name = self._host_path(path).rpartition("/")
        if name.endswith(RECOVERY_SUFFIX) or not name or _HIDDEN.fullmatch(name):
            raise _os_error(errno.ENOENT if _HIDDEN.fullmatch(name) else errno.EACCES, path)
        return self._folder(folder), name

    def _folder(self, path: str) -> int:
        if not path:
            return self._base
        fd = self._folders.get(path)
        if fd is not None and os.fstat(fd).st_nlink > 0:
            self._folders.move_to_end(path)
            return fd
        if fd is not None:  # the host removed it: what is there now, if anything?
            os.close(self._folders.pop(path))
        try:
            fd = syscalls.open_beneath(self._base, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._host_error(error, path) from error
        self._folders[path] = fd
        if len(self._folders) > _FOLDERS_OPEN:
            _, oldest = self._folders.popitem(last=False)
            os.close(oldest)
        return fd

    def _forget_folders(self, path: str) -> None:
        for known in [known for known in self._folders if known == path or known.startswith(path + "/")]:
            os.close(self._folders.pop(known))

    def _host_error(self, error: OSError, path: str) -> OSError:
        """What the program is told of a failure of the host: links and lost files are I/O errors, and are named."""
        known = self._nodes.get(path)
        in_the_way = error.errno == errno.EISDIR and known is not None and not known.is_folder
        if in_the_way or error.errno in _IN_THE_WAY:
            self._event(f"{self._shown}/{path}: the host put a link, a folder, a device or a mount in the way")
            return _os_error(errno.EIO, path)
        if error.errno == errno.ENOENT and self._was_seen(path):
            self._event(f"{self._shown}/{path}: was there in this run and is gone from the host")
            return _os_error(errno.EIO, path)
        return error

    # ---------------------------------------------------------------- what is known

    def _was_seen(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return path in self._nodes or name in self._names.get(folder, ())

    def _is_absent(self, path: str) -> bool:
        """Whether there is nothing at this path, whatever the host shows there."""
        if path in self._gone:
            return True
        folder, _, name = path.rpartition("/")
        parent = self._nodes.get(folder) if path else None
        return parent is not None and parent.complete and name not in self._names.get(folder, ())

    def _lose(self, path: str) -> None:
        """Nothing is at this path any more, and the host cannot put back what was there."""
        parent = self._nodes.get(path.rpartition("/")[0])
        if parent is None or not parent.complete:
            self._gone.add(path)

    def _new_node(self, path: str, *, is_folder: bool, mode: int | None, host: os.stat_result | None) -> Node:
        self._inodes += 1
        mtime_ns = atime_ns = FIXED_TIME_NS
        if host is not None and self._believe_host:
            mode = stat.S_IMODE(host.st_mode)
            mtime_ns, atime_ns = host.st_mtime_ns, host.st_atime_ns
        if mode is None:
            mode = 0o755 if is_folder else 0o644
        node = Node(self._inodes, is_folder, mode, mtime_ns, atime_ns)
        self._remember(path, node)
        self._gone.discard(path)
        return node

    def _remember(self, path: str, node: Node) -> None:
        self._nodes[path] = node
        if path:
            folder, _, name = path.rpartition("/")
            self._names.setdefault(folder, {})[name] = stat.S_IFDIR if node.is_folder else stat.S_IFREG

    def _forget(self, path: str) -> Node | None:
        node = self._nodes.pop(path, None)
        folder, _, name = path.rpartition("/")
        names = self._names.get(folder)
        if names is not None:
            names.pop(name, None)
            if not names:
                del self._names[folder]
        return node

    def node(self, path: str) -> Node:
        """What is at a path, with the size of a file; raises OSError, or Error where it does not verify."""
        known = self._nodes.get(path)
        if known is not None and (known.is_folder or known.size >= 0):
            if known.opened is not None:
                known.size = known.opened.file.size
            return known
        if self._is_absent(path):
            raise _os_error(errno.ENOENT, path)
        if not path and self._single is None:
            return self._new_node("", is_folder=True, mode=None, host=os.fstat(self._base))
        folder, name = self._split(path)
        try:
            host = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            raise self._host_error(error, path) from error
        if stat.S_ISDIR(host.st_mode):
            return self._new_node(path, is_folder=True, mode=None, host=host)
        if not stat.S_ISREG(host.st_mode):
            self._event(f"{self._shown}/{path}: neither a file nor a folder (links are not supported)")
            raise _os_error(errno.EIO, path)
        opened = self._attach(path)
        self._detach(opened)
        return opened.node

    def listing(self, path: str) -> list[tuple[str, int]]:
        """Names in a folder with the kind of each (S_IFDIR or S_IFREG); recovery logs and removed names are hidden."""
        try:
            fd = syscalls.open_beneath(self._base, path or ".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._host_error(error, path) from error
        found: list[tuple[str, int]] = []
        seen: set[str] = set()
        prefix = path + "/" if path else ""
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.name.endswith(RECOVERY_SUFFIX) or self._is_absent(prefix + entry.name):
                        continue
                    seen.add(entry.name)
                    known = self._nodes.get(prefix + entry.name)
                    folder = entry.is_dir(follow_symlinks=False) if known is None else known.is_folder
                    found.append((entry.name, stat.S_IFDIR if folder else stat.S_IFREG))
        finally:
            os.close(fd)
        self._add_vanished(path, seen, found)
        if found and not self._believe_host:
            self._names.setdefault(path, {}).update(found)
        return found

    def _add_vanished(self, path: str, seen: set[str], found: list[tuple[str, int]]) -> None:
        """What is known and no longer listed stays listed, so that opening it says EIO and nobody takes it for gone."""
        for name, kind in self._names.get(path, {}).items():
            if name not in seen:
                self._event(f"{self._shown}/{join(path, name)}: was there in this run and is gone from the host")
                found.append((name, kind))

    # ---------------------------------------------------------------- open files

    def _cache_bytes(self) -> int:
        return next(size for most, size in _CACHE_BYTES if self._open_count < most)

    def _attach(self, path: str, *, create: bool = False, mode: int = 0o644) -> OpenFile:
        """The open file at a path, opened (verified against what is remembered) or created if need be."""
        known = self._nodes.get(path)
        if known is not None and known.is_folder:
            raise _os_error(errno.EISDIR, path)
        if known is not None and known.opened is not None:
            return known.opened
        folder, name = self._split(path)
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        flags |= os.O_RDONLY if self._read_only else os.O_RDWR
        if create:
            flags |= os.O_CREAT | (0 if self._is_absent(path) else os.O_EXCL)
        try:
            fd = os.open(name, flags, (mode | 0o600) & 0o777, dir_fd=folder)
        except OSError as error:
            raise self._host_error(error, path) from error
        shown = f"{self._shown}/{path}" if path else self._shown
        host = HostFile(fd, os.dup(folder), name, shown, self._pulse)
        if create:
            try:
                file = ProtectedFile.create(
                    host,
                    self._key,
                    path=self._sealed(path),
                    cache_bytes=self._cache_bytes(),
                    power_safe=self._power_safe,
                )
            except Error:
                os.unlink(name, dir_fd=folder)
                raise
            known = self._new_node(path, is_folder=False, mode=mode, host=None)
            known.mtime_ns = known.atime_ns = time.time_ns()
        else:
            found = os.fstat(fd)
            file = ProtectedFile.open(
                host,
                self._key,
                path=self._sealed(path),
                writable=not self._read_only,
                expected_root=known.root if known is not None and known.root else None,
                cache_bytes=self._cache_bytes(),
                power_safe=self._power_safe,
            )
            if known is None:
                known = self._new_node(path, is_folder=False, mode=None, host=found)
        if known.size > file.size:
            known.lost_to = known.size
        known.size = file.size
        known.root = file.root
        shortcut = None if known.lost_to > file.size else shortcut_to(host.fileno())
        if shortcut is not None:
            file.use_shortcut(shortcut)
        known.opened = OpenFile(file, host, known, path, shortcut)
        self._open_count += 1
        return known.opened

    def _detach(self, opened: OpenFile) -> None:
        """Close the file once no handle is left; its last state is remembered."""
        if opened.handles > 0:
            return
        opened.node.opened = None
        self._open_count -= 1
        try:
            opened.file.close()
        finally:
            with contextlib.suppress(Error):
                opened.node.root = opened.file.root
            opened.node.size = opened.file.size

    def open(self, path: str, *, truncate: bool = False) -> OpenFile:
        """Open the file at a path; each call is one handle, to be given to `release`."""
        if self._is_absent(path):
            raise _os_error(errno.ENOENT, path)
        opened = self._attach(path)
        if truncate:
            self._writable(path)
            opened.file.truncate(0)
            opened.node.lost_to = 0
            opened.node.mtime_ns = time.time_ns()
        opened.handles += 1
        return opened

    def create(self, path: str, mode: int) -> OpenFile:
        """Create a file that is not there, and open it."""
        self._writable(path)
        if path in self._nodes:
            raise _os_error(errno.EEXIST, path)
        self._check_lengths([(path, path)])
        opened = self._attach(path, create=True, mode=mode)
        self._touch_parent(path)
        opened.handles += 1
        return opened

    def release(self, opened: OpenFile) -> None:
        """Give up one handle."""
        opened.handles -= 1
        self._detach(opened)

    def read_into(self, opened: OpenFile, offset: int, target: memoryview) -> int:
        """Fill `target`; fewer bytes only at the end of the file."""
        self._refuse_lost(opened, offset + len(target))
        return opened.file.read_into(offset, target)

    def handle_node(self, opened: OpenFile) -> Node:
        """What is known of an open file, removed or not."""
        opened.node.size = opened.file.size
        return opened.node

    def write(self, opened: OpenFile, data: memoryview, offset: int) -> int:
        """Write all of `data`."""
        self._writable(opened.path or "")
        self._refuse_lost(opened, offset)
        opened.file.write_at(offset, data)
        opened.node.mtime_ns = time.time_ns()
        return len(data)

    def _refuse_lost(self, opened: OpenFile, offset: int) -> None:
        """What the kernel counts to a file and the host had no room for reads as an error, and not as zeros."""
        if opened.file.size < min(offset, opened.node.lost_to):
            raise _os_error(errno.EIO, opened.path or "")

    def truncate(self, path: str, size: int) -> None:
        """Cut or extend a file by its path."""
        self._writable(path)
        opened = self.open(path)
        before = opened.file.size
        try:
            self.resize(opened, size)
        finally:
            try:
                self.release(opened)
            except Error:
                opened.node.size = before  # the kernel is told, and does not count what was to be added
                raise

    def resize(self, opened: OpenFile, size: int) -> None:
        """Cut or extend an open file."""
        self._writable(opened.path or "")
        opened.file.truncate(size)
        opened.node.lost_to = 0
        opened.node.mtime_ns = time.time_ns()

    def flush(self, opened: OpenFile, *, sync: bool) -> None:
        """Commit what was written; durable if `sync`."""
        if not self._read_only and opened.path is not None:
            opened.file.flush(sync=sync)
            opened.node.root = opened.file.root

    def sync_folder(self, path: str) -> None:
        """Make a folder's entries durable."""
        with self._pulse.syncing():
            os.fsync(self._folder(self._host_path(path) if path else ""))

    # ---------------------------------------------------------------- names

    def _writable(self, path: str) -> None:
        if self._read_only:
            raise _os_error(errno.EROFS, path)

    def _touch_parent(self, path: str) -> None:
        parent = self._nodes.get(path.rpartition("/")[0])
        if parent is not None:
            parent.mtime_ns = time.time_ns()

    def make_folder(self, path: str, mode: int) -> None:
        """Make a folder."""
        self._writable(path)
        folder, name = self._split(path)
        try:
            os.mkdir(name, (mode | 0o700) & 0o777, dir_fd=folder)
        except FileExistsError:
            if not self._is_absent(path):
                raise
            if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise self._host_error(_os_error(errno.ENOTDIR, path), path) from None
        node = self._new_node(path, is_folder=True, mode=mode, host=None)
        node.complete = not self._believe_host
        node.mtime_ns = node.atime_ns = time.time_ns()
        self._touch_parent(path)

    def remove(self, path: str) -> None:
        """Remove a file; handles that are open on it go on working."""
        self._writable(path)
        if path in self._hidden:
            self._hidden.discard(path)
            del self._nodes[path]
            return
        folder, name = self._split(path)
        try:
            os.unlink(name, dir_fd=folder)
        except OSError as error:
            raise self._host_error(error, path) from error
        node = self._forget(path)
        self._lose(path)
        if node is not None and node.opened is not None:
            node.opened.host.removed()
            node.opened.path = None
            node.links = 0
        else:
            with contextlib.suppress(OSError):
                os.unlink(name + RECOVERY_SUFFIX, dir_fd=folder)
        self._touch_parent(path)

    def _hide(self, path: str, hidden: str) -> None:
        """Remove a file that is open: its name goes now, on the host too; libfuse knows it under a hidden one."""
        node = self._nodes.get(path)
        if node is None or node.opened is None:
            raise _os_error(errno.EPERM, hidden)
        self.remove(path)
        self._nodes[hidden] = node
        self._hidden.add(hidden)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        self._writable(path)
        folder, name = self._split(path)
        if self._names.get(path):
            raise _os_error(errno.ENOTEMPTY, path)
        self._clear_leftovers(path)
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            raise self._host_error(error, path) from error
        self._forget_folders(path)
        self._forget(path)
        self._lose(path)
        self._touch_parent(path)

    def _clear_leftovers(self, path: str) -> None:
        """Remove recovery logs that no longer belong to a file, or a folder that looks empty could not be removed."""
        folder = self._folder(path)
        names = set(os.listdir(folder))
        for name in names:
            if name.endswith(RECOVERY_SUFFIX) and name.removesuffix(RECOVERY_SUFFIX) not in names:
                os.unlink(name, dir_fd=folder)

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename a file or folder, sealing the new paths into the files first; `flags` as renameat2 has them."""
        self._writable(old)
        if flags & ~(syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE):
            raise _os_error(errno.EINVAL, old)
        source = self.node(old)
        try:
            target: Node | None = self.node(new)
        except FileNotFoundError:
            target = None
        if target is None and not flags and _HIDDEN.fullmatch(new.rpartition("/")[2]):
            self._hide(old, new)
            return
        exchange = bool(flags & syscalls.RENAME_EXCHANGE)
        if target is None and exchange:
            raise _os_error(errno.ENOENT, new)
        if target is not None and flags & syscalls.RENAME_NOREPLACE:
            raise _os_error(errno.EEXIST, new)
        if target is not None and not exchange and target.is_folder != source.is_folder:
            raise _os_error(errno.EISDIR if target.is_folder else errno.ENOTDIR, new)
        if target is source:
            return
        if target is not None and target.is_folder and not exchange:
            if self.listing(new):
                raise _os_error(errno.ENOTEMPTY, new)
            self._clear_leftovers(new)
        moves = [(old, new), (new, old)] if exchange else [(old, new)]
        files = [pair for begin, end in moves for pair in self._files_below(begin, end)]
        self._check_lengths(files)
        held = self._rebind(files)
        try:
            old_folder, old_name = self._split(old)
            new_folder, new_name = self._split(new)
            if target is None and self._is_absent(new):
                flags &= ~syscalls.RENAME_NOREPLACE
            syscalls.rename(old_folder, old_name, new_folder, new_name, flags)
        except OSError as error:
            self._rebind_back(held)
            raise self._host_error(error, old) from error
        else:
            self._move_known(old, new, target if not exchange else None, exchange=exchange)
            for opened, path in held:
                folder, name = self._split(path)
                self._pulse.beat()
                opened.host.renamed(folder, name, f"{self._shown}/{path}")
        finally:
            for opened, _ in held:
                self._detach_quietly(opened)
        self._touch_parent(old)
        self._touch_parent(new)

    def _detach_quietly(self, opened: OpenFile) -> None:
        opened.handles -= 1
        try:
            self._detach(opened)
        except Error as error:
            self._event(f"{opened.host.name}: {error.message}")

    def _check_lengths(self, files: list[tuple[str, str]]) -> None:
        from adyton.pfile.paths import path_bytes

        for _, path in files:
            try:
                path_bytes(self._sealed(path))
            except UsageError as error:
                raise _os_error(errno.ENAMETOOLONG, path) from error

    def _files_below(self, old: str, new: str) -> list[tuple[str, str]]:
        """Every file at or below `old` with the path it gets when `old` becomes `new`."""
        if not self.node(old).is_folder:
            return [(old, new)]
        found: list[tuple[str, str]] = []
        folders = [old]
        while folders:
            folder = folders.pop()
            for name, kind in self.listing(folder):
                path = f"{folder}/{name}"
                if kind == stat.S_IFDIR:
                    self.node(path)
                    folders.append(path)
                else:
                    found.append((path, new + path[len(old) :]))
        return found

    def _rebind(self, files: list[tuple[str, str]]) -> list[tuple[OpenFile, str]]:
        """Seal the new paths in; the files stay open until the rename is done. All or none."""
        held: list[tuple[OpenFile, str]] = []
        try:
            for old, new in files:
                self._pulse.beat()
                opened = self._attach(old)
                opened.handles += 1
                held.append((opened, new))
                opened.file.rebind(self._sealed(new))
        except BaseException:
            self._rebind_back(held)
            for opened, _ in held:
                self._detach_quietly(opened)
            raise
        return held

    def _rebind_back(self, held: list[tuple[OpenFile, str]]) -> None:
        for opened, _ in held:
            try:
                opened.file.rebind(self._sealed(opened.path or ""))
            except Error as error:
                self._event(f"{opened.host.name}: {error.message}")

    def _move_known(self, old: str, new: str, replaced: Node | None, *, exchange: bool) -> None:
        if replaced is not None and replaced.opened is not None:
            replaced.opened.host.removed()
            replaced.opened.path = None
            replaced.links = 0
        if replaced is not None:
            self._forget(new)
        self._forget_folders(old)
        self._forget_folders(new)
        from_old = self._take(old)
        from_new = self._take(new) if exchange else {}
        self._put(from_old, old, new)
        self._put(from_new, new, old)
        for node in (*from_old.values(), *from_new.values()):
            node.complete = node.is_folder and not self._believe_host  # every file below had its new path sealed in
        self._gone = {path for path in self._gone if path != new and not path.startswith((old + "/", new + "/"))}
        if not exchange:
            self._lose(old)

    def _take(self, path: str) -> dict[str, Node]:
        """Take a path and everything known below it out of what is remembered."""
        taken: dict[str, Node] = {}
        paths = [path]
        while paths:
            known = paths.pop()
            paths += [f"{known}/{name}" for name in self._names.get(known, ())]
            node = self._forget(known)
            if node is not None:
                taken[known] = node
        return taken

    def _put(self, nodes: dict[str, Node], old: str, new: str) -> None:
        for path, node in nodes.items():
            moved = new + path[len(old) :]
            self._remember(moved, node)
            if node.opened is not None:
                node.opened.path = moved

    # ---------------------------------------------------------------- attributes

    def set_mode(self, path: str, mode: int) -> None:
        """Remember a mode, and leave it on the host for the owner to see."""
        self._writable(path)
        node = self.node(path)
        node.mode = mode & 0o7777
        if path or self._single is not None:
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (os.O_DIRECTORY if node.is_folder else 0)
                fd = syscalls.open_beneath(self._base, self._host_path(path), flags)
                try:
                    os.fchmod(fd, (mode | (0o700 if node.is_folder else 0o600)) & 0o777)
                finally:
                    os.close(fd)

    def set_node_mode(self, opened: OpenFile, mode: int) -> None:
        """Remember the mode of an open file that was removed."""
        opened.node.mode = mode & 0o7777

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Remember times (None leaves one as it is), and leave them on the host for the owner to see."""
        self._writable(path)
        self.set_node_times(self.node(path), atime_ns, mtime_ns)
        if path or self._single is not None:
            node = self.node(path)
            folder, name = self._split(path)
            with contextlib.suppress(OSError):
                os.utime(name, ns=(node.atime_ns, node.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def set_node_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Remember times of something open."""
        if atime_ns is not None:
            node.atime_ns = atime_ns
        if mtime_ns is not None:
            node.mtime_ns = mtime_ns

    def room(self) -> os.statvfs_result:
        """How full the host's file system is."""
        return os.fstatvfs(self._base)

    def close(self) -> None:
        """Close whatever is still open; every file is flushed."""
        for node in self._nodes.values():
            if node.opened is not None:
                node.opened.handles = 0
                try:
                    self._detach(node.opened)
                except Error as error:
                    self._event(error.message)
        for fd in {*self._folders.values(), self._base, self._locked}:
            os.close(fd)
        self._folders.clear()
