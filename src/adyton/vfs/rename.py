"""Renaming in an encrypted mount: the new paths are sealed into the files first, then the host's names change.

A file verifies only under the path that is sealed into it. So a rename of a folder seals every file below it anew, and
one that fails half-way seals the old paths in again.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from adyton.errors import Error
from adyton.vfs import syscalls
from adyton.vfs.host_folder import os_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.roots.entry import Entry
    from adyton.roots.pinned_folder import PinnedFolder
    from adyton.vfs.host_folder import HostFolder
    from adyton.vfs.known_names import KnownNames
    from adyton.vfs.node import Node
    from adyton.vfs.open_files import OpenFiles
    from adyton.vfs.storage_watchdog import StorageWatchdog

KNOWN_FLAGS: Final = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE


class Folder(Protocol):
    """The calls that a rename makes to the tree."""

    def node(self, path: str) -> Node: ...
    def listing(self, path: str) -> list[tuple[str, int]]: ...
    def host_error(self, error: OSError, path: str) -> OSError: ...


def check_rename(new: str, source: Node, target: Node | None, flags: int) -> None:
    """Whether renameat2 allows this: raises the OSError that it would give (rename(2))."""
    if target is None:
        if flags & syscalls.RENAME_EXCHANGE:
            raise os_error(errno.ENOENT, new)
        return
    if flags & syscalls.RENAME_NOREPLACE:
        raise os_error(errno.EEXIST, new)
    if not flags & syscalls.RENAME_EXCHANGE and target.is_folder != source.is_folder:
        raise os_error(errno.EISDIR if target.is_folder else errno.ENOTDIR, new)


@dataclass(frozen=True, slots=True)
class Rename:
    """The parts of a mount that a rename changes, together."""

    folder: Folder
    host: HostFolder
    known: KnownNames
    files: OpenFiles
    watchdog: StorageWatchdog
    new_names_complete: bool
    """Whether a folder holds, once it was renamed, what is known to be in it and nothing else."""
    pinned: PinnedFolder | None = None

    def __call__(self, old: str, new: str, target: Node | None, flags: int) -> None:
        """Rename after `check_rename`. `target` is the node at `new` now, and `flags` are those of renameat2."""
        exchange = bool(flags & syscalls.RENAME_EXCHANGE)
        if target is not None and target.is_folder and not exchange:
            if self.folder.listing(new):
                raise os_error(errno.ENOTEMPTY, new)
            self.host.remove_leftover_logs(new)
        moves = [(old, new), (new, old)] if exchange else [(old, new)]
        pairs = [pair for begin, end in moves for pair in self._files_below(begin, end)]
        self.files.check_lengths(path for _, path in pairs)
        held = self.files.rebind(pairs)
        told: Mapping[str, Entry | None] = {}
        try:
            if self.pinned is not None:
                told = self.pinned.moving(moves, {path: (opened.file.root, opened.file.size) for opened, path in held})
            self._rename_on_host(old, new, target, flags)
        except (OSError, Error) as error:
            if self.pinned is not None:
                self.pinned.put_back(told)
            self.files.rebind_back(held)
            if isinstance(error, Error):
                raise
            raise self.folder.host_error(error, old) from error
        else:
            self._move_known(old, new, None if exchange else target, exchange=exchange)
            for opened, path in held:
                folder, name = self.host.split(path)
                self.watchdog.progress()
                opened.host.renamed(folder, name, self.host.name_of(path))
        finally:
            for opened, _ in held:
                self.files.give_up(opened)

    def _rename_on_host(self, old: str, new: str, target: Node | None, flags: int) -> None:
        old_folder, old_name = self.host.split(old)
        new_folder, new_name = self.host.split(new)
        if target is None and self.known.is_absent(new):
            flags &= ~syscalls.RENAME_NOREPLACE
        syscalls.rename(old_folder, old_name, new_folder, new_name, flags)

    def _move_known(self, old: str, new: str, replaced: Node | None, *, exchange: bool) -> None:
        if replaced is not None and replaced.opened is not None:
            replaced.opened.removed()
        self.host.forget(old)
        self.host.forget(new)
        moved = self.known.move(old, new, exchange=exchange, replaced=replaced is not None)
        for path, node in moved.items():
            node.complete = node.is_folder and self.new_names_complete  # every file below had its new path sealed in
            if node.opened is not None:
                node.opened.path = path

    def _files_below(self, old: str, new: str) -> list[tuple[str, str]]:
        """Every file at or below `old` with the path it gets when `old` becomes `new`."""
        if not self.folder.node(old).is_folder:
            return [(old, new)]
        found: list[tuple[str, str]] = []
        folders = [old]
        while folders:
            folder = folders.pop()
            for name, kind in self.folder.listing(folder):
                path = f"{folder}/{name}"
                if kind == stat.S_IFDIR:
                    self.folder.node(path)
                    folders.append(path)
                else:
                    found.append((path, new + path[len(old) :]))
        return found
