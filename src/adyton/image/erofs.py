"""The root file system: EROFS without compression, written from a tree that is in memory. Pure.

Source: the kernel's fs/erofs/erofs_fs.h. Every inode has the extended form (64 bytes) and the plain layout: content in
whole blocks. So one pass writes a file system, and the same tree gives the same bytes.

Layout: block 0 holds the superblock; the inodes follow, then the content of folders, links and files, in the order of
their paths.
"""

from __future__ import annotations

import stat
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from adyton.errors import UsageError

BLOCK: Final = 4096
_SUPERBLOCK: Final = 1024
_INODE: Final = 64
_SLOT: Final = 32
"""Inodes are numbered by units of 32 bytes."""
_MAGIC: Final = 0xE0F5E1E2
_CHECKSUM: Final = 1
_EXTENDED: Final = 1
_TYPES: Final = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}
_MAX_NAME: Final = 255


@dataclass(slots=True)
class Node:
    """A folder, file or link. `content` is a file's bytes or a link's target; a folder has `members` instead."""

    mode: int
    content: bytes = field(default=b"", repr=False)
    members: dict[str, Node] = field(default_factory=dict, repr=False)

    @classmethod
    def folder(cls, mode: int = 0o755) -> Node:
        """An empty folder."""
        return cls(stat.S_IFDIR | mode)

    @classmethod
    def file(cls, content: bytes, *, executable: bool = False) -> Node:
        """A file that everybody may read, and may execute where that is said. Nothing is ever set-uid."""
        return cls(stat.S_IFREG | (0o755 if executable else 0o644), content)

    @classmethod
    def link(cls, target: str) -> Node:
        """A symbolic link."""
        return cls(stat.S_IFLNK | 0o777, target.encode())

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)


def place(root: Node, path: str, node: Node) -> None:
    """Put a node at `path` (relative, without dots), and make folders above it.

    Raises UsageError where the path is not plain, where something else than a folder is above it or a folder is there.
    """
    *above, name = path.split("/")
    here = root
    for part in above:
        here = here.members.setdefault(_plain(part), Node.folder())
        if not here.is_folder:
            raise _wrong(f"what is above {path}", "folders", f"{part} is none")
    if here.members.get(_plain(name), node).is_folder != node.is_folder:
        raise _wrong(f"what is at {path}", "nothing, or the same kind", "a folder and something else")
    here.members[name] = node


def walk(root: Node, prefix: str = "") -> Iterable[tuple[str, Node]]:
    """All nodes below a folder with their relative paths, sorted."""
    for name in sorted(root.members, key=str.encode):
        node = root.members[name]
        yield f"{prefix}{name}", node
        if node.is_folder:
            yield from walk(node, f"{prefix}{name}/")


def write(root: Node, *, epoch: int, identifier: uuid.UUID) -> bytes:
    """The file system of a tree, in whole blocks. Every time in it is `epoch`, and root owns all."""
    nodes = [("", root), *walk(root)]
    numbers = {id(node): index for index, (_, node) in enumerate(nodes)}
    first_data = 1 + -(-len(nodes) * _INODE // BLOCK)
    folders = {"": root} | {path: node for path, node in nodes if node.is_folder}
    parents = {id(child): node for node in folders.values() for child in node.members.values()}

    def nid(node: Node) -> int:
        return (BLOCK + numbers[id(node)] * _INODE) // _SLOT

    inodes, data = bytearray(), bytearray()
    for index, (_, node) in enumerate(nodes):
        content = node.content
        if node.is_folder:
            entries = {".": node, "..": parents.get(id(node), root), **node.members}
            content = _folder({name: (nid(child), child.mode) for name, child in entries.items()})
        subfolders = sum(child.is_folder for child in node.members.values())
        inodes += _inode(node.mode, len(content), first_data + len(data) // BLOCK, index + 1, epoch, 2 + subfolders)
        data += content
        data += bytes(-len(data) % BLOCK)
    blocks = first_data + len(data) // BLOCK
    head = _superblock(nid(root), len(nodes), epoch, blocks, identifier)
    return head + bytes(inodes).ljust((first_data - 1) * BLOCK, b"\0") + bytes(data)


def _superblock(root: int, inodes: int, epoch: int, blocks: int, identifier: uuid.UUID) -> bytes:
    def packed(checksum: int) -> bytes:
        fields = struct.pack(
            "<IIIBBHQQIIII16s16sIH42x",
            _MAGIC,
            checksum,
            _CHECKSUM,
            BLOCK.bit_length() - 1,
            0,
            root,
            inodes,
            epoch,
            0,
            blocks,
            0,
            0,
            identifier.bytes,
            b"adyton",
            0,
            0,
        )
        return (bytes(_SUPERBLOCK) + fields).ljust(BLOCK, b"\0")

    return packed(_crc32c(packed(0)[_SUPERBLOCK:]))


def _inode(mode: int, size: int, block: int, number: int, epoch: int, links: int) -> bytes:
    count = links if stat.S_ISDIR(mode) else 1
    return struct.pack("<HHHHQIIIIQII16x", _EXTENDED, 0, mode, 0, size, block, number, 0, 0, epoch, 0, count)


def _folder(entries: Mapping[str, tuple[int, int]]) -> bytes:
    """A folder's content: in each block first the entries, then their names; sorted by name over all blocks."""
    blocks: list[list[tuple[bytes, int, int]]] = [[]]
    used = 0
    for name, (number, mode) in sorted((name.encode(), found) for name, found in entries.items()):
        if not 1 <= len(name) <= _MAX_NAME:
            raise _wrong("length of a name", f"1 to {_MAX_NAME} bytes", str(len(name)))
        if used + 12 + len(name) > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append((name, number, _TYPES[stat.S_IFMT(mode)]))
        used += 12 + len(name)
    out = bytearray()
    for block in blocks:
        out += bytes(-len(out) % BLOCK)
        at = 12 * len(block)
        names = b""
        for name, number, kind in block:
            out += struct.pack("<QHBB", number, at + len(names), kind, 0)
            names += name
        out += names
    return bytes(out)


def _crc32c(raw: bytes) -> int:
    """CRC-32C of the superblock, as the kernel takes it: no inversion at the end."""
    value = 0xFFFFFFFF
    for byte in raw:
        value = (value >> 8) ^ _CRC32C[(value ^ byte) & 0xFF]
    return value


def _crc_table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC32C: Final = _crc_table()


def _plain(part: str) -> str:
    if part in ("", ".", "..") or "\0" in part:
        raise _wrong("path in the root file system", "relative, without dots", repr(part)[:80])
    return part


def _wrong(check: str, expected: str, seen: str) -> UsageError:
    return UsageError(f"{check}: expected {expected}, seen {seen}", check=check, expected=expected, seen=seen)
