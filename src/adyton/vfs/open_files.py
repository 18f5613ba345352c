"""The protected files of one encrypted mount that are open: opened once, shared by handles, remembered when closed.

A file whose last state is remembered is refused in any other state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Final

from adyton.errors import Error, UsageError
from adyton.pfile.file import ProtectedFile
from adyton.pfile.paths import path_bytes, path_text
from adyton.vfs.host_file import HostFile
from adyton.vfs.host_folder import HostFolder, os_error
from adyton.vfs.mount_lookup import join
from adyton.vfs.native_reader import open_native_reader
from adyton.vfs.node import FileState, Node, OpenFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from adyton.roots.pinned_folder import PinnedFolder
    from adyton.values import Key128
    from adyton.vfs.known_names import KnownNames
    from adyton.vfs.storage_watchdog import StorageWatchdog

_CACHE_BYTES: Final = ((2, 16 << 20), (10, 2 << 20), (50, 256 << 10), (1 << 30, 64 << 10))
"""Cache of one more open file, by how many are open already: 1000 open files stay below 64 MiB."""


class OpenFiles:
    """Opens, closes and re-seals the files of one mount."""

    def __init__(
        self,
        host: HostFolder,
        known: KnownNames,
        key: Key128,
        *,
        sealed_as: str,
        read_only: bool,
        power_safe: bool,
        new_node: Callable[[str, os.stat_result | None, int | None], Node],
        refusal: Callable[[OSError, str], OSError],
        event: Callable[[str], None],
        watchdog: StorageWatchdog,
        pinned: PinnedFolder | None = None,
    ) -> None:
        self._host = host
        self._known = known
        self._key = key
        self._sealed_as = sealed_as
        self._read_only = read_only
        self._power_safe = power_safe
        self._new_node = new_node
        self._refusal = refusal
        self._event = event
        self._watchdog = watchdog
        self._pinned = pinned
        self._announce = None if pinned is None else self._tell_pinned
        self._renaming = False
        self._taken: dict[str, tuple[int, bytes]] = {}
        """Size and root of each file that was there before this run, when the run first opened it. By sealed path."""
        self._count = 0

    def attach(self, path: str) -> OpenFile:
        """The open file at a path. If need be, it is opened and held against the state that is remembered."""
        known = self._known.get(path)
        if known is not None and known.is_folder:
            raise os_error(errno.EISDIR, path)
        if known is not None and known.opened is not None:
            return known.opened
        host = self._open_host(path, os.O_RDONLY if self._read_only else os.O_RDWR)
        found = os.fstat(host.fileno())
        file = ProtectedFile.open(
            host,
            self._key,
            path=self._sealed(path),
            writable=not self._read_only,
            expected_root=known.root if known is not None and known.root else None,
            cache_bytes=self._cache_bytes(),
            power_safe=self._power_safe,
        )
        file.announce_to(self._announce)
        node = known or self._new_node(path, found, None)
        if not node.root:
            node.found_root = file.root
        if node.found_root and not node.is_taken:
            node.is_taken = True
            self._taken[self._sealed(path)] = (file.size, node.found_root)
        return self._opened(path, file, host, node)

    def create(self, path: str, mode: int) -> OpenFile:
        """Create a file at a path where the run knows none."""
        exclusive = 0 if self._known.is_absent(path) else os.O_EXCL
        host = self._open_host(path, os.O_RDWR | os.O_CREAT | exclusive, mode)
        try:
            file = ProtectedFile.create(
                host,
                self._key,
                path=self._sealed(path),
                cache_bytes=self._cache_bytes(),
                power_safe=self._power_safe,
                announce=self._announce,
            )
        except Error:
            folder, name = self._host.split(path)
            os.unlink(name, dir_fd=folder)
            if self._pinned is not None:
                self._pinned.put_back({path: None})
            raise
        node = self._new_node(path, None, mode)
        node.mtime_ns = node.atime_ns = time.time_ns()
        return self._opened(path, file, host, node)

    def detach(self, opened: OpenFile) -> None:
        """Close the file once no handle is left. Its last state is remembered."""
        if opened.handles > 0:
            return
        opened.node.opened = None
        self._count -= 1
        try:
            opened.file.close()
        finally:
            with contextlib.suppress(Error):
                opened.node.root = opened.file.root
            opened.node.size = opened.file.size
            if self._pinned is not None and opened.path is not None and opened.node.root:
                self._pinned.writing(opened.path, opened.node.root, opened.node.size)  # where a commit failed

    def give_up(self, opened: OpenFile) -> None:
        """Take back one handle where a failure can only be told as an event."""
        opened.handles -= 1
        try:
            self.detach(opened)
        except Error as error:
            self._event(f"{opened.host.name}: {error.message}")

    def check_lengths(self, paths: Iterable[str]) -> None:
        """Refuse a path that is too long to be sealed into its file."""
        for path in paths:
            try:
                path_bytes(self._sealed(path))
            except UsageError as error:
                raise os_error(errno.ENAMETOOLONG, path) from error

    def rebind(self, files: Iterable[tuple[str, str]]) -> list[tuple[OpenFile, str]]:
        """Seal new paths into files, all or none. Each stays open, by a handle of its own, until the rename is done."""
        held: list[tuple[OpenFile, str]] = []
        try:
            for old, new in files:
                self._watchdog.progress()
                opened = self.attach(old)
                opened.handles += 1
                held.append((opened, new))
                self._seal_new_path(opened, new)
        except BaseException:
            self.rebind_back(held)
            for opened, _ in held:
                self.give_up(opened)
            raise
        return held

    def _seal_new_path(self, opened: OpenFile, new: str) -> None:
        """Seal a path into a file that is about to be renamed. A pinned folder hears of it with the rename."""
        if self._pinned is not None:
            opened.file.flush()
        self._renaming = True
        try:
            opened.file.rebind(self._sealed(new))
        finally:
            self._renaming = False

    def _tell_pinned(self, sealed: bytes, root: bytes, size: int) -> None:
        """A file is about to have another content."""
        if self._pinned is not None and not self._renaming:
            path = path_text(sealed)
            below = path[len(self._sealed_as) + 1 :] if self._sealed_as else path
            self._pinned.writing(below, root, size)

    def rebind_back(self, held: Iterable[tuple[OpenFile, str]]) -> None:
        """Seal the old paths in again, since the rename failed."""
        for opened, _ in held:
            try:
                opened.file.rebind(self._sealed(opened.path or ""))
            except Error as error:
                self._event(f"{opened.host.name}: {error.message}")

    def states(self) -> Iterator[FileState]:
        """What this run took, also where it removed or moved it since, and what it made and left."""
        taken = dict(self._taken)
        for path, node in self._known.named():
            sealed = self._sealed(path)
            if not node.root:
                continue
            _, found = taken.pop(sealed, (0, b""))
            if found or node.root != node.found_root:
                yield FileState(sealed, node.size, found, node.root)
        for sealed, (size, found) in taken.items():
            yield FileState(sealed, size, found, found)

    def close(self) -> None:
        """Close whatever is still open. Every file is flushed, and a failure is told as an event."""
        for node in self._known:
            if node.opened is not None:
                node.opened.handles = 0
                try:
                    self.detach(node.opened)
                except Error as error:
                    self._event(error.message)

    def _sealed(self, path: str) -> str:
        return self._sealed_as if not path else join(self._sealed_as, path)

    def _cache_bytes(self) -> int:
        return next(size for most, size in _CACHE_BYTES if self._count < most)

    def _open_host(self, path: str, flags: int, mode: int = 0) -> HostFile:
        folder, name = self._host.split(path)
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, (mode | 0o600) & 0o777, dir_fd=folder)
        except OSError as error:
            raise self._refusal(error, path) from error
        return HostFile(fd, os.dup(folder), name, self._host.name_of(path), self._watchdog)

    def _opened(self, path: str, file: ProtectedFile, host: HostFile, node: Node) -> OpenFile:
        if node.size > file.size:
            node.size_before_enospc = node.size
        node.size = file.size
        node.root = file.root
        native_reader = None if node.size_before_enospc > file.size else open_native_reader(host.fileno())
        if native_reader is not None:
            file.use_native_reader(native_reader)
        node.opened = OpenFile(file, host, node, path, native_reader)
        self._count += 1
        return node.opened
