"""One protected file: read, write, truncate, flush, rebind, over a `Backing`.

This module decides what is in memory: which nodes are cached, and which are dirty. How they reach the host is
`commit`'s.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Protocol, Self

from adyton.errors import StorageFailed, UsageError
from adyton.pfile import committed_state, geometry
from adyton.pfile.backing import Backing
from adyton.pfile.bulk import Buffers, SegmentOpener
from adyton.pfile.commit import Announce, Change, CommittedFile
from adyton.pfile.data_cache import DataCache
from adyton.pfile.layout import (
    DATA_SLOTS,
    INLINE_BYTES,
    MAX_FILE_BYTES,
    NODE_BYTES,
    SLOT_BYTES,
    VERSIONS,
    Envelope,
    Metadata,
)
from adyton.pfile.nodes import NodeReader
from adyton.pfile.paths import path_bytes, path_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Buffer

    from adyton.values import Key128

CACHE_BYTES: Final = 16 * 2**20
"""The default bound of a handle's cache: three quarters tree nodes (enough for 1.1 GiB), one quarter data."""

_SEGMENTS_AT_ONCE: Final = 32


class NativeReader(Protocol):
    """Reads the host's nodes without this class. It may do so only while they hold everything that is to be read."""

    def allow(self, size: int, trees: dict[int, bytearray], fetch: Callable[[int], bytearray], /) -> None:
        """The host holds `size` bytes of plaintext. `trees` are verified tree nodes, and `fetch` gives the others."""

    def forbid(self) -> None:
        """It does not any more."""


