"""One file or folder of a served tree, as the tree remembers it, and what is open of it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from adyton.vfs.stage import FIXED_TIME_S

if TYPE_CHECKING:
    from adyton.pfile.file import ProtectedFile
    from adyton.vfs._reads import Shortcut as NativeReader
    from adyton.vfs.host_file import HostFile

FIXED_TIME_NS: Final = FIXED_TIME_S * 10**9
"""The time that every file has until the program sets one, in nanoseconds since 1970."""


@dataclass(slots=True)
class Node:
    """One file or folder, for the length of the run. Times are in nanoseconds, sizes in bytes (-1: not known yet)."""

    inode: int
    is_folder: bool
    mode: int
    mtime_ns: int
    atime_ns: int
    size: int = -1
    root: bytes = b""
    found_root: bytes = b""
    """Of a file that was there before this run first opened it: the root that it had."""
    is_taken: bool = False
    """Of such a file: whether this run has opened it."""
    links: int = 1
    complete: bool = False
    """Of a folder: a name that is not known to be in it is not there, whatever the host shows."""
    target: bytes = b""
    """Of a symbolic link: where it leads. Nothing else has one."""
    attributes: dict[bytes, bytes] | None = None
    """The extended attributes, by name. None where nobody has asked for them in this run."""
    size_before_enospc: int = 0
    """Of a file that was closed with more than the host had room for: the size that the kernel still believes."""
    opened: OpenFile | None = None

    @property
    def kind(self) -> int:
        """S_IFDIR, S_IFLNK or S_IFREG."""
        return stat.S_IFDIR if self.is_folder else stat.S_IFLNK if self.target else stat.S_IFREG


class FileState(NamedTuple):
    """A stored path, the plaintext size in bytes, and the root of the file before this run (b"": none) and now.

    Both are the same for a file that was only taken, or that is no longer at this path.
    """

    path: str
    size: int
    found_root: bytes
    root: bytes


@dataclass(slots=True)
class OpenFile:
    """A protected file held open by one or more handles. `path` is None once it was removed."""

    file: ProtectedFile
    host: HostFile
    node: Node
    path: str | None
    native_reader: NativeReader | None
    handles: int = 0

    def removed(self) -> None:
        """The file has no name any more."""
        self.host.removed()
        self.file.announce_to(None)
        self.path = None
        self.node.links = 0
