"""FUSE's reads in C: the same bytes as Python gives, and Python asked wherever anything is not as it should be."""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.pfile import layout
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128
from adyton.vfs import native_reader
from adyton.vfs.storage_watchdog import StorageWatchdog

if not native_reader.NATIVE:
    pytest.skip(
        "the C parts were not built: apt-get install gcc libssl-dev python3-dev, then make clean setup",
        allow_module_level=True,
    )

from adyton.vfs import _reads

KEY = Key128(bytes(range(16)))
SIZE = 2 * 96 * 4096 + 3072 + 1234
"""Three tree nodes."""

Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong, ctypes.c_void_p
)
ASKED = -1000
"""What the callback in Python answers here."""


class Reader:
    """Calls the C callback as libfuse does."""

    def __init__(self, path: Path, *, writable: bool = True, cache_bytes: int = 1 << 20) -> None:
        self.host = OSFile(path, writable=writable)
        self.file = ProtectedFile.open(self.host, KEY, writable=writable, cache_bytes=cache_bytes)
        native = native_reader.open_native_reader(self.host.fileno())
        assert native is not None
        self.file.use_native_reader(native)
        self.asked: list[tuple[int, int]] = []
        self.watchdog = StorageWatchdog()
        self.python = Callback(self._ask)
        self.pipe, ahead = os.pipe()
        address = _reads.install(
            {7: native}, ctypes.cast(self.python, ctypes.c_void_p).value or 0, 8, self.watchdog.clock, ahead
        )
        self.call = Callback(address)

    def _ask(self, _path: bytes, _buffer: int, size: int, offset: int, _info: int) -> int:
        self.asked.append((offset, size))
        return ASKED

    def read(self, offset: int, size: int, *, handle: int = 7) -> bytes | None:
        """What C read; None where it asked Python."""
        info = (ctypes.c_uint64 * 2)(0, handle)
        buffer = ctypes.create_string_buffer(b"\xee" * (size + 16), size + 16)
        got = self.call(b"x", ctypes.addressof(buffer), size, offset, ctypes.addressof(info))
        assert self.watchdog.clock[0] == 0
        assert buffer.raw[size:] == b"\xee" * 16, "written past the end"
        if got == ASKED:
            assert self.asked.pop() == (offset, size)
            assert buffer.raw[:size].strip(b"\xee") == b"" or not any(buffer.raw[:size]), "unverified bytes are left"
            return None
        return buffer.raw[:got]


@pytest.fixture
def content() -> bytes:
    """The plaintext."""
    return random.Random(4).randbytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    """Its protected file."""
    with ProtectedFile.create(OSFile(tmp_path / "f", create=True), KEY, path="f", use_log=False) as file:
        file.write_at(0, content)
    return tmp_path / "f"


@pytest.fixture
def reader(path: Path) -> Iterator[Reader]:
    """It, opened for reading and writing."""
    opened = Reader(path)
    yield opened
    opened.file.close()


def test_layout_in_c_is_the_layout_in_python() -> None:
    """The numbers that the C part repeats."""
    assert (_reads.INLINE_BYTES, _reads.DATA_SLOTS, _reads.NODE_BYTES) == (
        layout.INLINE_BYTES,
        layout.DATA_SLOTS,
        layout.NODE_BYTES,
    )


def test_every_range_reads_as_python_reads_it(reader: Reader, content: bytes) -> None:
    """At all edges of nodes and of the file; what begins in node 0 is Python's."""
    edges = [3072, 7168, 3072 + 96 * 4096, 3072 + 2 * 96 * 4096, SIZE]
    offsets = {max(0, edge + near) for edge in edges for near in (-4097, -4096, -1, 0, 1, 1024, 4096)}
    chance = random.Random(1)
    offsets |= {chance.randrange(SIZE) for _ in range(50)}
    for offset in sorted(offsets):
        for size in (1, 1000, 3072, 4096, 4097, 8192, 100_000, 131_072, SIZE):
            found = reader.read(offset, size)
            if offset < 3072 or offset >= SIZE:
                assert found is None
            else:
                assert found == content[offset : offset + size], (offset, size)


def test_read_of_more_than_a_request_can_ask_is_pythons(tmp_path: Path) -> None:
    """More than 1 MiB at once does not come from the kernel."""
    with ProtectedFile.create(OSFile(tmp_path / "big", create=True), KEY, path="big", use_log=False) as file:
        file.write_at(0, bytes(3 << 20))
    big = Reader(tmp_path / "big")
    assert big.read(4096, 2 << 20) is None
    assert big.read(4096, 1 << 20) == bytes(1 << 20)
    big.file.close()


def test_small_cache_reads_the_same(path: Path, content: bytes) -> None:
    """Where tree nodes must be fetched again and again."""
    reader = Reader(path, cache_bytes=1)
    chance = random.Random(2)
    for _ in range(200):
        offset = chance.randrange(3072, SIZE)
        assert reader.read(offset, 9000) == content[offset : offset + 9000]
    reader.file.close()


def test_unknown_handle_is_pythons(reader: Reader) -> None:
    """As of a file that has no native reader."""
    assert reader.read(5000, 100, handle=8) is None


