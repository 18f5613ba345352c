"""The FUSE adapter: look up, call, map errors to errno.

One process serves every tree of a run, each under a top-level name; `adyton mount` serves one tree at the top.
The loop has one thread: the trees need no locks, and a request is short. Of mfusepy only the bindings are used, so that
a read can go past Python (`reads`). Which libfuse serves is `libfuse`'s choice.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from adyton.errors import Error, MountFailed, StorageFailed
from adyton.pfile.side_files import MAX_NAME_BYTES, USER_PREFIX
from adyton.vfs import libfuse
from adyton.vfs.native_reader import native_read_callback
from adyton.vfs.node import Node
from adyton.vfs.owner import Owner
from adyton.vfs.storage_watchdog import StorageWatchdog

if TYPE_CHECKING:
    from adyton.vfs._reads import Shortcut as NativeReader

_FOREVER_S: Final = 86_400.0
_ASK_AGAIN_S: Final = 1.0
"""How long the kernel believes attributes. It asks for them, by the open file, before a write; that is the one moment
at which a program whose earlier writes the kernel took and the storage refused (a full disk) can be told so."""

_CAP_SPLICE: Final = 1 << 7 | 1 << 8 | 1 << 9
_CAP_AUTO_INVAL_DATA: Final = 1 << 12
_CAP_READDIRPLUS: Final = 1 << 13 | 1 << 14
_CAP_WRITEBACK_CACHE: Final = 1 << 16
_UNKNOWN_INODE: Final = 0xFFFFFFFF
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2

mfusepy = libfuse.load()


def calling_process() -> tuple[int, int]:
    """The process whose request is being served: its id, and when it started, as this process's /proc tells them."""
    pid = mfusepy.fuse_get_context()[2]
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            group = next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))
        with open(f"/proc/{group}/stat", encoding="ascii", errors="replace") as facts:
            return group, int(facts.read().rpartition(")")[2].split()[19])
    except (OSError, StopIteration):  # it has ended, or is of a namespace that cannot be seen from here
        return pid, 0


class Tree(Protocol):
    """The calls that a file system must offer. Paths are relative, "" is its top. Raises OSError or Error."""

    @property
    def direct(self) -> bool:
        """Whether reads and writes go past the page cache, as for files whose content is made when they are opened."""
        ...

    def node(self, path: str) -> Node: ...
    def listing(self, path: str) -> list[tuple[str, int]]: ...
    def open(self, path: str, *, truncate: bool = False) -> Any: ...
    def create(self, path: str, mode: int) -> Any: ...
    def read_into(self, opened: Any, offset: int, target: memoryview) -> int: ...
    def write(self, opened: Any, data: memoryview, offset: int) -> int: ...
    def handle_node(self, opened: Any) -> Node: ...
    def truncate(self, path: str, size: int) -> None: ...
    def resize(self, opened: Any, size: int) -> None: ...
    def flush(self, opened: Any, *, sync: bool) -> None: ...
    def release(self, opened: Any) -> None: ...
    def sync_folder(self, path: str) -> None: ...
    def reserve(self, opened: Any, size: int) -> None: ...
    def make_folder(self, path: str, mode: int) -> None: ...
    def make_link(self, path: str, target: bytes) -> None: ...
    def remove(self, path: str) -> None: ...
    def remove_folder(self, path: str) -> None: ...
    def rename(self, old: str, new: str, flags: int) -> None: ...
    def set_mode(self, path: str, mode: int) -> None: ...
    def set_node_mode(self, opened: Any, mode: int) -> None: ...
    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None: ...
    def set_node_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None: ...
    def attributes(self, path: str) -> Mapping[bytes, bytes]: ...
    def set_attribute(self, path: str, name: bytes, value: bytes, flags: int) -> None: ...
    def remove_attribute(self, path: str, name: bytes) -> None: ...
    def room(self) -> os.statvfs_result | None: ...
    def close(self) -> None: ...


def errno_of(error: Error) -> int:
    """The errno that the program sees for a refusal: EIO, or the host's own reason where storage failed."""
    cause = error.__cause__
    known = isinstance(error, StorageFailed) and isinstance(cause, OSError)
    return (cause.errno or errno.EIO) if known and isinstance(cause, OSError) else errno.EIO


_OPERATIONS: Final = (
    "getattr", "readlink", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "chmod", "chown", "truncate",
    "open", "read", "write", "statfs", "flush", "release", "fsync", "opendir", "readdir", "releasedir", "fsyncdir",
    "init", "create", "utimens", "fallocate", "setxattr", "getxattr", "listxattr", "removexattr",
)  # fmt: skip


