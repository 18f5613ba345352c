"""One protected file: read, write, truncate, flush, rebind, over a `Backing`.

This module alone decides which nodes are written, and when.  A flush is one commit:

1.  what the nodes to be overwritten hold goes to the recovery log                              [sync]
2.  node 0 is written again with the pending flag set (version 2)                               [sync]
3.  dirty data nodes, then the tree nodes above them, children first, each under a new key      [sync]
4.  node 0 under a new nonce: this is the commit                                  [sync if asked for]
5.  what the file no longer reaches is cut off

The syncs make the order hold over a power cut.  They are left out for a file that was never synced and so
has nothing to lose, and with `power_safe=False`; the order then holds when the process is killed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from adyton.errors import Error, IntegrityError, StorageFailed, UsageError
from adyton.pfile import committed_state, geometry, recovery, seal
from adyton.pfile.backing import Backing, read_at
from adyton.pfile.bulk import Buffers, SegmentOpener
from adyton.pfile.layout import (
    DATA_SLOTS,
    FLAGS_AT,
    INLINE_BYTES,
    MAX_FILE_BYTES,
    NODE_BYTES,
    PENDING,
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

_Undoing = Literal["nothing", "replay", "cut", "seal again"]


class Shortcut(Protocol):
    """A way to the host's nodes past this class, for readers: open only while they hold all that is to be read."""

    def allow(self, size: int, trees: dict[int, bytearray], fetch: Callable[[int], bytearray], /) -> None:
        """The host holds `size` bytes of plaintext; `trees` are verified tree nodes of it, `fetch` gives the others."""

    def forbid(self) -> None:
        """It does not any more."""


