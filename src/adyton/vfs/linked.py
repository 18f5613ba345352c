"""An encrypted mount with symbolic links and `user.` attributes, over a tree that knows files and folders only.

A link and the attributes of a file are protected files of their own (`pfile.side_files`). So everything that holds
against the host for a file holds for them. This module decides what a name is:

- What the run has seen as a file, a folder or a link stays that, until the program changes it.
- Else it is a link if the host shows the link's file. So a link counts where a crash between the two steps of a rename
  left both. The file that is hidden by it goes when the link is removed.
- A name that the program removed or renamed is neither, until the program makes something there.
- A folder that leads to another mount is never a link.

A crash may lose the attributes of a file that is being renamed. It never gives a file those of another.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import Error
from adyton.pfile.side_files import (
    LINK_SUFFIX,
    MAX_ATTRIBUTE_NAME_BYTES,
    MAX_ATTRIBUTES_BYTES,
    MAX_NAME_BYTES,
    MAX_TARGET_BYTES,
    USER_PREFIX,
    XATTR_SUFFIX,
    encode_attributes,
    is_reserved,
    parse_attributes,
    parse_target,
)
from adyton.vfs.encrypted import EncryptedTree
from adyton.vfs.host_folder import FUSE_HIDDEN, os_error
from adyton.vfs.rename import KNOWN_FLAGS, check_rename
from adyton.vfs.syscalls import RENAME_EXCHANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from adyton.values import Key128
    from adyton.vfs.node import Node, OpenFile


class LinkedTree:
    """One encrypted mount. It takes the arguments of `EncryptedTree`, and paths in the same form.

    Without `side_files` there are no links and no attributes, nor are there in a mount of a single file: there is no
    room beside the file.
    """

    direct: Final = False

    def __init__(
        self,
        source: str,
        key: Key128,
        *,
        side_files: bool = True,
        event: Callable[[str], None] = lambda _text: None,
        **options: Any,
    ) -> None:
        self._event = event
        self._shown = source or "."
        self._files = files = EncryptedTree(source, key, event=event, is_planted=self._is_planted, **options)
        self._side_files = side_files and not files.is_single_file
        # what concerns open files, and never a name
        self.release = files.release
        self.read_into = files.read_into
        self.write = files.write
        self.handle_node = files.handle_node
        self.resize = files.resize
        self.reserve = files.reserve
        self.flush = files.flush
        self.sync_folder = files.sync_folder
        self.set_node_mode = files.set_node_mode
        self.set_node_times = files.set_node_times
        self.room = files.room
        self.close = files.close
        self.states = files.states

    # ---------------------------------------------------------------- what a name is

    def _is_link(self, path: str) -> bool:
        if not path or not self._side_files:
            return False
        if is_reserved(_name(path)):
            raise os_error(errno.ENOENT, path)
        if self._files.is_known(path + LINK_SUFFIX):
            return True
        return not self._files.is_known(path) and self._files.is_there(path + LINK_SUFFIX)

    def _is_planted(self, path: str) -> bool:
        """Whether the host shows the file of a link now where the run knows a file or a folder."""
        name = path.removesuffix(LINK_SUFFIX)
        return name != path and not self._files.is_known(path) and self._files.is_known(name)

    def _stored(self, path: str) -> str:
        """The path of the file or folder that stands for a path of the program."""
        return path + LINK_SUFFIX if self._is_link(path) else path

    def node(self, path: str) -> Node:
        """What is at a path. Raises OSError, or Error where it does not verify."""
        if not self._is_link(path):
            return self._files.node(path)
        stored = path + LINK_SUFFIX
        known = self._files.known_node(stored)
        if known is not None and known.target:
            return known
        raw = self._read(stored, MAX_TARGET_BYTES)
        if not raw:
            self._event(f"{self._shown}/{path}: the link was not yet written when a run ended")
            with suppress(OSError):  # in a read-only mount it stays
                self._files.remove(stored)
            raise os_error(errno.ENOENT, path)
        node = self._files.node(stored)
        node.target = parse_target(raw, f"{self._shown}/{stored}")
        return node

    def listing(self, path: str) -> list[tuple[str, int]]:
        """Names in a folder with the kind of each (S_IFDIR, S_IFREG or S_IFLNK)."""
        found = self._files.listing(path)
        if not self._side_files:
            return found
        names = {name: kind for name, kind in found if not is_reserved(name)}
        for name, kind in found:
            link = name.removesuffix(LINK_SUFFIX)
            if link not in ("", ".", "..", name) and kind == stat.S_IFREG:
                names[link] = stat.S_IFLNK
        return list(names.items())

    def _read(self, stored: str, most: int) -> bytes:
        """The content of a small file. Raises OSError, and EIO for one of more than `most` bytes."""
        try:
            opened = self._files.open(stored)
        except IsADirectoryError as error:
            self._event(f"{self._shown}/{stored}: the host put a folder in the place of a file")
            raise os_error(errno.EIO, stored) from error
        try:
            if opened.file.size > most:
                self._event(f"{self._shown}/{stored}: {opened.file.size} bytes, and {most} are possible")
                raise os_error(errno.EIO, stored)
            return opened.file.read_at(0, opened.file.size)
        finally:
            self._files.release(opened)

    # ---------------------------------------------------------------- files and folders

    def open(self, path: str, *, truncate: bool = False) -> OpenFile:
        """Open the file at a path."""
        if self._is_link(path):
            raise os_error(errno.ELOOP, path)
        return self._files.open(path, truncate=truncate)

    def truncate(self, path: str, size: int) -> None:
        """Cut or extend a file by its path."""
        if self._is_link(path):
            raise os_error(errno.ELOOP, path)
        self._files.truncate(path, size)

    def create(self, path: str, mode: int) -> OpenFile:
        """Create a file that is not there, and open it."""
        self._prepare_new(path)
        opened = self._files.create(path, mode)
        opened.node.attributes = {}
        return opened

    def make_folder(self, path: str, mode: int) -> None:
        """Make a folder."""
        self._prepare_new(path)
        self._files.make_folder(path, mode)
        self._files.node(path).attributes = {}

    def make_link(self, path: str, target: bytes) -> None:
        """Make a symbolic link. Where it leads is not looked at."""
        if not 1 <= len(target) <= MAX_TARGET_BYTES:
            raise os_error(errno.ENAMETOOLONG if target else errno.ENOENT, path)
        if not self._side_files:
            raise os_error(errno.EPERM, path)
        self._prepare_new(path)
        if self._files.is_known(path) or self._files.is_there(path):
            raise os_error(errno.EEXIST, path)
        stored = path + LINK_SUFFIX
        opened = self._files.create(stored, 0o600)
        try:
            try:
                self._files.write(opened, memoryview(target), 0)
            finally:
                self._files.release(opened)
        except BaseException:
            self._files.remove(stored)
            raise
        opened.node.target = target
        opened.node.attributes = {}

    def _check_name(self, path: str) -> None:
        """Refuse a new name that is reserved, or that leaves no room for the names of attributes and recovery log."""
        name = _name(path)
        if is_reserved(name):
            self._event(f"{path}: names that end in {LINK_SUFFIX} or {XATTR_SUFFIX} are Adyton's own: take another")
            raise os_error(errno.EACCES, path)
        if len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise os_error(errno.ENAMETOOLONG, path)

    def _prepare_new(self, path: str) -> None:
        """Before something is made at a path: nothing may be there, and no attributes may wait for it."""
        self._files.check_writable(path)
        self._check_name(path)
        if self._is_link(path):
            raise os_error(errno.EEXIST, path)
        self._discard(path + XATTR_SUFFIX)

    def remove(self, path: str) -> None:
        """Remove a file or a link. Handles that are open on a file go on working."""
        if self._is_link(path):
            if self._files.is_there(path):
                with suppress(OSError):  # a folder of the host's stays, unseen
                    self._files.remove(path)
            self._files.remove(path + LINK_SUFFIX)
            self._files.lose(path)
        else:
            self._files.remove(path)
            self._discard(path + XATTR_SUFFIX)
            self._lose_link(path)

    def _lose_link(self, path: str) -> None:
        """The program took the file or folder of this name away: the host cannot put a link in its place."""
        if self._side_files:
            self._files.lose(path + LINK_SUFFIX)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        if self._is_link(path):
            raise os_error(errno.ENOTDIR, path)
        self._files.check_writable(path)
        self._remove_left_over(path)
        self._files.remove_folder(path)
        self._discard(path + XATTR_SUFFIX)
        self._lose_link(path)

    def _remove_left_over(self, folder: str) -> None:
        """Remove attributes of files that are gone, or a folder that looks empty could not be removed."""
        names = [name for name, _ in self._files.listing(folder)] if self._side_files else []
        if all(name.endswith(XATTR_SUFFIX) for name in names):
            for name in names:
                self._files.remove(f"{folder}/{name}")

    def _discard(self, stored: str) -> None:
        """Remove a side file, if there is one."""
        if self._side_files:
            try:
                self._files.remove(stored)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                    raise

    # ---------------------------------------------------------------- renaming

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename a file, a folder or a link, with its attributes. `flags` are those of renameat2."""
        for path in (old, new):
            self._files.check_writable(path)
        if flags & ~KNOWN_FLAGS:
            raise os_error(errno.EINVAL, old)
        if not self._side_files:
            self._files.rename(old, new, flags)
            return
        source = self.node(old)
        if not flags and FUSE_HIDDEN.fullmatch(_name(new)):  # removed while it is open
            self.attributes(old)
            self._files.rename(old, new, flags)
            self._discard(old + XATTR_SUFFIX)
            self._lose_link(old)
            return
        self._check_name(new)
        try:
            target: Node | None = self.node(new)
        except FileNotFoundError:
            target = None
        check_rename(new, source, target, flags)
        if target is source:
            return
        if flags & RENAME_EXCHANGE and target is not None:
            self._exchange(old, source, new, target)
        else:
            self._move(old, source, new, target, flags)

    def _move(self, old: str, source: Node, new: str, target: Node | None, flags: int) -> None:
        attributes = self.attributes(old)
        if target is not None and target.is_folder:
            self._remove_left_over(new)
        before, after = self._stored(old), new + LINK_SUFFIX if source.target else new
        replaced = self._stored(new)
        with self._none_at({new: {} if target is None else self.attributes(new)}):
            self._files.rename(before, after, flags)
        if target is not None and replaced != after:
            self._files.remove(replaced)
        if attributes:
            self._save(new, attributes)
        self._discard(old + XATTR_SUFFIX)
        self._files.lose(old if source.target else old + LINK_SUFFIX)

    def _exchange(self, old: str, source: Node, new: str, target: Node) -> None:
        if bool(source.target) != bool(target.target):  # two files of different names: no single step does it
            raise os_error(errno.EINVAL, old)
        before = {old: self.attributes(old), new: self.attributes(new)}
        with self._none_at(before):
            self._files.rename(self._stored(old), self._stored(new), RENAME_EXCHANGE)
        for path, attributes in ((new, before[old]), (old, before[new])):
            if attributes:
                self._save(path, attributes)

    @contextmanager
    def _none_at(self, attributes: Mapping[str, Mapping[bytes, bytes]]) -> Iterator[None]:
        """No attributes are on the host at these paths while the block renames. Where it fails, they are put back."""
        for path in attributes:
            self._discard(path + XATTR_SUFFIX)
        try:
            yield
        except BaseException:
            for path, before in attributes.items():
                if before:
                    with suppress(OSError, Error):  # the first error is told
                        self._save(path, before)
            raise

    # ---------------------------------------------------------------- attributes

    def attributes(self, path: str) -> Mapping[bytes, bytes]:
        """The extended attributes of what is at a path, by name. Only `user.` ones exist."""
        node = self.node(path)
        if node.attributes is None:
            node.attributes = {} if node.target or not self._side_files else self._load(path + XATTR_SUFFIX)
        return node.attributes

    def _load(self, stored: str) -> dict[bytes, bytes]:
        try:
            raw = self._read(stored, MAX_ATTRIBUTES_BYTES)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return {}
            raise
        # a run may have ended between the making of the file and its first commit
        return parse_attributes(raw, f"{self._shown}/{stored}") if raw else {}

    def set_attribute(self, path: str, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute. `flags` are those of setxattr: XATTR_CREATE, XATTR_REPLACE."""
        attributes = dict(self.attributes(path))
        if flags & os.XATTR_CREATE and name in attributes:
            raise os_error(errno.EEXIST, path)
        if flags & os.XATTR_REPLACE and name not in attributes:
            raise os_error(errno.ENODATA, path)
        if name == USER_PREFIX or not name.startswith(USER_PREFIX):
            raise os_error(errno.EINVAL if name == USER_PREFIX else errno.EOPNOTSUPP, path)
        if len(name) > MAX_ATTRIBUTE_NAME_BYTES:
            raise os_error(errno.ERANGE, path)
        attributes[name] = value
        self._change(path, attributes)

    def remove_attribute(self, path: str, name: bytes) -> None:
        """Remove an attribute."""
        attributes = dict(self.attributes(path))
        if name not in attributes:
            raise os_error(errno.ENODATA, path)
        del attributes[name]
        self._change(path, attributes)

    def _change(self, path: str, attributes: dict[bytes, bytes]) -> None:
        self._files.check_writable(path)
        node = self.node(path)
        if node.target or not self._side_files:
            raise os_error(errno.EPERM if node.target else errno.EOPNOTSUPP, path)
        if len(encode_attributes(attributes)) > MAX_ATTRIBUTES_BYTES:
            raise os_error(errno.ENOSPC, path)
        if not FUSE_HIDDEN.fullmatch(_name(path)):  # one that was removed has no file beside it
            if attributes:
                self._save(path, attributes)
            else:
                self._discard(path + XATTR_SUFFIX)
        node.attributes = attributes

    def _save(self, path: str, attributes: Mapping[bytes, bytes]) -> None:
        stored = path + XATTR_SUFFIX
        raw = memoryview(encode_attributes(attributes))
        try:
            opened = self._files.open(stored, truncate=True)
        except FileNotFoundError:
            opened = self._files.create(stored, 0o600)
        try:
            self._files.write(opened, raw, 0)
            self._files.flush(opened, sync=False)
        except Error:
            with suppress(Error):  # the first error is told
                self._files.release(opened)
            raise
        self._files.release(opened)

    # ---------------------------------------------------------------- modes and times

    def set_mode(self, path: str, mode: int) -> None:
        """Remember a mode. A link has none of its own."""
        if self._is_link(path):
            raise os_error(errno.EOPNOTSUPP, path)
        self._files.set_mode(path, mode)

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Remember times, of a link itself where one is there."""
        self._files.set_times(self._stored(path), atime_ns, mtime_ns)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
