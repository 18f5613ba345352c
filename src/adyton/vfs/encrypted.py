"""A folder of protected files, served as ordinary files: names on the host, content and sizes from what verifies.

It knows files and folders only. `linked` adds symbolic links and extended attributes, which are files here.

This module decides what of the host's answers is believed. Names of entries are the host's, within the bounds of
`known_names`. A file whose last state is remembered is refused in any other state. Modes and times are what the program
set during the run, else fixed. The host's own are believed only where the caller says so (`adyton mount`, on the
owner's machine).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Final

from adyton.errors import Error
from adyton.pfile.backing import RECOVERY_SUFFIX
from adyton.values import Key128
from adyton.vfs.host_file import IN_THE_WAY
from adyton.vfs.host_folder import FUSE_HIDDEN, HostFolder, os_error
from adyton.vfs.known_names import KnownNames
from adyton.vfs.node import FIXED_TIME_NS, FileState, Node, OpenFile
from adyton.vfs.open_files import OpenFiles
from adyton.vfs.rename import KNOWN_FLAGS, Rename, check_rename
from adyton.vfs.storage_watchdog import StorageWatchdog

if TYPE_CHECKING:
    from adyton.roots.entry import Entry
    from adyton.roots.pinned_folder import PinnedFolder


class EncryptedTree:
    """One encrypted mount: a host folder (or single file), its key, and the beginning of its files' sealed paths.

    Paths are relative to the mount, without a slash at either end. "" is the mount itself. Every method raises
    OSError or Error, and the adapter turns both into an errno.

    `points` are paths at which another mount covers this one, with True for a folder. They are there as empty files and
    folders, whatever the host has under these names, and the program cannot remove, replace or open them.

    `is_planted` says of a path that the host lists whether it is to be taken as not there.

    `pinned` begins to follow a pinned folder, once it is locked. What is in it is then known from the start, and
    nothing else is there. Each change is told before it is done. A pinned folder that is only read has its `entries`.
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
        points: Mapping[str, bool] | None = None,
        event: Callable[[str], None] = lambda _text: None,
        watchdog: StorageWatchdog | None = None,
        is_planted: Callable[[str], bool] = lambda _path: False,
        pinned: Callable[[], PinnedFolder] | None = None,
        entries: Mapping[str, Entry] | None = None,
    ) -> None:
        self._is_planted = is_planted
        self._watchdog = watchdog or StorageWatchdog()
        self._read_only = read_only
        self._believe_host = believe_host
        self._event = event
        self._inodes = count(2)
        self._known = KnownNames()
        self._host = HostFolder(source, shared=read_only, refusal=self.host_error)
        self._pinned = None if pinned is None else pinned()
        self._files = OpenFiles(
            self._host,
            self._known,
            key,
            sealed_as=sealed_as,
            read_only=read_only,
            power_safe=power_safe,
            new_node=lambda path, host, mode: self._new_node(path, is_folder=False, mode=mode, host=host),
            refusal=self.host_error,
            event=event,
            watchdog=self._watchdog,
            pinned=self._pinned,
        )
        self._points = {
            path: Node(next(self._inodes), is_folder, 0o755 if is_folder else 0o444, FIXED_TIME_NS, FIXED_TIME_NS, 0)
            for path, is_folder in (points or {}).items()
        }
        for path in self._points:
            self._make_parents(path)
        self._rename = Rename(
            self,
            self._host,
            self._known,
            self._files,
            self._watchdog,
            new_names_complete=not believe_host,
            pinned=self._pinned,
        )
        if self._pinned is not None:
            self._pinned.sync_within(self._watchdog.syncing)
            entries = self._pinned.entries
        if entries is not None:
            self._know_all(entries)

    def _know_all(self, entries: Mapping[str, Entry]) -> None:
        """Remember everything in a pinned folder, as if this run had written it."""
        self._new_node("", is_folder=True, mode=None, host=None).complete = True
        for path, entry in sorted(entries.items()):
            node = self._new_node(path, is_folder=entry.is_folder, mode=None, host=None)
            node.complete = entry.is_folder
            if not entry.is_folder:
                node.root, node.found_root, node.size = entry.root, entry.root, entry.size

    @contextlib.contextmanager
    def _told(self, path: str, tell: Callable[[PinnedFolder, str], None]) -> Iterator[None]:
        """Tell a pinned folder what the block is about to do at a path, and take it back if the block fails."""
        if self._pinned is None:
            yield
            return
        before = {path: self._pinned.entries.get(path)}
        tell(self._pinned, path)
        try:
            yield
        except BaseException:
            self._pinned.put_back(before)
            raise

    def _make_parents(self, point: str) -> None:
        """Make the folders that hold a point, which are the program's own."""
        for end in (at for at, letter in enumerate(point) if letter == "/"):
            folder, name = self._host.split(point[:end])
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=folder)

    def _refuse_points(self, path: str, *, and_below: bool = False) -> None:
        """Nothing may change a point, nor (`and_below`) move or remove a folder that holds one."""
        if path in self._points or (and_below and self._holds_point(path)):
            raise os_error(errno.EBUSY, path)

    def _holds_point(self, path: str) -> bool:
        return any(point.startswith(path + "/") for point in self._points)

    # ---------------------------------------------------------------- looking

    @property
    def is_single_file(self) -> bool:
        """Whether the mount is one file and not a folder."""
        return self._host.is_single_file

    def known_node(self, path: str) -> Node | None:
        """The node at a path, if this run has looked at it."""
        return self._known.get(path)

    def is_known(self, path: str) -> bool:
        """Whether a point is at this path, or above one, or this run saw something there that is not gone since."""
        return path in self._points or self._holds_point(path) or self._known.was_seen(path)

    def is_there(self, path: str) -> bool:
        """Whether the host shows anything at this path that is to be believed. Raises OSError."""
        if self._known.is_absent(path):
            return False
        folder, name = self._host.split(path)
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return False
            raise self.host_error(error, path) from error
        return True

    def host_error(self, error: OSError, path: str) -> OSError:
        """The error that the program sees for a failure of the host. Links and lost files are named I/O errors."""
        known = self._known.get(path)
        in_the_way = error.errno == errno.EISDIR and known is not None and not known.is_folder
        if in_the_way or error.errno in IN_THE_WAY:
            self._event(f"{self._host.shown}/{path}: the host put a link, a folder, a device or a mount in the way")
            return os_error(errno.EIO, path)
        if error.errno == errno.ENOENT and self._known.was_seen(path):
            self._event(f"{self._host.shown}/{path}: was there in this run and is gone from the host")
            return os_error(errno.EIO, path)
        return error

    def _new_node(self, path: str, *, is_folder: bool, mode: int | None, host: os.stat_result | None) -> Node:
        mtime_ns = atime_ns = FIXED_TIME_NS
        if host is not None and self._believe_host:
            mode = stat.S_IMODE(host.st_mode)
            mtime_ns, atime_ns = host.st_mtime_ns, host.st_atime_ns
        if mode is None:
            mode = 0o755 if is_folder else 0o644
        node = Node(next(self._inodes), is_folder, mode, mtime_ns, atime_ns)
        self._known.add(path, node)
        return node

    def node(self, path: str) -> Node:
        """What is at a path, with the size of a file. Raises OSError, or Error where it does not verify."""
        point = self._points.get(path)
        if point is not None:
            return point
        known = self._known.get(path)
        if known is not None and (known.is_folder or known.size >= 0):
            if known.opened is not None:
                known.size = known.opened.file.size
            return known
        if self._known.is_absent(path):
            raise os_error(errno.ENOENT, path)
        if not path and not self._host.is_single_file:
            return self._new_node("", is_folder=True, mode=None, host=os.fstat(self._host.base))
        folder, name = self._host.split(path)
        try:
            host = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            raise self.host_error(error, path) from error
        if stat.S_ISDIR(host.st_mode):
            return self._new_node(path, is_folder=True, mode=None, host=host)
        if not stat.S_ISREG(host.st_mode):
            self._event(f"{self._host.shown}/{path}: neither a file nor a folder (links are not supported)")
            raise os_error(errno.EIO, path)
        opened = self._files.attach(path)
        self._files.detach(opened)
        return opened.node

    def listing(self, path: str) -> list[tuple[str, int]]:
        """Names in a folder with the kind of each (S_IFDIR or S_IFREG).

        Recovery logs and removed names are hidden. A name that is known and no longer shown stays listed, so that
        opening it is an I/O error and nobody takes it for removed.
        """
        prefix = path + "/" if path else ""
        points = {point.rpartition("/")[2]: node for point, node in self._points.items() if _is_in(point, path)}
        found: list[tuple[str, int]] = []
        seen: set[str] = set(points)
        for name, is_folder in self._host.entries(path):
            if name in points or self._known.is_absent(prefix + name) or self._is_planted(prefix + name):
                continue
            seen.add(name)
            known = self._known.get(prefix + name)
            found.append((name, stat.S_IFDIR if (is_folder if known is None else known.is_folder) else stat.S_IFREG))
        for name, kind in self._known.in_folder(path).items():
            if name not in seen:
                self._event(f"{self._host.shown}/{prefix}{name}: was there in this run and is gone from the host")
                found.append((name, kind))
        if found and not self._believe_host:
            self._known.list_names(path, found)
        return found + [(name, stat.S_IFDIR if node.is_folder else stat.S_IFREG) for name, node in points.items()]

    # ---------------------------------------------------------------- open files

    def open(self, path: str, *, truncate: bool = False) -> OpenFile:
        """Open the file at a path. Each call is one handle, to be given to `release`."""
        self._refuse_points(path)
        if self._known.is_absent(path):
            raise os_error(errno.ENOENT, path)
        opened = self._files.attach(path)
        if truncate:
            self.resize(opened, 0)
        opened.handles += 1
        return opened

    def create(self, path: str, mode: int) -> OpenFile:
        """Create a file that is not there, and open it."""
        self.check_writable(path)
        if self._known.get(path) is not None:
            raise os_error(errno.EEXIST, path)
        self._files.check_lengths([path])
        opened = self._files.create(path, mode)
        self._touch_parent(path)
        opened.handles += 1
        return opened

    def release(self, opened: OpenFile) -> None:
        """Give up one handle."""
        opened.handles -= 1
        self._files.detach(opened)

    def read_into(self, opened: OpenFile, offset: int, target: memoryview) -> int:
        """Fill `target`. There are fewer bytes only at the end of the file."""
        self._refuse_lost(opened, offset + len(target))
        return opened.file.read_into(offset, target)

    def handle_node(self, opened: OpenFile) -> Node:
        """The node of an open file, removed or not."""
        opened.node.size = opened.file.size
        return opened.node

    def write(self, opened: OpenFile, data: memoryview, offset: int) -> int:
        """Write all of `data`."""
        self.check_writable(opened.path or "")
        self._refuse_lost(opened, offset)
        opened.file.write_at(offset, data)
        opened.node.mtime_ns = time.time_ns()
        return len(data)

    def _refuse_lost(self, opened: OpenFile, offset: int) -> None:
        """What the kernel counts to a file and the host had no room for reads as an error, and not as zeros."""
        if opened.file.size < min(offset, opened.node.size_before_enospc):
            raise os_error(errno.EIO, opened.path or "")

    def truncate(self, path: str, size: int) -> None:
        """Cut or extend a file by its path."""
        self.check_writable(path)
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
        self.check_writable(opened.path or "")
        opened.file.truncate(size)
        opened.node.size_before_enospc = 0
        opened.node.mtime_ns = time.time_ns()

    def reserve(self, opened: OpenFile, size: int) -> None:
        """Extend an open file to at least `size` bytes, and have the host make room for them now (posix_fallocate)."""
        before = opened.file.size
        if size <= before:
            return
        try:
            self.resize(opened, size)
            self.flush(opened, sync=False)
        except Error:
            self.resize(opened, before)
            raise

    def flush(self, opened: OpenFile, *, sync: bool) -> None:
        """Commit what was written. With `sync` it is durable."""
        if not self._read_only and opened.path is not None:
            opened.file.flush(sync=sync)
            opened.node.root = opened.file.root
        if sync:
            self._commit()

    def sync_folder(self, path: str) -> None:
        """Make a folder's entries durable."""
        with self._watchdog.syncing():
            os.fsync(self._host.folder(self._host.host_path(path) if path else ""))
        self._commit()

    def _commit(self) -> None:
        """Make what a pinned folder holds now the state that the next run is held to."""
        if self._pinned is not None:
            self._pinned.commit()

    # ---------------------------------------------------------------- names

    def check_writable(self, path: str) -> None:
        """Raise OSError where nothing at this path may be changed: at a point, or in a read-only mount."""
        self._refuse_points(path)
        if self._read_only:
            raise os_error(errno.EROFS, path)

    def _touch_parent(self, path: str) -> None:
        parent = self._known.parent(path)
        if parent is not None:
            parent.mtime_ns = time.time_ns()

    def make_folder(self, path: str, mode: int) -> None:
        """Make a folder."""
        self.check_writable(path)
        folder, name = self._host.split(path)
        with self._told(path, lambda pinned, made: pinned.making_folder(made)):
            try:
                os.mkdir(name, (mode | 0o700) & 0o777, dir_fd=folder)
            except FileExistsError:
                if not self._known.is_absent(path):
                    raise
                if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise self.host_error(os_error(errno.ENOTDIR, path), path) from None
        node = self._new_node(path, is_folder=True, mode=mode, host=None)
        node.complete = not self._believe_host
        node.mtime_ns = node.atime_ns = time.time_ns()
        self._touch_parent(path)

    def remove(self, path: str) -> None:
        """Remove a file. Handles that are open on it go on working."""
        self.check_writable(path)
        if self._known.unhide(path):
            return
        folder, name = self._host.split(path)
        try:
            with self._told(path, lambda pinned, gone: pinned.removing(gone)):
                os.unlink(name, dir_fd=folder)
        except OSError as error:
            raise self.host_error(error, path) from error
        node = self._known.remove(path)
        if node is not None and node.opened is not None:
            node.opened.removed()
        else:
            with contextlib.suppress(OSError):
                os.unlink(name + RECOVERY_SUFFIX, dir_fd=folder)
        self._touch_parent(path)

    def lose(self, path: str) -> None:
        """From now on nothing is at this path, whatever the host shows there. Nothing of the program's may be there."""
        self._known.remove(path)

    def _hide(self, path: str, hidden: str) -> None:
        """Remove a file that is open: its name goes now, also on the host. libfuse knows it under a hidden name."""
        node = self._known.get(path)
        if node is None or node.opened is None:
            raise os_error(errno.EPERM, hidden)
        self.remove(path)
        self._known.hide(hidden, node)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        self.check_writable(path)
        self._refuse_points(path, and_below=True)
        folder, name = self._host.split(path)
        if self._known.in_folder(path):
            raise os_error(errno.ENOTEMPTY, path)
        self._host.remove_leftover_logs(path)
        try:
            with self._told(path, lambda pinned, gone: pinned.removing(gone)):
                os.rmdir(name, dir_fd=folder)
        except OSError as error:
            raise self.host_error(error, path) from error
        self._host.forget(path)
        self._known.remove(path)
        self._touch_parent(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename a file or folder, sealing the new paths into the files first. `flags` are those of renameat2."""
        self.check_writable(old)
        for end in (old, new):
            self._refuse_points(end, and_below=True)
        if flags & ~KNOWN_FLAGS:
            raise os_error(errno.EINVAL, old)
        source = self.node(old)
        try:
            target: Node | None = self.node(new)
        except FileNotFoundError:
            target = None
        if target is None and not flags and FUSE_HIDDEN.fullmatch(new.rpartition("/")[2]):
            self._hide(old, new)
            return
        check_rename(new, source, target, flags)
        if target is source:
            return
        self._rename(old, new, target, flags)
        self._touch_parent(old)
        self._touch_parent(new)

    # ---------------------------------------------------------------- attributes

    def _is_on_host(self, path: str) -> bool:
        hidden = FUSE_HIDDEN.fullmatch(path.rpartition("/")[2])  # removed while it is open
        return not hidden and (bool(path) or self._host.is_single_file)

    def set_mode(self, path: str, mode: int) -> None:
        """Remember a mode, and leave it on the host for the owner to see."""
        self.check_writable(path)
        node = self.node(path)
        node.mode = mode & 0o7777
        if self._is_on_host(path):
            self._host.show_mode(path, mode, is_folder=node.is_folder)

    def set_node_mode(self, opened: OpenFile, mode: int) -> None:
        """Remember the mode of an open file that was removed."""
        opened.node.mode = mode & 0o7777

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Remember times (None leaves one as it is), and leave them on the host for the owner to see."""
        self.check_writable(path)
        node = self.node(path)
        self.set_node_times(node, atime_ns, mtime_ns)
        if self._is_on_host(path):
            self._host.show_times(path, atime_ns=node.atime_ns, mtime_ns=node.mtime_ns)

    def set_node_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Remember times of something open."""
        if atime_ns is not None:
            node.atime_ns = atime_ns
        if mtime_ns is not None:
            node.mtime_ns = mtime_ns

    def room(self) -> os.statvfs_result:
        """How full the host's file system is."""
        return os.fstatvfs(self._host.base)

    def states(self) -> Iterator[FileState]:
        """The state of every file that this run took or made, as of its last closing."""
        return self._files.states()

    def close(self) -> None:
        """Close whatever is still open. Every file is flushed."""
        self._files.close()
        try:
            self._commit()
        finally:
            self._host.close()


def _is_in(path: str, folder: str) -> bool:
    return path.rpartition("/")[0] == folder