def test_file_with_unflushed_writes_is_pythons_until_it_is_flushed(reader: Reader, content: bytes) -> None:
    """The host does not hold what the program must see."""
    assert reader.read(5000, 10) == content[5000:5010]
    reader.file.write_at(5000, b"new")
    assert reader.read(5000, 10) is None
    assert reader.read(500_000, 10) is None
    reader.file.flush()
    assert reader.read(5000, 10) == b"new" + content[5003:5010]
    reader.file.truncate(6000)
    assert reader.read(5000, 10) is None
    reader.file.flush()
    assert reader.read(5990, 100) == content[5990:6000]
    reader.file.rebind("g")
    reader.file.flush()
    assert reader.read(5990, 100) == content[5990:6000]


def test_write_larger_than_the_cache_leaves_the_native_reader_forbidden(path: Path) -> None:
    """A commit in the middle of a write is not yet all that was written."""
    reader = Reader(path, cache_bytes=1)
    reader.file.write_at(4000, bytes(10 * 4096 + 1))
    assert reader.file.dirty
    assert reader.read(5000, 10) is None
    reader.file.flush()
    assert reader.read(5000, 10) == bytes(10)
    reader.file.close()


def test_closed_file_is_pythons(reader: Reader) -> None:
    """Its descriptor may be another file's by now."""
    reader.file.close()
    assert reader.read(5000, 10) is None


@pytest.mark.parametrize("node", [1, 2, 3, 98, 99])
def test_altered_node_is_pythons_to_refuse(path: Path, content: bytes, node: int) -> None:
    """A flipped bit in a data node or a tree node: no byte is served, and Python finds and names it."""
    reader = Reader(path)
    with path.open("r+b") as host:
        host.seek(node * 4096 + 99)
        byte = host.read(1)[0]
        host.seek(node * 4096 + 99)
        host.write(bytes([byte ^ 1]))
    begin = 3072 + (4096 * (node - 2) if node < 98 else 96 * 4096)
    assert reader.read(max(begin, 3072), 4096) is None
    if node != 1:  # the root leads to everything
        assert reader.read(SIZE - 500, 500) == content[-500:]
    reader.file.close()


def test_cut_file_is_pythons_to_refuse(path: Path) -> None:
    """Where the host's file ends early."""
    reader = Reader(path)
    os.truncate(path, 50 * 4096)
    assert reader.read(300_000, 4096) is None
    reader.file.close()


def test_file_forbidden_while_a_tree_node_is_fetched_is_pythons(path: Path) -> None:
    """Whatever was found until then."""
    reader = Reader(path)
    native = native_reader.open_native_reader(reader.host.fileno())
    assert native is not None

    def fetch(number: int) -> bytearray:
        native.forbid()
        return reader.file._nodes.tree(number)

    _reads.install(
        {7: native}, ctypes.cast(reader.python, ctypes.c_void_p).value or 0, 8, reader.watchdog.clock, reader.pipe
    )
    native.allow(SIZE, {}, fetch)
    assert reader.read(300_000, 200_000) is None
    reader.file.close()


def test_size_that_no_file_has_is_pythons(path: Path) -> None:
    """No place of a node is computed from it."""
    reader = Reader(path)
    native = native_reader.open_native_reader(reader.host.fileno())
    assert native is not None
    asked: list[int] = []
    _reads.install(
        {7: native}, ctypes.cast(reader.python, ctypes.c_void_p).value or 0, 8, reader.watchdog.clock, reader.pipe
    )

    def fetch(number: int) -> bytearray:
        asked.append(number)
        raise KeyError(number)

    native.allow((1 << 63) - 1, {}, fetch)
    assert reader.read((1 << 62), 4096) is None
    assert asked == []
    reader.file.close()


def test_program_that_reads_in_order_is_fetched_for(reader: Reader) -> None:
    """The host's file is asked for in steps ahead of it, and never past the end; small reads ask for nothing."""
    reader.read(5000, 4096)
    os.set_blocking(reader.pipe, False)
    with pytest.raises(BlockingIOError):
        os.read(reader.pipe, 24)
    reader.read(0, 131_072)
    fd, offset, size = native_reader._ASK.unpack(os.read(reader.pipe, 24))
    assert fd == reader.host.fileno()
    assert (offset, size) == ((2 + 31) * 4096, (2 << 20) * 65 // 64)
    reader.read(131_072, 131_072)
    with pytest.raises(BlockingIOError):
        os.read(reader.pipe, 24)


def test_thread_that_fetches_survives_a_closed_file() -> None:
    """What is asked for may be gone."""
    ask = native_reader._start_thread()
    os.write(ask, native_reader._ASK.pack(1 << 20, 0, 4096))
    with open(__file__, "rb") as file:
        os.write(ask, native_reader._ASK.pack(file.fileno(), 0, 4096))
        time.sleep(0.05)
    os.close(ask)


def test_stalled_read_in_c_is_named() -> None:
    """The clock says which operation it is, also where C set it."""
    watchdog = StorageWatchdog(answer_s=0.01)
    watchdog.start("open")
    watchdog.clock[1] = 1
    time.sleep(0.02)
    assert "operation: read" in str(watchdog.overdue())


@pytest.mark.parametrize("clock", [b"", bytearray(8), bytearray(24)])
def test_install_refuses_another_clock(clock: bytes | bytearray) -> None:
    """Rather than write past it."""
    with pytest.raises((ValueError, BufferError)):
        _reads.install({}, 1, 8, clock, -1)
    with pytest.raises(ValueError, match="fall back"):
        _reads.install({}, 0, 8, bytearray(16), -1)
