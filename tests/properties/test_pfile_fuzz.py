"""The reader on anything: a verdict, never a crash, a hang, or memory that the host chose."""

from __future__ import annotations

import random
import tracemalloc

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from adyton.errors import FileFormatError, IntegrityError
from adyton.pfile import seal
from adyton.pfile.backing import Memory
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import MAX_FILE_BYTES, NODE_BYTES, SEALED_BYTES, Metadata
from adyton.pfile.recovery import RECORD_BYTES
from adyton.values import Key128

KEY = Key128(bytes(range(16)))


def _made(size: int) -> tuple[bytes, bytes]:
    content = random.Random(size).randbytes(size)
    host = Memory()
    with ProtectedFile.create(host, KEY, path="a") as file:
        file.write_at(0, content)
    return bytes(host.content), content


FILES = [_made(size) for size in (0, 100, 3072, 9000, 400_000)]


def _check(raw: bytes, log: bytes | None, content: bytes, *, writable: bool) -> None:
    """Either a refusal, or exactly the content that was sealed."""
    host = Memory(raw)
    if log is not None:
        host.open_log(create=True)
        assert host.log is not None
        host.log.content[:] = log
    try:
        with ProtectedFile.open(host, KEY, writable=writable) as file:
            assert file.size == len(content)
            for offset in range(0, len(content), 50_000):
                assert file.read_at(offset, 50_000) == content[offset : offset + 50_000]
    except FileFormatError:
        return


changes = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None)
@given(
    which=st.sampled_from(range(len(FILES))),
    changes=changes,
    cut=st.none() | st.integers(0, 500_000),
    add=st.binary(max_size=9),
)
def test_changed_file_is_refused_or_reads_as_sealed(
    which: int, changes: list[tuple[int, int]], cut: int | None, add: bytes
) -> None:
    """Bits changed, bytes cut off or added: other content never appears."""
    raw, content = FILES[which]
    changed = bytearray(raw)
    for at, flip in changes:
        changed[at % len(changed)] ^= flip
    _check(bytes(changed[:cut]) + add, None, content, writable=False)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=9000), version=st.sampled_from((0, 1, 2, 3)), magic=st.booleans())
def test_any_bytes_are_refused(raw: bytes, version: int, magic: bool) -> None:
    """Nothing that was not sealed under the key opens."""
    if magic:
        raw = b"GRAFS_PF" + bytes([version]) + raw.ljust(NODE_BYTES, b"\0")
        raw = raw[: len(raw) // NODE_BYTES * NODE_BYTES]
    with pytest.raises(FileFormatError):
        ProtectedFile.open(Memory(raw), KEY)


@settings(max_examples=200, deadline=None)
@given(
    which=st.sampled_from(range(len(FILES))),
    flag=st.booleans(),
    writable=st.booleans(),
    records=st.lists(
        st.tuples(st.one_of(st.integers(0, 110), st.integers(0, 2**64 - 1)), st.integers(0, 110)), max_size=8
    ),
    cut=st.integers(0, 20) | st.just(0),
)
@example(which=3, flag=True, writable=True, records=[(1 << 60, 0), (0, 0)], cut=0)
def test_any_recovery_log_is_refused_or_reads_as_sealed(
    which: int, flag: bool, writable: bool, records: list[tuple[int, int]], cut: int
) -> None:
    """Logs of right nodes in wrong places, of places that cannot be, and cut ones."""
    raw, content = FILES[which]
    nodes = len(raw) // NODE_BYTES
    log = b"".join(
        place.to_bytes(8, "little") + raw[node % nodes * NODE_BYTES :][:NODE_BYTES] for place, node in records
    )
    flagged = bytearray(raw)
    flagged[58] |= flag
    _check(bytes(flagged), log[: len(log) - cut], content, writable=writable)


def test_promised_size_allocates_nothing_before_it_is_there() -> None:
    """A file sealed by who has the key, promising 2**63 - 1 bytes in one node, costs no memory to refuse."""
    metadata = Metadata(b"a", MAX_FILE_BYTES, bytes(32), bytes(3072)).to_bytes()
    assert len(metadata) == SEALED_BYTES
    host = Memory(seal.seal_metadata(KEY, 2, metadata).to_bytes())
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="on the host"):
            ProtectedFile.open(host, KEY)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_huge_recovery_log_is_not_read() -> None:
    """A log of more records than any flush makes is refused by its size alone."""

    class Huge(Memory):
        reads = 0

        def size(self) -> int:
            return RECORD_BYTES << 40

        def read_into(self, offset: int, target: object, /) -> int:
            raise AssertionError("read")

    raw, _ = FILES[3]
    host = Memory(raw)
    host.content[58] |= 1
    host.log = Huge()
    with pytest.raises(IntegrityError, match="begun and not ended"):
        ProtectedFile.open(host, KEY)