class ProtectedFile:
    """An open protected file.  Make one with `create` or `open`; safe to use from several threads.

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
        self._key = key
        self._version = version
        self._writable = writable
        self._use_log = use_log
        self._power_safe = power_safe

        self._path = metadata.path
        self._size = metadata.size
        live = min(metadata.size, INLINE_BYTES)
        self._inline = bytearray(metadata.inline[:live].ljust(INLINE_BYTES, b"\0"))
        self._nodes = NodeReader(backing, metadata.root_slot, max_trees=max(8, cache_bytes // NODE_BYTES * 3 // 4))
        self._data: OrderedDict[int, bytearray] = OrderedDict()
        self._max_data = max(4, cache_bytes // NODE_BYTES // 4)
        self._dirty: dict[int, bytearray] = {}
        self._metadata_dirty = False

        self._envelope = envelope  # of the committed state
        self._host_nodes = host_nodes  # of the committed state
        self._kept_size = metadata.size  # the least size since the last commit: what lies below is on the host
        self._durable = host_nodes > 0  # the host holds something that a power cut must not take
        self._unsynced = False  # something was written since the last sync
        self._undoing: _Undoing = "nothing"  # what a flush that failed left to be done
        self._torn = False  # a flush failed half-way and cannot be undone: the next one mends it
        self._log: Backing | None = None
        self._closed = False
        self._shortcut: Shortcut | None = None
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
    ) -> Self:
        """Make an empty protected file on `backing`, in place of what it held; node 0 is written at once.

        `path` is normalised and sealed in.  `use_log=False` gives up crash safety of flushes and writes no
        recovery log; `power_safe=False` keeps the log and syncs only where asked.  The backing belongs to
        the file from here on, and is closed where this fails.
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
        """Open and verify node 0; the backing belongs to the file from here on, and is closed where this fails.

        `path=None` leaves the sealed path unchecked.  A flush that did not end is undone from the recovery
        log: on the host if `writable`, otherwise in what is read; `recover=False` refuses such a file.
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
        """What the backing is called."""
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
        """48 bytes that identify the committed state; every flush that writes changes them."""
        if self._envelope is None:
            raise StorageFailed(f"{self.name} was never flushed", check="root of the file")
        return self._envelope.nonce + self._envelope.tag

    @property
    def dirty(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._dirty or self._metadata_dirty)

    # ---------------------------------------------------------------- reading

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end; IntegrityError names the node that is wrong."""
        if offset >= INLINE_BYTES and 0 < size <= NODE_BYTES:
            return self._read_small(offset, size)
        _check_range(offset, size)
        buffer = bytearray(max(0, min(size, self._size - offset)))
        got = self.read_into(offset, buffer)
        return bytes(buffer) if got == len(buffer) else bytes(memoryview(buffer)[:got])

    def read_into(self, offset: int, target: Buffer) -> int:
        """Fill `target` from `offset`; how many bytes there were.

        Nodes are opened in `target` itself; where one fails its check, its run is wiped and IntegrityError
        raised, so no byte stays there that was not verified.
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
            plain = self._cached(first)
            if within + length <= NODE_BYTES:
                if plain is None:
                    plain = self._read_nodes(first, 1)
                    self._keep(first, plain)
                return bytes(memoryview(plain)[within : within + length])
            following = self._cached(first + 1)
            if plain is None and following is None and (first + 1) % DATA_SLOTS:
                both = self._read_nodes(first, 2)
                self._keep(first, both[:NODE_BYTES])
                self._keep(first + 1, both[NODE_BYTES:])
                return bytes(memoryview(both)[within : within + length])
            if plain is None:
                plain = self._read_nodes(first, 1)
                self._keep(first, plain)
            if following is None:
                following = self._read_nodes(first + 1, 1)
                self._keep(first + 1, following)
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
        cached = bool(self._dirty or self._data)
        for _ in range(_SEGMENTS_AT_ONCE):
            first = (offset - INLINE_BYTES) // NODE_BYTES
            last = min((end - 1 - INLINE_BYTES) // NODE_BYTES, first - first % DATA_SLOTS + DATA_SLOTS - 1)
            missing = first
            if cached:
                for data in range(first, last + 1):
                    plain = self._cached(data)
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

    def _cached(self, data: int) -> bytearray | None:
        plain = self._dirty.get(data)
        if plain is None:
            plain = self._data.get(data)
            if plain is not None:
                self._data.move_to_end(data)
        return plain

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
                    self._keep(first + count - 1, plain[-NODE_BYTES:])
                if begin < start and count > 1:
                    self._keep(first, plain[:NODE_BYTES])
                elif begin < start:
                    self._keep(first, plain)
        return len(view)

    def _keep(self, data: int, plain: bytearray) -> None:
        self._data[data] = plain
        if len(self._data) > self._max_data:
            self._data.popitem(last=False)

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
        """Verify every node that the committed content uses; raises IntegrityError at the first that is wrong."""
        opener, buffers = self.segments(), Buffers()
        for number in range(opener.count):
            opener.open(number, buffers)

    # ---------------------------------------------------------------- writing

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`, a gap before it as zeros; it reaches the host at a flush, or when the cache fills."""
        view = memoryview(data).cast("B")
        end = offset + len(view)
        _check_range(offset, len(view))
        with self._lock:
            self._ready(writing=True)
            _check_size(end)
            if not view:
                return
            if len(self._dirty) >= self._max_data:
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
                    self._data.pop(number, None)
                    self._dirty[number] = bytearray(view[:NODE_BYTES])
                else:
                    self._to_change(number)[within : within + part] = view[:part]
                view = view[part:]
                offset += part
                if offset > self._size:
                    self._size = offset
                if len(self._dirty) >= self._max_data:
                    self._commit(sync=False)

    def _to_change(self, data: int) -> bytearray:
        """The plaintext of a data node, now dirty; a node that the host does not have yet is zeros."""
        plain = self._dirty.get(data)
        if plain is None:
            plain = self._data.pop(data, None)
            if plain is None:  # what lies behind the end is blanked: Gramine may leave old content there
                plain = (
                    self._read_nodes(data, 1) if data < geometry.data_nodes(self._kept_size) else bytearray(NODE_BYTES)
                )
            self._dirty[data] = plain
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
                self._dirty[data] = bytearray(NODE_BYTES)
                self._size = min(size, geometry.first_offset(data + 1))
                if len(self._dirty) >= self._max_data:
                    self._commit(sync=False)
        except StorageFailed:
            self._shrink(before)
            raise
        self._size = size

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, or extend with zeros; like a write, it reaches the host at the next flush."""
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
        for kept in (self._dirty, self._data):
            for data in [each for each in kept if each >= count]:
                del kept[data]
        self._nodes.forget_from(geometry.tree_nodes(size))

    def rebind(self, path: str) -> None:
        """Seal another path into the file and flush; call it before the host file is renamed, `moved_to` after.

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
        """Say that the host file now lies at `place`; its recovery log at the old one goes."""
        with self._lock:
            self._ready()
            if self._log is not None:
                self._log.close()
                self._log = None
            self._backing.moved_to(place, sync=self._power_safe)

    # ---------------------------------------------------------------- committing

    def use_shortcut(self, shortcut: Shortcut) -> None:
        """Open `shortcut` whenever nothing waits to be flushed; it must not be used while a method here runs."""
        with self._lock:
            self._shortcut = shortcut
            self._open_shortcut()

    def _open_shortcut(self) -> None:
        if self._shortcut is not None and not self.dirty and not self._nodes.pinned:
            self._shortcut.allow(self._size, self._nodes.known, self._nodes.tree)

    def flush(self, sync: bool = False) -> None:
        """Commit everything written so far; `sync` returns only once it is durable."""
        with self._lock:
            self._ready()
            if not self._writable:
                return
            self._commit(sync=sync)
            if sync and (self._unsynced or not self._durable):
                self._sync()
                self._durable = True
            self._open_shortcut()

    def _commit(self, *, sync: bool, log_anyway: bool = False) -> None:
        """Steps 1 to 5 of a flush, if anything is dirty."""
        if not self.dirty:
            return
        self._check_host()
        data = sorted(self._dirty)
        numbers = _with_ancestors({number // DATA_SLOTS for number in data} | self._nodes.pinned.keys())
        touched = [*map(geometry.physical_data, data), *map(geometry.physical_tree, numbers)]
        overwritten = [place for place in touched if place < self._host_nodes]
        careful = self._power_safe and self._durable
        trees = {number: self._tree_to_change(number) for number in numbers}

        undoing: _Undoing = "seal again" if overwritten or self._envelope is None else "cut"
        if self._use_log and self._host_nodes > 0 and (overwritten or careful or log_anyway):
            undoing = self._begin(overwritten, careful=careful, flag=bool(touched), otherwise=undoing)
        self._undoing = undoing
        try:
            self._seal_data(data, trees)
            root_slot = self._seal_trees(numbers, trees)
            if careful and touched:
                self._backing.sync()
            envelope = self._seal_node_0(root_slot)
        except BaseException:
            if undoing == "seal again":
                self._nodes.pin(trees)
                self._torn = True
            with contextlib.suppress(Error):  # then the next call tries again
                self._undo()
            raise
        self._settle(envelope, root_slot, trees)
        if self._backing.size() > NODE_BYTES * self._host_nodes:
            if careful or sync:
                self._sync()
            with contextlib.suppress(StorageFailed):  # the file is whole with some nodes too many
                self._backing.truncate(NODE_BYTES * self._host_nodes)

    def _check_host(self) -> None:
        """Refuse to write into a host file that is no longer the one this handle knows."""
        if self._envelope is None or self._torn:
            return
        seen = committed_state.read_envelope(self._backing)
        if (seen.nonce, seen.tag, seen.version) != (self._envelope.nonce, self._envelope.tag, self._envelope.version):
            raise IntegrityError(
                f"{self.name} changed on the host while it was open",
                check="node 0 on the host",
                expected=self.root.hex(),
                seen=(seen.nonce + seen.tag).hex(),
                remedy="another writer used it, or another version was put in its place; open it again",
            )

    def _begin(self, overwritten: list[int], *, careful: bool, flag: bool, otherwise: _Undoing) -> _Undoing:
        """Steps 1 and 2: the log and the pending flag; how to undo, which is `otherwise` where no log is possible."""
        if careful and self._unsynced:
            self._sync()  # the log still leads back from what was not synced
        if self._log is None:
            self._log = self._backing.open_log(create=True)
        if self._log is None:
            return otherwise
        recovery.write_log(self._log, self._backing, overwritten)
        if careful:
            self._log.sync()
        if flag and self._envelope is not None and self._version != 1:
            self._undoing = "replay"
            node_0 = bytearray(read_at(self._backing, 0, NODE_BYTES))
            node_0[FLAGS_AT] |= PENDING
            self._backing.write_at(0, node_0)
            if careful:
                self._backing.sync()
        return "replay"

    def _tree_to_change(self, number: int) -> bytearray:
        if number < geometry.tree_nodes(self._kept_size):
            return bytearray(self._nodes.tree(number))
        return bytearray(NODE_BYTES)

    def _seal_data(self, data: list[int], trees: dict[int, bytearray]) -> None:
        """Seal and write the dirty data nodes, in runs; their slots go to `trees`."""
        at = 0
        while at < len(data):
            first = data[at]
            room = min(DATA_SLOTS - first % DATA_SLOTS, len(data) - at)
            count = 1
            while count < room and data[at + count] == first + count:
                count += 1
            plain = b"".join([self._dirty[number] for number in data[at : at + count]])
            cipher = bytearray(len(plain))
            slots = bytearray(SLOT_BYTES * count)
            seal.seal_nodes(plain, cipher, slots)
            self._backing.write_at(geometry.physical_data(first) * NODE_BYTES, cipher)
            slot_at = geometry.data_slot_at(first)
            trees[first // DATA_SLOTS][slot_at : slot_at + len(slots)] = slots
            at += count

    def _seal_trees(self, numbers: list[int], trees: dict[int, bytearray]) -> bytes:
        """Seal and write tree nodes, children first; the slot of the root, which is zeros where there is none."""
        root_slot = self._nodes.root_slot if self._size > INLINE_BYTES else bytes(SLOT_BYTES)
        for number in reversed(numbers):
            plain = trees[number]
            geometry.zero_dangling(plain, number, self._size)
            cipher = bytearray(NODE_BYTES)
            slot = bytearray(SLOT_BYTES)
            seal.seal_nodes(plain, cipher, slot)
            self._backing.write_at(geometry.physical_tree(number) * NODE_BYTES, cipher)
            if number == 0:
                root_slot = bytes(slot)
            else:
                at = geometry.child_slot_at(number)
                trees[geometry.parent(number)][at : at + SLOT_BYTES] = slot
        return root_slot

    def _seal_node_0(self, root_slot: bytes) -> Envelope:
        metadata = Metadata(self._path, self._size, root_slot, bytes(self._inline))
        envelope = seal.seal_metadata(self._key, self._version, metadata.to_bytes())
        self._backing.write_at(0, envelope.to_bytes())
        return envelope

    def _settle(self, envelope: Envelope, root_slot: bytes, trees: dict[int, bytearray]) -> None:
        """The commit is on the host: make it the state in memory."""
        self._undoing = "nothing"
        self._torn = False
        self._unsynced = True
        self._envelope = envelope
        self._host_nodes = geometry.host_nodes(self._size)
        self._kept_size = self._size
        self._metadata_dirty = False
        self._nodes.root_slot = root_slot
        self._nodes.pinned = {}
        for number, plain in trees.items():
            self._nodes.keep(number, plain)
        self._data.update(self._dirty)
        self._dirty = {}
        while len(self._data) > self._max_data:
            self._data.popitem(last=False)

    def _sync(self) -> None:
        self._backing.sync()
        self._unsynced = False

    def _undo(self) -> None:
        """Put back on the host what a failed flush overwrote; what was to be flushed stays dirty."""
        if self._undoing == "replay" and self._log is not None:
            undo = recovery.parse_log(self._log)
            if undo is None:
                raise StorageFailed(
                    f"the recovery log of {self.name} was altered",
                    check="recovery log",
                    expected="the records that this handle wrote",
                    seen="others",
                    remedy="somebody else wrote to it; get the file again from its owner",
                )
            recovery.replay(self._log, undo, self._backing, nodes=self._host_nodes)
        elif self._undoing == "cut" and self._envelope is not None:
            self._backing.write_at(0, self._envelope.to_bytes())
            self._backing.truncate(NODE_BYTES * self._host_nodes)
        self._undoing = "nothing"

    # ---------------------------------------------------------------- closing

    def close(self) -> None:
        """Flush, remove the recovery log, close the backing; which is closed even where the flush fails."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._writable:
                    self._ready()
                    self._commit(sync=False)
                    if self._log is not None:
                        if self._power_safe and self._durable and self._unsynced:
                            self._sync()
                        self._log.close()
                        self._log = None
                        self._backing.remove_log()
            finally:
                self._closed = True
                if self._shortcut is not None:
                    self._shortcut.forbid()
                self._dirty.clear()
                self._data.clear()
                self._nodes.forget_from(0)
                if self._log is not None:
                    self._log.close()
                self._backing.close()

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
        if writing and self._shortcut is not None:
            self._shortcut.forbid()
        if self._undoing != "nothing":
            self._undo()


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


def _with_ancestors(numbers: set[int]) -> list[int]:
    found = set(numbers)
    for number in numbers:
        up = number
        while up:
            up = geometry.parent(up)
            if up in found:
                break
            found.add(up)
    return sorted(found)
