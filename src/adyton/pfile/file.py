"""One protected file: read, write, truncate, flush, rebind, over a `Backing`.

This module alone decides when nodes are written and in which order.  A flush is one commit:

1.  old content of every node to be overwritten goes to the recovery log                  [sync]
2.  node 0 is written again with the pending flag (version 2)                              [sync]
3.  dirty data nodes, then their tree nodes, each under new keys                           [sync]
4.  node 0 under a new nonce: this is the commit                            [sync where asked for]
5.  what the file no longer reaches is cut off

The syncs in brackets make the order hold over a power cut; without them (`power_safe=False`, or a file
that was never synced and so has nothing to lose) it holds when the process is killed.
"""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Self

from adyton.errors import Error, IntegrityError, NotProtectedFile, StorageFailed, UsageError, WrongPath
from adyton.pfile import recovery, seal, tree
from adyton.pfile.backing import Backing, Overlay, read_at
from adyton.pfile.bulk import SegmentOpener, altered
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
    parse_envelope,
)
from adyton.pfile.paths import path_bytes, path_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Buffer

    from adyton.values import Key128

CACHE_BYTES: Final = 16 * 2**20
"""The default bound of one handle's cache: three quarters tree nodes (enough for 1.1 GiB), one quarter data."""

_SEGMENTS_AT_ONCE: Final = 32
_ZERO_NODE: Final = bytes(NODE_BYTES)


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
        durable: bool,
    ) -> None:
        self._backing = backing
        self._key = key
        self._version = version
        self._path = metadata.path
        self._size = metadata.size
        self._root_slot = metadata.root_slot
        live = min(metadata.size, INLINE_BYTES)
        self._inline = bytearray(metadata.inline[:live].ljust(INLINE_BYTES, b"\0"))
        self._envelope = envelope
        self._writable = writable
        self._use_log = use_log
        self._power_safe = power_safe

        self._committed_nodes = tree.host_nodes(metadata.size)
        self._kept_size = metadata.size  # the least size since the last commit: nodes below are on the host
        self._metadata_dirty = False
        self._dirty: dict[int, bytearray] = {}
        self._data: OrderedDict[int, bytearray] = OrderedDict()
        self._trees: OrderedDict[int, bytearray] = OrderedDict()
        self._stuck_trees: dict[int, bytearray] = {}
        self._max_data = max(4, cache_bytes // NODE_BYTES // 4)
        self._max_trees = max(8, cache_bytes // NODE_BYTES * 3 // 4)

        self._durable = durable  # the host holds a state that a power cut must not take
        self._unsynced = False  # something was written since the last sync
        self._interrupted = False  # a flush failed half-way, and its log must be replayed
        self._log: Backing | None = None
        self._closed = False
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
        """Make an empty protected file on `backing`, replacing what it held; node 0 is written at once.

        `path` is normalised and sealed in.  `use_log=False` gives up crash safety between flushes and
        writes no recovery log; `power_safe=False` keeps the log but syncs only where asked.
        """
        if version not in VERSIONS:
            raise UsageError(f"version {version} is not known", check="version", expected="1 or 2", seen=version)
        old = backing.size()
        file = cls(
            backing,
            key,
            version=version,
            metadata=Metadata(path_bytes(path), 0, bytes(SLOT_BYTES), b""),
            envelope=None,
            writable=True,
            cache_bytes=cache_bytes,
            use_log=use_log,
            power_safe=power_safe,
            durable=old > 0,
        )
        file._metadata_dirty = True
        try:
            file._committed_nodes = old // NODE_BYTES
            if old == 0:
                backing.remove_log()
            file.flush()
        except BaseException:
            file._closed = True
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
        """Open and verify node 0; the backing then belongs to the file, and is closed where opening fails.

        `path=None` leaves the sealed path unchecked.  A flush that did not finish is undone from the
        recovery log: on the host if `writable`, otherwise only in what is read; `recover=False` refuses
        it.  `expected_root` refuses any other committed state than that one.  Raises NotProtectedFile,
        UnsupportedVersion, IntegrityError, WrongPath, StorageFailed.
        """
        expected = None if path is None else path_bytes(path)
        try:
            view, envelope, metadata = _committed_state(
                backing, key, expected=expected, writable=writable, recover=recover
            )
            _check_state(view, envelope, metadata, expected, expected_root)
        except BaseException:
            backing.close()
            raise
        return cls(
            view,
            key,
            version=envelope.version,
            metadata=metadata,
            envelope=envelope,
            writable=writable,
            cache_bytes=cache_bytes,
            use_log=use_log,
            power_safe=power_safe,
            durable=True,
        )

    # ---------------------------------------------------------------- facts

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
    def root(self) -> bytes:
        """48 bytes that identify the committed state; they change with every flush that writes."""
        if self._envelope is None:
            raise StorageFailed(f"{self._backing.name} was never flushed", check="root of the file")
        return self._envelope.nonce + self._envelope.tag

    @property
    def dirty(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._dirty or self._metadata_dirty)

    # ---------------------------------------------------------------- reading

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end; IntegrityError names the node that is wrong."""
        _check_range(offset, size)
        buffer = bytearray(max(0, min(size, self._size - offset)))
        got = self.read_into(offset, buffer)
        return bytes(buffer) if got == len(buffer) else bytes(buffer[:got])

    def read_into(self, offset: int, target: Buffer) -> int:
        """Fill `target` from `offset`; how many bytes there were.  What fails its check is wiped, and raises."""
        view = memoryview(target).cast("B")
        _check_range(offset, len(view))
        done = 0
        with self._lock:
            self._ready()
            end = min(offset + len(view), self._size)
            if offset < min(end, INLINE_BYTES):
                done = min(end, INLINE_BYTES) - offset
                view[:done] = self._inline[offset : offset + done]
        while offset + done < end:
            with self._lock:
                self._ready()
                runs: list[tuple[int, int, bytes]] = []
                planned = self._plan(offset + done, end, view[done:], runs)
                if self._writable:
                    self._carry_out(runs, offset + done, view[done : done + planned])
            if not self._writable:
                self._carry_out(runs, offset + done, view[done : done + planned])
            done += planned
        return max(done, 0)

    def _plan(self, offset: int, end: int, view: memoryview, runs: list[tuple[int, int, bytes]]) -> int:
        """Copy out what is cached; list the rest as runs (first data node, count, their slots); bytes covered."""
        start = offset
        for _ in range(_SEGMENTS_AT_ONCE):
            if offset >= end:
                break
            first = (offset - INLINE_BYTES) // NODE_BYTES
            number = first // DATA_SLOTS
            last = min((end - 1 - INLINE_BYTES) // NODE_BYTES, DATA_SLOTS * number + DATA_SLOTS - 1)
            missing = -1
            for data in range(first, last + 1):
                plain = self._dirty.get(data)
                if plain is None:
                    plain = self._data.get(data)
                    if plain is None:
                        if missing < 0:
                            missing = data
                        continue
                    self._data.move_to_end(data)
                if missing >= 0:
                    runs.append((missing, data - missing, self._slots(number, missing, data - missing)))
                    missing = -1
                _copy_out(plain, data, start, end, view)
            if missing >= 0:
                count = last + 1 - missing
                runs.append((missing, count, self._slots(number, missing, count)))
            offset = tree.first_offset(last + 1)
        return min(offset, end) - start

    def _slots(self, number: int, first: int, count: int) -> bytes:
        at = tree.data_slot_at(first)
        return bytes(self._tree(number)[at : at + SLOT_BYTES * count])

    def _carry_out(self, runs: list[tuple[int, int, bytes]], start: int, view: memoryview) -> None:
        """Read, open and place the runs of a plan whose view starts at plaintext offset `start`."""
        end = start + len(view)
        for first, count, slots in runs:
            begin = tree.first_offset(first)
            stop = begin + NODE_BYTES * count
            if begin >= start and stop <= end:
                self._open_run(first, slots, view[begin - start : stop - start])
                continue
            nodes = bytearray(NODE_BYTES * count)
            self._open_run(first, slots, nodes)
            if stop > self._size:
                nodes[self._size - begin :] = bytes(stop - self._size)
            low, high = max(begin, start), min(stop, end)
            view[low - start : high - start] = memoryview(nodes)[low - begin : high - begin]
            with self._lock:
                self._remember(first, nodes, begin < start)
                if count > 1:
                    self._remember(first + count - 1, nodes[-NODE_BYTES:], stop > end)

    def _remember(self, data: int, nodes: bytearray, partly_used: bool) -> None:
        """Keep a data node that was used in part, as the next read may want the rest of it."""
        if partly_used or len(nodes) == NODE_BYTES:
            self._data[data] = nodes if len(nodes) == NODE_BYTES else nodes[:NODE_BYTES]
            if len(self._data) > self._max_data:
                self._data.popitem(last=False)

    def _open_run(self, first: int, slots: bytes, target: Buffer) -> None:
        """Read a run of data nodes of one tree node straight into `target` and open it in place."""
        view = memoryview(target)
        place = tree.physical_data(first)
        got = self._backing.read_into(place * NODE_BYTES, view)
        bad = got // NODE_BYTES
        if got == view.nbytes:
            bad = seal.open_nodes(view, slots, view)
            if bad < 0:
                return
        view[:] = bytes(view.nbytes)
        raise altered(self._backing.name, place + bad, f"data node {first + bad}", cut=got != view.nbytes)

    def _tree(self, number: int) -> bytearray:
        """The verified plaintext of a tree node, from the cache or by the way from the root; not to be changed."""
        plain = self._stuck_trees.get(number)
        if plain is not None:
            return plain
        plain = self._trees.get(number)
        if plain is not None:
            self._trees.move_to_end(number)
            return plain
        if number == 0:
            slot = self._root_slot
        else:
            at = tree.child_slot_at(number)
            slot = bytes(self._tree(tree.parent(number))[at : at + SLOT_BYTES])
        plain = bytearray(NODE_BYTES)
        place = tree.physical_tree(number)
        got = self._backing.read_into(place * NODE_BYTES, plain)
        if got != NODE_BYTES or seal.open_nodes(plain, slot, plain) >= 0:
            raise altered(self._backing.name, place, f"tree node {number}", cut=got != NODE_BYTES)
        self._keep_tree(number, plain)
        return plain

    def _keep_tree(self, number: int, plain: bytearray) -> None:
        self._trees[number] = plain
        self._trees.move_to_end(number)
        if len(self._trees) > self._max_trees:
            self._trees.popitem(last=False)

    def check_nodes(self, places: Iterable[int]) -> None:
        """Verify these nodes of the host file (their places, 0 left out), each against its parent."""
        with self._lock:
            self._ready()
            count = tree.host_nodes(self._size)
            for place in places:
                if not 0 < place < count:
                    continue
                number, within = divmod(place - 1, tree.SEGMENT_NODES)
                if within == 0:
                    self._tree(number)
                    continue
                data = DATA_SLOTS * number + within - 1
                self._open_run(data, self._slots(number, data, 1), bytearray(NODE_BYTES))

    def segments(self) -> SegmentOpener:
        """The committed content as segments, for reading the whole file with several threads."""
        with self._lock:
            self._ready()
            if self.dirty:
                raise UsageError(
                    "flush the file before reading its segments", check="unflushed writes", expected="none"
                )
            return SegmentOpener(self._backing, self._size, self._root_slot)

    def verify(self) -> None:
        """Verify every node of the file; raises IntegrityError at the first that is wrong."""
        buffer = bytearray(_SEGMENTS_AT_ONCE * DATA_SLOTS * NODE_BYTES)
        offset = INLINE_BYTES
        while offset < self._size:
            offset += self.read_into(offset, buffer)

    # ---------------------------------------------------------------- writing

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`, a gap before it as zeros; it reaches the host at a flush, or when the cache fills."""
        view = memoryview(data).cast("B")
        _check_range(offset, len(view))
        with self._lock:
            self._ready(writing=True)
            if offset + len(view) > MAX_FILE_BYTES:
                raise UsageError(f"a protected file has at most {MAX_FILE_BYTES} bytes", check="offset", seen=offset)
            if not view:
                return
            if offset > self._size:
                self._grow(offset)
            end = offset + len(view)
            if offset < INLINE_BYTES:
                part = min(end, INLINE_BYTES) - offset
                self._inline[offset : offset + part] = view[:part]
                self._metadata_dirty = True
                view = view[part:]
                offset += part
                self._size = max(self._size, offset)
            while view:
                number, within = divmod(offset - INLINE_BYTES, NODE_BYTES)
                part = min(NODE_BYTES - within, len(view))
                if part == NODE_BYTES:
                    self._data.pop(number, None)
                    self._dirty[number] = bytearray(view[:NODE_BYTES])
                else:
                    self._writable_node(number)[within : within + part] = view[:part]
                view = view[part:]
                offset += part
                if offset > self._size:
                    self._size = offset
                if len(self._dirty) >= self._max_data:
                    self._commit(sync=False)

    def _writable_node(self, number: int) -> bytearray:
        """A data node that may be changed, and will be sealed at the next flush."""
        plain = self._dirty.get(number)
        if plain is None:
            plain = self._data.pop(number, None)
            if plain is None:
                plain = bytearray(NODE_BYTES)
                if number < tree.data_nodes(self._kept_size):
                    self._open_run(number, self._slots(number // DATA_SLOTS, number, 1), plain)
                    self._blank_tail(number, plain)
            self._dirty[number] = plain
        return plain

    def _blank_tail(self, number: int, plain: bytearray) -> None:
        """Zero what lies behind the end of the file in its last node: Gramine may leave old content there."""
        live = self._size - tree.first_offset(number)
        if live < NODE_BYTES:
            plain[max(live, 0) :] = bytes(NODE_BYTES - max(live, 0))

    def _grow(self, size: int) -> None:
        """Extend with zeros, every new node written out as the format demands."""
        count = tree.data_nodes(self._size)
        if count and (self._size - INLINE_BYTES) % NODE_BYTES:
            self._writable_node(count - 1)  # so that nothing old lies between the old end and the new one
        for number in range(count, tree.data_nodes(size)):
            self._dirty[number] = bytearray(NODE_BYTES)
            if len(self._dirty) >= self._max_data:
                self._size = tree.first_offset(number + 1)
                if self._size < size:
                    self._commit(sync=False)
        self._size = size
        self._metadata_dirty = True

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, or extend with zeros; like a write, it reaches the host at the next flush."""
        _check_range(size, 0)
        with self._lock:
            self._ready(writing=True)
            if size > MAX_FILE_BYTES:
                raise UsageError(f"a protected file has at most {MAX_FILE_BYTES} bytes", check="size", seen=size)
            if size > self._size:
                self._grow(size)
            elif size < self._size:
                self._shrink(size)

    def _shrink(self, size: int) -> None:
        count = tree.data_nodes(size)
        if count and (size - INLINE_BYTES) % NODE_BYTES:
            last = self._writable_node(count - 1)
            self._size = size
            self._blank_tail(count - 1, last)
        self._size = size
        self._kept_size = min(self._kept_size, size)
        if size < INLINE_BYTES:
            self._inline[size:] = bytes(INLINE_BYTES - size)
        for cache in (self._dirty, self._data):
            for number in [number for number in cache if number >= count]:
                del cache[number]
        trees = tree.tree_nodes(size)
        for cache in (self._trees, self._stuck_trees):
            for number in [number for number in cache if number >= trees]:
                del cache[number]
        self._metadata_dirty = True

    def rebind(self, path: str) -> None:
        """Seal another path into the file, and flush; call it before the host file is renamed.

        Until the rename is done the recovery log keeps the old node 0, so that after a crash in between
        the file opens under its old name as well.
        """
        raw = path_bytes(path)
        with self._lock:
            self._ready(writing=True)
            if raw != self._path:
                self._commit(sync=False)
                before, self._path = self._path, raw
                self._metadata_dirty = True
                try:
                    self._commit(sync=False, log_anyway=True)
                except BaseException:
                    self._path = before
                    raise

    # ---------------------------------------------------------------- committing

    def flush(self, sync: bool = False) -> None:
        """Commit everything written so far; `sync` returns only once it is durable."""
        with self._lock:
            self._ready()
            if self._writable:
                self._commit(sync=sync)

    def _commit(self, *, sync: bool, log_anyway: bool = False) -> None:
        if not self.dirty:
            if sync and self._writable:
                self._sync(final=True)
            return
        old_nodes = min(self._committed_nodes, self._backing.size() // NODE_BYTES)
        data = sorted(self._dirty)
        numbers = _with_ancestors({number // DATA_SLOTS for number in data} | self._stuck_trees.keys())
        touched = [*map(tree.physical_data, data), *map(tree.physical_tree, numbers)]
        overwritten = [place for place in touched if place < old_nodes]
        careful = self._power_safe and self._durable
        logged = self._use_log and (bool(overwritten) or careful or log_anyway) and old_nodes > 0
        trees = {number: self._tree_to_change(number) for number in numbers}

        if logged and self._begin(overwritten, careful=careful, flag=bool(touched)):
            self._interrupted = True
        else:
            self._stuck_trees = trees
        try:
            self._seal_data(data, trees)
            root_slot = self._seal_trees(numbers, trees)
            if careful and touched:
                self._backing.sync()
            envelope = self._seal_node_0(root_slot)
        except BaseException:
            self._undo_quietly()
            raise
        self._settle(envelope, root_slot, trees)
        if sync or (careful and self._backing.size() > tree.host_size(self._size)):
            self._sync(final=sync)
        if self._backing.size() > tree.host_size(self._size):
            self._backing.truncate(tree.host_size(self._size))
            if sync:
                self._backing.sync()

    def _begin(self, overwritten: list[int], *, careful: bool, flag: bool) -> bool:
        """Steps 1 and 2: the log, and the pending flag; False where this backing can have no log."""
        if careful and self._unsynced:
            self._backing.sync()
            self._unsynced = False
        if self._log is None:
            self._log = self._backing.open_log(create=True)
        if self._log is None:
            self._use_log = False
            return False
        recovery.write_log(self._log, self._backing, overwritten)
        if careful:
            self._log.sync()
        if flag and self._version != 1:
            self._interrupted = True
            node_0 = bytearray(read_at(self._backing, 0, NODE_BYTES))
            node_0[FLAGS_AT] |= PENDING
            self._backing.write_at(0, node_0)
            if careful:
                self._backing.sync()
        return True

    def _tree_to_change(self, number: int) -> bytearray:
        if number < tree.tree_nodes(self._kept_size):
            return bytearray(self._tree(number))
        return bytearray(NODE_BYTES)

    def _seal_data(self, data: list[int], trees: dict[int, bytearray]) -> None:
        at = 0
        while at < len(data):
            first = data[at]
            count = 1
            room = min(DATA_SLOTS - first % DATA_SLOTS, len(data) - at)
            while count < room and data[at + count] == first + count:
                count += 1
            plain = b"".join([self._dirty[first + i] for i in range(count)])
            cipher = bytearray(len(plain))
            slots = bytearray(SLOT_BYTES * count)
            seal.seal_nodes(plain, cipher, slots)
            self._backing.write_at(tree.physical_data(first) * NODE_BYTES, cipher)
            slot_at = tree.data_slot_at(first)
            trees[first // DATA_SLOTS][slot_at : slot_at + len(slots)] = slots
            at += count

    def _seal_trees(self, numbers: list[int], trees: dict[int, bytearray]) -> bytes:
        """Seal tree nodes, children first; the slot of the root."""
        root_slot = self._root_slot
        for number in reversed(numbers):
            plain = trees[number]
            tree.zero_dangling(plain, number, self._size)
            cipher = bytearray(NODE_BYTES)
            slot = bytearray(SLOT_BYTES)
            seal.seal_nodes(plain, cipher, slot)
            self._backing.write_at(tree.physical_tree(number) * NODE_BYTES, cipher)
            if number == 0:
                root_slot = bytes(slot)
            else:
                at = tree.child_slot_at(number)
                trees[tree.parent(number)][at : at + SLOT_BYTES] = slot
        return root_slot

    def _seal_node_0(self, root_slot: bytes) -> Envelope:
        if self._size <= INLINE_BYTES:
            root_slot = bytes(SLOT_BYTES)
        metadata = Metadata(self._path, self._size, root_slot, bytes(self._inline))
        envelope = seal.seal_metadata(self._key, self._version, metadata.to_bytes())
        self._backing.write_at(0, envelope.to_bytes())
        return envelope

    def _settle(self, envelope: Envelope, root_slot: bytes, trees: dict[int, bytearray]) -> None:
        """The commit is on the host: make it the state in memory."""
        self._interrupted = False
        self._unsynced = True
        self._envelope = envelope
        self._root_slot = root_slot
        self._kept_size = self._size
        self._committed_nodes = tree.host_nodes(self._size)
        self._metadata_dirty = False
        self._stuck_trees = {}
        for number, plain in trees.items():
            self._keep_tree(number, plain)
        for number, plain in self._dirty.items():
            self._data[number] = plain
        self._dirty = {}
        while len(self._data) > self._max_data:
            self._data.popitem(last=False)

    def _sync(self, *, final: bool) -> None:
        self._backing.sync()
        self._unsynced = False
        self._durable = self._durable or final

    def _undo_quietly(self) -> None:
        """After a failed flush: put the old state back at once if that works; otherwise the next call tries."""
        try:
            self._undo()
        except Error:
            return

    def _undo(self) -> None:
        if not self._interrupted or self._log is None:
            return
        undo = recovery.parse_log(self._log)
        if undo is None:
            raise StorageFailed(f"the recovery log of {self._backing.name} was altered", check="recovery log")
        recovery.replay(self._log, undo, self._backing, nodes=self._committed_nodes)
        self._interrupted = False

    # ---------------------------------------------------------------- closing

    def close(self) -> None:
        """Flush, remove the recovery log, close the backing; the backing is closed even if the flush fails."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._writable:
                    self._ready()
                    self._commit(sync=False)
                    if self._log is not None:
                        if self._power_safe and self._durable and self._unsynced:
                            self._sync(final=False)
                        self._log.close()
                        self._log = None
                        self._backing.remove_log()
            finally:
                self._closed = True
                self._dirty.clear()
                self._data.clear()
                self._trees.clear()
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
                f"{self._backing.name} is open for reading only",
                check="mode of the handle",
                expected="writable=True",
                seen="writable=False",
            )
        if self._interrupted:
            self._undo()


def _check_range(offset: int, size: int) -> None:
    if offset < 0 or size < 0:
        raise UsageError(f"offset {offset} and size {size} must not be negative", check="offset and size")


def _with_ancestors(numbers: set[int]) -> list[int]:
    found = set(numbers)
    for number in numbers:
        up = number
        while up:
            up = tree.parent(up)
            if up in found:
                break
            found.add(up)
    return sorted(found)


def _copy_out(plain: bytearray, data: int, start: int, end: int, view: memoryview) -> None:
    begin = tree.first_offset(data)
    low, high = max(begin, start), min(begin + NODE_BYTES, end)
    view[low - start : high - start] = memoryview(plain)[low - begin : high - begin]


# -------------------------------------------------------------------- which state is the committed one


def _check_state(
    backing: Backing, envelope: Envelope, metadata: Metadata, expected: bytes | None, expected_root: bytes | None
) -> None:
    """Refuse a host file too small for its content, another path than `expected`, another root than `expected_root`."""
    needed = tree.host_size(metadata.size)
    size = backing.size()
    if size % NODE_BYTES or size < needed:
        raise IntegrityError(
            f"{backing.name}: {size} bytes on the host, {needed} are needed",
            check="size of the host file",
            expected=f"at least {needed} bytes, a multiple of {NODE_BYTES}",
            seen=f"{size} bytes",
            remedy="the file was cut or extended; get it again from its owner",
        )
    if expected is not None and metadata.path != expected:
        raise WrongPath(
            f"{backing.name} was sealed under another path",
            check="embedded path",
            expected=path_text(expected),
            seen=path_text(metadata.path),
            remedy="use it under the path it was sealed for, or seal it for this one with `adyton rekey --as`",
        )
    root = envelope.nonce + envelope.tag
    if expected_root is not None and not hmac.compare_digest(root, expected_root):
        raise IntegrityError(
            f"{backing.name} is whole, but not the version that was expected",
            check="root of the file",
            expected=expected_root.hex(),
            seen=root.hex(),
            remedy="the host put an older (or another) version of the file in place; get the newest",
        )


def _committed_state(
    backing: Backing, key: Key128, *, expected: bytes | None, writable: bool, recover: bool
) -> tuple[Backing, Envelope, Metadata]:
    """The backing to read from (an overlay where a read-only handle looks through the log), node 0, its contents."""
    raw = read_at(backing, 0, NODE_BYTES)
    if len(raw) < NODE_BYTES:
        raise NotProtectedFile(
            f"{backing.name} is no protected file: {len(raw)} bytes, node 0 alone has {NODE_BYTES}",
            check="size of the file",
            expected=f"at least {NODE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
            remedy="an empty file is not a protected file; encrypt it with `adyton encrypt`",
        )
    try:
        envelope = parse_envelope(raw)
    except Error as error:
        error.message = f"{backing.name}: {error.message}"
        raise
    opened = seal.open_metadata(key, envelope)
    metadata = None if opened is None or envelope.pending else Metadata.parse(opened)
    if metadata is not None and (expected is None or metadata.path == expected) and envelope.version != 1:
        return backing, envelope, metadata

    found = _state_before(backing, key, envelope, metadata, expected, writable=writable) if recover else None
    if found is not None:
        return found
    if metadata is not None:
        return backing, envelope, metadata
    if envelope.pending:
        raise IntegrityError(
            f"{backing.name}: a flush was begun and not ended, and there is no usable recovery log",
            check="pending-write flag",
            expected="clear, or a recovery log that leads back to a whole file",
            seen="set" if recover else "set, and recovery is not wanted",
            remedy=f"bring back its recovery log ({backing.name}.gramine.recovery), or an older copy of the file",
        )
    raise IntegrityError(
        f"{backing.name}: the key is wrong, or node 0 was altered",
        check="tag of node 0",
        expected="the tag that this key gives",
        seen="another",
        remedy="check which key the file was encrypted with; if it is this one, get the file again from its owner",
    )


def _state_before(
    backing: Backing,
    key: Key128,
    envelope: Envelope,
    metadata: Metadata | None,
    expected: bytes | None,
    *,
    writable: bool,
) -> tuple[Backing, Envelope, Metadata] | None:
    """The state that the recovery log leads back to, if it explains what node 0 looks like and every node verifies.

    Three things call for it: the pending flag (or, in version 1, which has none, a node 0 that is still
    the log's); a node 0 that does not open, torn by a power cut; a rename that was sealed and not done.
    """
    log = backing.open_log(create=False)
    if log is None:
        return None
    used = False
    try:
        undo = recovery.parse_log(log)
        if undo is None:
            return None
        try:
            before = parse_envelope(undo.node_0)
            opened = seal.open_metadata(key, before)
            if opened is None or before.pending or before.version != envelope.version:
                return None
            old = Metadata.parse(opened)
        except Error:
            return None
        same = (before.nonce, before.tag) == (envelope.nonce, envelope.tag)
        if envelope.pending:
            explains = same
        elif metadata is None:
            explains = True
        elif same:
            explains = envelope.version == 1
        else:
            explains = (
                expected is not None
                and metadata.path != expected
                and old.path == expected
                and (old.size, old.root_slot, old.inline) == (metadata.size, metadata.root_slot, metadata.inline)
            )
        if not explains:
            return None
        nodes = tree.host_nodes(old.size)
        places = {node: place for node, place in undo.places.items() if node < nodes}
        overlay = Overlay(backing, log, places, node_bytes=NODE_BYTES, size=nodes * NODE_BYTES)
        probe = ProtectedFile(
            overlay,
            key,
            version=before.version,
            metadata=old,
            envelope=before,
            writable=False,
            cache_bytes=CACHE_BYTES,
            use_log=False,
            power_safe=False,
            durable=True,
        )
        try:
            probe.check_nodes(places)
        except IntegrityError:
            return None
        if writable:
            recovery.replay(log, undo, backing, nodes=nodes)
            return backing, before, old
        used = True
        return overlay, before, old
    finally:
        if not used:
            log.close()