class ProtectedFile:
    """An open protected file.  Make one with `create` or `open`. It may be used from several threads.

    >>> from adyton.pfile.backing import Memory
    >>> from adyton.values import Key128
    >>> key, host = Key128.generate(), Memory()
    >>> with ProtectedFile.create(host, key, path="out/result") as file:
    ...     file.write_at(0, b"hello")
    >>> with ProtectedFile.open(host, key, path="out/result") as file:
    ...     file.read_at(0, 100)
    b'hello'
    """

    def __init__(
        self,
        backing: Backing,
        key: Key128,
        *,
        version: int,
        metadata: Metadata,
        envelope: Envelope | None,
        writable: bool,
        cache_bytes: int,
        use_log: bool,
        power_safe: bool,
        host_nodes: int,
        recovered: bool = False,
    ) -> None:
        """Not for callers: see `create` and `open`."""
        self.recovered = recovered
        """Whether opening it undid a flush that had not ended."""
        self._backing = backing
        self._version = version
        self._writable = writable

        self._path = metadata.path
        self._size = metadata.size
        live = min(metadata.size, INLINE_BYTES)
        self._inline = bytearray(metadata.inline[:live].ljust(INLINE_BYTES, b"\0"))
        self._nodes = NodeReader(backing, metadata.root_slot, max_trees=max(8, cache_bytes // NODE_BYTES * 3 // 4))
        self._cache = DataCache(max_nodes=max(4, cache_bytes // NODE_BYTES // 4))
        self._metadata_dirty = False
        self._host = CommittedFile(
            backing,
            key,
            version=version,
            envelope=envelope,
            host_nodes=host_nodes,
            use_log=use_log,
            power_safe=power_safe,
        )
        self._kept_size = metadata.size  # the least size since the last commit: what lies below is on the host
        self._closed = False
        self._native_reader: NativeReader | None = None
        self._lock = threading.RLock()

    # ---------------------------------------------------------------- opening

    @classmethod
    def create(
        cls,
        backing: Backing,
        key: Key128,
        *,
        path: str,
        version: int = 2,
        cache_bytes: int = CACHE_BYTES,
        use_log: bool = True,
        power_safe: bool = True,
        announce: Announce | None = None,
    ) -> Self:
        """Make an empty protected file on `backing`, in place of what it held. Node 0 is written at once.

        `path` is normalised and sealed in.  `use_log=False` gives up crash safety of flushes and writes no
        recovery log. `power_safe=False` keeps the log and syncs only where asked. `announce` hears of every commit,
        the first one too.  The backing belongs to the file from here on, and is closed where this fails.
        """
        try:
            _check_version(version)
            metadata = Metadata(path_bytes(path), 0, bytes(SLOT_BYTES), b"")
            host_nodes = backing.size() // NODE_BYTES
            if host_nodes == 0:
                backing.truncate(0)
                backing.remove_log()
            file = cls(
                backing,
                key,
                version=version,
                metadata=metadata,
                envelope=None,
                writable=True,
                cache_bytes=cache_bytes,
                use_log=use_log,
                power_safe=power_safe,
                host_nodes=host_nodes,
            )
            file.announce_to(announce)
            file._metadata_dirty = True
            file.flush()
        except BaseException:
            backing.close()
            raise
        return file

    @classmethod
    def open(
        cls,
        backing: Backing,
        key: Key128,
        *,
        path: str | None = None,
        writable: bool = False,
        recover: bool = True,
        expected_root: bytes | None = None,
        cache_bytes: int = CACHE_BYTES,
        use_log: bool = True,
        power_safe: bool = True,
    ) -> Self:
        """Open and verify node 0. The backing belongs to the file from here on, and is closed where this fails.

        `path=None` leaves the sealed path unchecked.  A flush that did not end is undone from the recovery
        log: on the host if `writable`, otherwise in what is read. `recover=False` refuses such a file.
        `expected_root` refuses every committed state but that one.  Raises NotProtectedFile,
        UnsupportedVersion, IntegrityError, WrongPath, StorageFailed.
        """
        try:
            state = committed_state.committed_state(
                backing,
                key,
                path=None if path is None else path_bytes(path),
                writable=writable,
                recover=recover,
                expected_root=expected_root,
            )
        except BaseException:
            backing.close()
            raise
        return cls(
            state.backing,
            key,
            version=state.envelope.version,
            metadata=state.metadata,
            envelope=state.envelope,
            writable=writable,
            cache_bytes=cache_bytes,
            use_log=use_log,
            power_safe=power_safe,
            host_nodes=geometry.host_nodes(state.metadata.size),
            recovered=state.recovered,
        )

    # ---------------------------------------------------------------- facts

    @property
    def name(self) -> str:
        """The name of the backing."""
        return self._backing.name

    @property
    def size(self) -> int:
        """Plaintext bytes."""
        return self._size

    @property
    def path(self) -> str:
        """The path sealed into the file."""
        return path_text(self._path)

    @property
    def version(self) -> int:
        """The format's version, 1 or 2."""
        return self._version

    @property
    def writable(self) -> bool:
        """Whether it was opened to be written."""
        return self._writable

    @property
    def root(self) -> bytes:
        """48 bytes that identify the committed state. Every flush that writes changes them."""
        return self._host.root

    @property
    def dirty(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._cache.dirty or self._metadata_dirty)

    # ---------------------------------------------------------------- reading

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end. IntegrityError names the node that is wrong."""
        if offset >= INLINE_BYTES and 0 < size <= NODE_BYTES:
            return self._read_small(offset, size)
        _check_range(offset, size)
        buffer = bytearray(max(0, min(size, self._size - offset)))
        got = self.read_into(offset, buffer)
        return bytes(buffer) if got == len(buffer) else bytes(memoryview(buffer)[:got])

    def read_into(self, offset: int, target: Buffer) -> int:
        """Fill `target` from `offset`. Returns the number of bytes.

        Nodes are opened in `target` itself. Where one fails its check, its run is wiped and IntegrityError is raised.
        So no byte stays there that was not verified.
        """
        view = memoryview(target).cast("B")
        _check_range(offset, len(view))
        done = 0
        with self._lock:
            self._ready()
            end = min(offset + len(view), self._size)
            if offset < INLINE_BYTES and offset < end:
                done = min(end, INLINE_BYTES) - offset
                view[:done] = memoryview(self._inline)[offset : offset + done]
            if self._writable:
                while offset + done < end:
                    done += self._open(*self._plan(offset + done, end, view[done:]))
                return done
        # nobody writes: reading the host and opening need no lock
        while offset + done < end:
            with self._lock:
                self._ready()
                plan = self._plan(offset + done, end, view[done:])
            done += self._open(*plan)
        return done

    def _read_small(self, offset: int, size: int) -> bytes:
        """The same for at most one node's worth behind the inline area: it lies in one node or in two."""
        with self._lock:
            self._ready()
            end = min(offset + size, self._size)
            if end <= offset:
                return b""
            first, within = divmod(offset - INLINE_BYTES, NODE_BYTES)
            length = end - offset
            plain = self._cache.get(first)
            if within + length <= NODE_BYTES:
                if plain is None:
                    plain = self._read_nodes(first, 1)
                    self._cache.keep(first, plain)
                return bytes(memoryview(plain)[within : within + length])
            following = self._cache.get(first + 1)
            if plain is None and following is None and (first + 1) % DATA_SLOTS:
                both = self._read_nodes(first, 2)
                self._cache.keep(first, both[:NODE_BYTES])
                self._cache.keep(first + 1, both[NODE_BYTES:])
                return bytes(memoryview(both)[within : within + length])
            if plain is None:
                plain = self._read_nodes(first, 1)
                self._cache.keep(first, plain)
            if following is None:
                following = self._read_nodes(first + 1, 1)
                self._cache.keep(first + 1, following)
            return bytes(plain[within:] + following[: within + length - NODE_BYTES])

    def _read_nodes(self, first: int, count: int) -> bytearray:
        """Data nodes of one tree node from the host, with nothing behind the end of the file."""
        plain = bytearray(NODE_BYTES * count)
        self._nodes.open_run(first, self._nodes.slots(first, count), plain)
        live = self._size - INLINE_BYTES - NODE_BYTES * first
        if live < len(plain):
            plain[live:] = bytes(len(plain) - live)
        return plain

    def _plan(self, offset: int, end: int, view: memoryview) -> tuple[list[tuple[int, bytes]], int, memoryview]:
        """Copy out what is cached; the rest as runs (first data node, slots), with the offset and view they fill."""
        start = offset
        runs: list[tuple[int, bytes]] = []
        cached = bool(self._cache)
        for _ in range(_SEGMENTS_AT_ONCE):
            first = (offset - INLINE_BYTES) // NODE_BYTES
            last = min((end - 1 - INLINE_BYTES) // NODE_BYTES, first - first % DATA_SLOTS + DATA_SLOTS - 1)
            missing = first
            if cached:
                for data in range(first, last + 1):
                    plain = self._cache.get(data)
                    if plain is None:
                        continue
                    if missing < data:
                        runs.append((missing, self._nodes.slots(missing, data - missing)))
                    missing = data + 1
                    begin = INLINE_BYTES + NODE_BYTES * data
                    low, high = max(begin, start), min(begin + NODE_BYTES, end)
                    view[low - start : high - start] = memoryview(plain)[low - begin : high - begin]
            if missing <= last:
                runs.append((missing, self._nodes.slots(missing, last + 1 - missing)))
            offset = INLINE_BYTES + NODE_BYTES * (last + 1)
            if offset >= end:
                offset = end
                break
        return runs, start, view[: offset - start]

    def _open(self, runs: list[tuple[int, bytes]], start: int, view: memoryview) -> int:
        """Read, open and place the runs of a plan; how many bytes the plan covered."""
        end = start + len(view)
        for first, slots in runs:
            count = len(slots) // SLOT_BYTES
            begin = INLINE_BYTES + NODE_BYTES * first
            stop = begin + NODE_BYTES * count
            if begin >= start and stop <= end:
                self._nodes.open_run(first, slots, view[begin - start : stop - start])
                continue
            plain = bytearray(NODE_BYTES * count)
            self._nodes.open_run(first, slots, plain)
            if stop > self._size:
                plain[self._size - begin :] = bytes(stop - self._size)
            low, high = max(begin, start), min(stop, end)
            view[low - start : high - start] = memoryview(plain)[low - begin : high - begin]
            # a node that was used in part is kept: the next read may want the rest of it
            with self._lock:
                if stop > end:
                    self._cache.keep(first + count - 1, plain[-NODE_BYTES:])
                if begin < start and count > 1:
                    self._cache.keep(first, plain[:NODE_BYTES])
                elif begin < start:
                    self._cache.keep(first, plain)
        return len(view)

    def segments(self) -> SegmentOpener:
        """The committed content as segments, for several threads that read all of it."""
        with self._lock:
            self._ready()
            if self.dirty:
                raise UsageError(
                    "flush the file before reading its segments", check="unflushed writes", expected="none"
                )
            return SegmentOpener(self._backing, self._size, self._nodes.root_slot)

    def verify(self) -> None:
        """Verify every node that the committed content uses. Raises IntegrityError at the first that is wrong."""
        opener, buffers = self.segments(), Buffers()
        for number in range(opener.count):
            opener.open(number, buffers)

    # ---------------------------------------------------------------- writing

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`, a gap before it as zeros. It reaches the host at a flush, or when the cache fills."""
        view = memoryview(data).cast("B")
        end = offset + len(view)
        _check_range(offset, len(view))
        with self._lock:
            self._ready(writing=True)
            _check_size(end)
            if not view:
                return
            if self._cache.is_full:
                self._commit(sync=False)  # it failed before: no more is taken until it succeeds
            if offset > self._size:
                self._grow(offset)
            if offset < INLINE_BYTES:
                part = min(end, INLINE_BYTES) - offset
                self._inline[offset : offset + part] = view[:part]
                view = view[part:]
                offset += part
            self._metadata_dirty = True
            self._size = max(self._size, offset)
            while view:
                number, within = divmod(offset - INLINE_BYTES, NODE_BYTES)
                part = min(NODE_BYTES - within, len(view))
                if part == NODE_BYTES:
                    self._cache.replace(number, bytearray(view[:NODE_BYTES]))
                else:
                    self._to_change(number)[within : within + part] = view[:part]
                view = view[part:]
                offset += part
                if offset > self._size:
                    self._size = offset
                if self._cache.is_full:
                    self._commit(sync=False)

    def _to_change(self, data: int) -> bytearray:
        """The plaintext of a data node, now dirty. A node that the host does not have yet is zeros."""
        plain = self._cache.get(data)
        if plain is None:  # what lies behind the end is blanked: Gramine may leave old content there
            plain = self._read_nodes(data, 1) if data < geometry.data_nodes(self._kept_size) else bytearray(NODE_BYTES)
        self._cache.replace(data, plain)
        return plain

    def _blank_tail(self, data: int, plain: bytearray) -> None:
        """Zero what lies behind the end of the file."""
        live = max(0, self._size - geometry.first_offset(data))
        if live < NODE_BYTES:
            plain[live:] = bytes(NODE_BYTES - live)

    def _grow(self, size: int) -> None:
        """Extend with zeros; the format has no holes, so every new node is written, or on a failure none is kept."""
        before = self._size
        count = geometry.data_nodes(before)
        if count and (before - INLINE_BYTES) % NODE_BYTES:
            self._to_change(count - 1)  # with a blank tail, which now becomes content
        self._metadata_dirty = True
        try:
            for data in range(count, geometry.data_nodes(size)):
                self._cache.replace(data, bytearray(NODE_BYTES))
                self._size = min(size, geometry.first_offset(data + 1))
                if self._cache.is_full:
                    self._commit(sync=False)
        except StorageFailed:
            self._shrink(before)
            raise
        self._size = size

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, or extend with zeros. Like a write, it reaches the host at the next flush."""
        _check_range(size, 0)
        with self._lock:
            self._ready(writing=True)
            _check_size(size)
            if size > self._size:
                self._grow(size)
            elif size < self._size:
                self._shrink(size)

    def _shrink(self, size: int) -> None:
        count = geometry.data_nodes(size)
        last = self._to_change(count - 1) if count and (size - INLINE_BYTES) % NODE_BYTES else None
        self._metadata_dirty = True
        self._size = size
        self._kept_size = min(self._kept_size, size)
        if last is not None:
            self._blank_tail(count - 1, last)
        if size < INLINE_BYTES:
            self._inline[size:] = bytes(INLINE_BYTES - size)
        self._cache.forget_from(count)
        self._nodes.forget_from(geometry.tree_nodes(size))

    def rebind(self, path: str) -> None:
        """Seal another path into the file and flush. Call it before the host file is renamed, and `moved_to` after.

        The recovery log keeps the old node 0 until then, so that a file whose rename was not done opens
        under its old name.
        """
        raw = path_bytes(path)
        with self._lock:
            self._ready(writing=True)
            if raw == self._path:
                return
            self._commit(sync=False)
            before, self._path = self._path, raw
            self._metadata_dirty = True
            try:
                self._commit(sync=False, log_anyway=True)
            except BaseException:
                self._path = before
                raise

    def moved_to(self, place: Path) -> None:
        """Say that the host file now lies at `place`. Its recovery log at the old place is removed."""
        with self._lock:
            self._ready()
            self._host.moved_to(place)

    # ---------------------------------------------------------------- committing

    def announce_to(self, announce: Announce | None) -> None:
        """Have every commit told before it is made, or no longer."""
        with self._lock:
            self._host.announce = announce

    def use_native_reader(self, native_reader: NativeReader) -> None:
        """Let `native_reader` read whenever nothing waits to be flushed, but never while a method here runs."""
        with self._lock:
            self._native_reader = native_reader
            self._allow_native_reader()

    def _allow_native_reader(self) -> None:
        if self._native_reader is not None and not self.dirty and not self._nodes.pinned:
            self._native_reader.allow(self._size, self._nodes.shared_cache, self._nodes.tree)

    def flush(self, sync: bool = False) -> None:
        """Commit everything written so far. With `sync` it returns only once that is durable."""
        with self._lock:
            self._ready()
            if not self._writable:
                return
            self._commit(sync=sync)
            if sync:
                self._host.make_durable()
            self._allow_native_reader()

    def _commit(self, *, sync: bool, log_anyway: bool = False) -> None:
        """Commit what is dirty, if anything is."""
        if not self.dirty:
            return
        change = Change(self._path, self._size, self._kept_size, bytes(self._inline), self._cache.dirty)
        self._host.commit(change, self._nodes, log_anyway=log_anyway)
        self._settle()
        self._host.cut_off(sync=sync)

    def _settle(self) -> None:
        """The commit is on the host: make it the state in memory."""
        self._kept_size = self._size
        self._metadata_dirty = False
        self._cache.settle()

    # ---------------------------------------------------------------- closing

    def close(self) -> None:
        """Flush, remove the recovery log, close the backing. It is closed even if the flush fails."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._writable:
                    self._ready()
                    self._commit(sync=False)
                    self._host.remove_log()
            finally:
                self._closed = True
                if self._native_reader is not None:
                    self._native_reader.forbid()
                self._cache.clear()
                self._nodes.forget_from(0)
                self._host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, *, writing: bool = False) -> None:
        if self._closed:
            raise ValueError("the protected file is closed")
        if writing and not self._writable:
            raise UsageError(
                f"{self.name} is open for reading only",
                check="mode of the handle",
                expected="writable=True",
                seen="writable=False",
            )
        if writing and self._native_reader is not None:
            self._native_reader.forbid()
        self._host.finish_undoing()


def _check_version(version: int) -> None:
    if version not in VERSIONS:
        raise UsageError(f"version {version} is not known", check="version", expected="1 or 2", seen=version)


def _check_range(offset: int, size: int) -> None:
    if offset < 0 or size < 0:
        raise UsageError(f"offset {offset} and size {size} must not be negative", check="offset and size")


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UsageError(
            f"a protected file has at most {MAX_FILE_BYTES} bytes",
            check="size",
            expected=f"at most {MAX_FILE_BYTES}",
            seen=size,
        )