class Adapter:
    """Serves `trees`, by their top-level names. The single name "" puts one tree at the top."""

    def __init__(
        self,
        trees: Mapping[str, Tree],
        *,
        event: Callable[[str], None],
        watchdog: StorageWatchdog,
        ready: Callable[[], None] = lambda: None,
        owner: Owner | None = None,
    ) -> None:
        self._trees = dict(trees)
        self._top = self._trees.get("")
        self._numbers = {id(tree): number for number, tree in enumerate(self._trees.values())}
        self._event = event
        self._ready = ready
        self._handles: dict[int, tuple[Tree, Any]] = {}
        self._native_readers: dict[int, NativeReader] = {}
        self._folders: dict[int, tuple[Tree, str] | None] = {}
        self._next_handle = 1
        self._refused: dict[int, int] = {}
        self._owner = owner or Owner.caller()
        self._watchdog = watchdog

    def serve(self, mountpoint: str, *, options: Sequence[str], name: str) -> None:
        """Serve until it is unmounted. Raises MountFailed where libfuse could not start or ended badly."""
        self._watchdog.watch(self._event)
        prototypes = dict(mfusepy.fuse_operations._fields_)
        called = {name: prototypes[name](partial(self._call, getattr(self, name))) for name in _OPERATIONS}
        callbacks = mfusepy.fuse_operations(**called)
        python = ctypes.cast(called["read"], ctypes.c_void_p).value or 0
        handle_at = mfusepy.fuse_file_info.fh.offset
        callbacks.read = prototypes["read"](
            native_read_callback(self._native_readers, python, handle_at, self._watchdog)
        )
        settings = ",".join([f"fsname={name}", "subtype=adyton", *options])
        words = [os.fsencode(word) for word in ("adyton", "-f", "-s", "-o", settings, mountpoint)]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # libfuse takes only what nobody else has taken
        argv = (ctypes.c_char_p * len(words))(*words)
        status = mfusepy.fuse_main_real(len(words), argv, ctypes.pointer(callbacks), ctypes.sizeof(callbacks), None)
        if status:
            raise MountFailed(
                f"FUSE did not start or ended badly (status {status})",
                check="FUSE mount",
                expected="a mount that is served until it is unmounted",
                seen=f"status {status}",
                remedy="see whether /dev/fuse is there and may be opened, and fuse3 is installed",
            )

    # ---------------------------------------------------------------- edges

    def _call(self, operation: Callable[..., int | None], *args: Any) -> int:
        self._watchdog.start(operation.__name__)
        try:
            return operation(*args) or 0
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Error as error:
            self._event(error.message)
            return -errno_of(error)
        except Exception as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
            self._event(f"bug in {operation.__name__}: {type(error).__name__}: {error}{where}")
            return -errno.EIO
        finally:
            self._watchdog.stop()

    def init(self, connection: Any, config: Any) -> None:
        """Settle with the kernel how it may cache: everything changes only through this mount."""
        conn, conf = connection.contents, config.contents
        conn.want &= ~(_CAP_SPLICE | _CAP_AUTO_INVAL_DATA | _CAP_READDIRPLUS)
        if not any(tree.direct for tree in self._trees.values()) or len(self._trees) > 1:
            conn.want |= conn.capable & _CAP_WRITEBACK_CACHE
        conn.max_background = 64
        conf.entry_timeout = _FOREVER_S
        conf.attr_timeout = _ASK_AGAIN_S
        conf.negative_timeout = 0.0
        conf.use_ino = 1
        conf.kernel_cache = 1
        conf.nullpath_ok = 1
        self._ready()

    def _find(self, raw: bytes) -> tuple[Tree, str]:
        path = os.fsdecode(raw)[1:]
        if self._top is not None:
            return self._top, path
        name, _, rest = path.partition("/")
        tree = self._trees.get(name)
        if tree is None:
            raise OSError(errno.ENOENT, path)
        return tree, rest

    def _handle(self, info: Any) -> tuple[Tree, Any]:
        return self._handles[info.contents.fh]

    def _keep(self, tree: Tree, opened: Any, info: Any) -> None:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = (tree, opened)
        native_reader = getattr(opened, "native_reader", None)
        if native_reader is not None:
            self._native_readers[number] = native_reader
        contents = info.contents
        contents.fh = number
        if tree.direct:
            contents.direct_io = 1
        else:
            contents.keep_cache = 1

    # ---------------------------------------------------------------- operations

    def getattr(self, path: bytes | None, buffer: Any, info: Any) -> None:
        ctypes.memset(buffer, 0, ctypes.sizeof(mfusepy.c_stat))
        attributes = buffer.contents
        attributes.st_uid, attributes.st_gid = self._owner.uid, self._owner.gid
        if path == b"/" and self._top is None:
            attributes.st_mode, attributes.st_nlink, attributes.st_ino = stat.S_IFDIR | 0o755, 2, 1
            return
        if path is None:
            tree, opened = self._handle(info)
            if id(opened) in self._refused:
                raise OSError(self._refused[id(opened)], "an earlier write failed")
            node = tree.handle_node(opened)
        else:
            tree, rest = self._find(path)
            node = tree.node(rest)
        attributes.st_mode = node.kind | (0o777 if node.target else node.mode)
        attributes.st_nlink = 2 if node.is_folder else node.links
        attributes.st_ino = node.inode + (self._numbers[id(tree)] << 48) + 1
        size = max(node.size, 0)
        attributes.st_size = size
        attributes.st_blocks = (size + 511) >> 9
        attributes.st_blksize = 4096
        for name, value in (
            ("st_atimespec", node.atime_ns),
            ("st_mtimespec", node.mtime_ns),
            ("st_ctimespec", node.mtime_ns),
        ):
            moment = getattr(attributes, name)
            moment.tv_sec, moment.tv_nsec = divmod(value, 10**9)

    def readlink(self, path: bytes, buffer: Any, size: int) -> None:
        tree, rest = self._find(path)
        target = tree.node(rest).target
        if not target:
            raise OSError(errno.EINVAL, rest)
        whole = target[: size - 1] + b"\0"
        ctypes.memmove(buffer, whole, len(whole))

    def symlink(self, target: bytes, path: bytes) -> None:
        tree, rest = self._find(path)
        tree.make_link(rest, target)

    def link(self, _source: bytes, target: bytes) -> None:
        raise OSError(errno.EPERM, os.fsdecode(target))

    def mkdir(self, path: bytes, mode: int) -> None:
        tree, rest = self._find(path)
        tree.make_folder(rest, mode & 0o7777)

    def unlink(self, path: bytes) -> None:
        tree, rest = self._find(path)
        tree.remove(rest)

    def rmdir(self, path: bytes) -> None:
        tree, rest = self._find(path)
        tree.remove_folder(rest)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        tree, rest = self._find(old)
        other, target = self._find(new)
        if tree is not other:
            raise OSError(errno.EXDEV, target)
        tree.rename(rest, target, flags)

    def chmod(self, path: bytes | None, mode: int, info: Any) -> None:
        if path is None:
            tree, opened = self._handle(info)
            tree.set_node_mode(opened, mode & 0o7777)
        else:
            tree, rest = self._find(path)
            tree.set_mode(rest, mode & 0o7777)

    def chown(self, _path: bytes | None, uid: int, gid: int, _info: Any) -> None:
        nobody = 0xFFFFFFFF
        if uid not in (nobody, self._owner.uid) or gid not in (nobody, self._owner.gid):
            raise OSError(errno.EPERM, "every file belongs to the program")

    def truncate(self, path: bytes | None, length: int, info: Any) -> None:
        if info:
            tree, opened = self._handle(info)
            tree.resize(opened, length)
            self._refused.pop(id(opened), None)
        elif path is not None:
            tree, rest = self._find(path)
            tree.truncate(rest, length)

    def utimens(self, path: bytes | None, times: Any, info: Any) -> None:
        moments: list[int | None] = []
        for moment in (times.contents.actime, times.contents.modtime) if times else (None, None):
            if moment is None or moment.tv_nsec == _UTIME_NOW:
                moments.append(time.time_ns())
            elif moment.tv_nsec == _UTIME_OMIT:
                moments.append(None)
            else:
                moments.append(moment.tv_sec * 10**9 + moment.tv_nsec)
        if path is None:
            tree, opened = self._handle(info)
            tree.set_node_times(tree.handle_node(opened), *moments)
        else:
            tree, rest = self._find(path)
            tree.set_times(rest, *moments)

    def open(self, path: bytes, info: Any) -> None:
        tree, rest = self._find(path)
        self._keep(tree, tree.open(rest, truncate=bool(info.contents.flags & os.O_TRUNC)), info)

    def create(self, path: bytes, mode: int, info: Any) -> None:
        tree, rest = self._find(path)
        self._keep(tree, tree.create(rest, mode & 0o7777), info)

    def read(self, _path: bytes | None, buffer: Any, size: int, offset: int, info: Any) -> int:
        tree, opened = self._handles[info.contents.fh]
        target = (ctypes.c_char * size).from_address(ctypes.addressof(buffer.contents))
        return tree.read_into(opened, offset, memoryview(target).cast("B"))

    def write(self, _path: bytes | None, buffer: Any, size: int, offset: int, info: Any) -> int:
        tree, opened = self._handles[info.contents.fh]
        data = (ctypes.c_char * size).from_address(ctypes.addressof(buffer.contents))
        try:
            return tree.write(opened, memoryview(data).cast("B"), offset)
        except StorageFailed as error:
            self._refused[id(opened)] = errno_of(error)
            raise

    def fallocate(self, _path: bytes | None, mode: int, offset: int, length: int, info: Any) -> None:
        tree, opened = self._handle(info)
        if mode or tree.direct:
            raise OSError(errno.EOPNOTSUPP, "only room at the end of a file can be reserved")
        tree.reserve(opened, offset + length)

    def statfs(self, path: bytes, buffer: Any) -> None:
        room = None if path == b"/" and self._top is None else self._find(path)[0].room()
        if room is not None:
            for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
                setattr(buffer.contents, name, getattr(room, name))
        buffer.contents.f_namemax = MAX_NAME_BYTES

    def setxattr(self, path: bytes, name: bytes, value: Any, size: int, flags: int) -> None:
        tree, rest = self._find_attribute(path, name)
        tree.set_attribute(rest, name, ctypes.string_at(value, size) if size else b"", flags)

    def getxattr(self, path: bytes, name: bytes, buffer: Any, size: int) -> int:
        tree, rest = self._find_attribute(path, name)
        value = tree.attributes(rest).get(name)
        if value is None:
            raise OSError(errno.ENODATA, rest)
        return _answer(value, buffer, size)

    def listxattr(self, path: bytes, buffer: Any, size: int) -> int:
        names = () if path == b"/" and self._top is None else self._attributes(path)
        return _answer(b"".join(name + b"\0" for name in names), buffer, size)

    def removexattr(self, path: bytes, name: bytes) -> None:
        tree, rest = self._find_attribute(path, name)
        tree.remove_attribute(rest, name)

    def _find_attribute(self, path: bytes, name: bytes) -> tuple[Tree, str]:
        if not name.startswith(USER_PREFIX) or (path == b"/" and self._top is None):
            raise OSError(errno.EOPNOTSUPP, os.fsdecode(path))
        return self._find(path)

    def _attributes(self, path: bytes) -> Mapping[bytes, bytes]:
        tree, rest = self._find(path)
        return tree.attributes(rest)

    def flush(self, _path: bytes | None, info: Any) -> None:
        tree, opened = self._handle(info)
        tree.flush(opened, sync=False)

    def fsync(self, _path: bytes | None, _data_only: int, info: Any) -> None:
        tree, opened = self._handle(info)
        tree.flush(opened, sync=True)

    def opendir(self, path: bytes, info: Any) -> None:
        number = self._next_handle
        self._next_handle += 1
        self._folders[number] = None if path == b"/" and self._top is None else self._find(path)
        info.contents.fh = number

    def releasedir(self, _path: bytes | None, info: Any) -> None:
        del self._folders[info.contents.fh]

    def fsyncdir(self, _path: bytes | None, _data_only: int, info: Any) -> None:
        found = self._folders[info.contents.fh]
        if found is not None:
            tree, rest = found
            tree.sync_folder(rest)

    def release(self, _path: bytes | None, info: Any) -> None:
        number = info.contents.fh
        self._native_readers.pop(number, None)
        tree, opened = self._handles.pop(number)
        self._refused.pop(id(opened), None)
        tree.release(opened)

    def readdir(self, _path: bytes | None, buffer: Any, fill: Any, _offset: int, info: Any, _flags: int) -> None:
        where = self._folders[info.contents.fh]
        found = [(name, stat.S_IFDIR) for name in self._trees] if where is None else where[0].listing(where[1])
        attributes = mfusepy.c_stat()
        attributes.st_ino = _UNKNOWN_INODE
        attributes.st_mode = stat.S_IFDIR
        fill(buffer, b".", attributes, 0, 0)
        fill(buffer, b"..", attributes, 0, 0)
        for name, kind in found:
            attributes.st_mode = kind
            if fill(buffer, os.fsencode(name), attributes, 0, 0):
                break


def _answer(data: bytes, buffer: Any, size: int) -> int:
    """Give a program `data`, or with size 0 its length alone, as getxattr and listxattr do."""
    if size:
        if len(data) > size:
            raise OSError(errno.ERANGE, "the buffer is too small")
        ctypes.memmove(buffer, data, len(data))
    return len(data)


def serve(
    trees: Mapping[str, Tree],
    mountpoint: str,
    *,
    event: Callable[[str], None],
    watchdog: StorageWatchdog | None = None,
    options: Sequence[str] = (),
    ready: Callable[[], None] = lambda: None,
    name: str = "adyton",
    owner: Owner | None = None,
) -> None:
    """Serve until unmounted. Then every file is flushed and closed. `mountpoint` may be /dev/fd/N, already mounted.

    Every file belongs to `owner`, by default to this process's user.
    """
    failed = True
    try:
        adapter = Adapter(trees, event=event, watchdog=watchdog or StorageWatchdog(), ready=ready, owner=owner)
        adapter.serve(mountpoint, options=options, name=name)
        failed = False
    finally:
        for tree in trees.values():
            try:
                tree.close()
            except Error as error:
                event(error.message)
                if not failed:
                    raise
