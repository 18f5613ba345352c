"""The behaviour of one protected file: reading, writing, refusing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.errors import (
    Error,
    IntegrityError,
    NotProtectedFile,
    StorageFailed,
    UnsupportedVersion,
    UsageError,
    WrongPath,
)
from adyton.pfile import geometry, seal
from adyton.pfile.backing import Memory, OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import NODE_BYTES, Metadata, parse_envelope
from adyton.values import Key128
from tests.support.disks import FillingDisk
from tests.support.recorder import recording
from tests.vectors.pfile import second

KEY = Key128(bytes(range(16)))


def _made(size: int, *, version: int = 2, path: str = "a") -> tuple[Memory, bytes]:
    content = random.Random(size).randbytes(size)
    host = Memory()
    with ProtectedFile.create(host, KEY, path=path, version=version) as file:
        file.write_at(0, content)
    return host, content


def test_empty_file_is_one_node() -> None:
    """Even nothing is sealed."""
    host, _ = _made(0)
    assert len(host.content) == NODE_BYTES
    with ProtectedFile.open(host, KEY) as file:
        assert (file.size, file.read_at(0, 10)) == (0, b"")


@pytest.mark.parametrize("size", [1, 3072, 3073, 7168, 7169, 396_288, 396_289, 1_000_000])
def test_every_range_of_a_file_reads_as_written(size: int) -> None:
    """Ranges at, before and across every boundary."""
    host, content = _made(size)
    edges = {0, 1, 3071, 3072, 3073, 7167, 7168, 7169, 396_287, 396_288, 396_289, size - 1, size, size + 5}
    with ProtectedFile.open(host, KEY) as file:
        for start in sorted(edges):
            for end in sorted(edges):
                if start <= end:
                    assert file.read_at(start, end - start) == content[start:end], (start, end)


def test_read_into_a_buffer_fills_what_there_is() -> None:
    """At the end of the file the rest of the buffer is left as it is."""
    host, content = _made(10_000)
    buffer = bytearray(b"x" * 100)
    with ProtectedFile.open(host, KEY) as file:
        assert file.read_into(9950, buffer) == 50
        assert file.read_into(10_000, bytearray(5)) == 0
        assert file.read_into(99_999, bytearray(5)) == 0
    assert buffer == content[9950:] + b"x" * 50


def test_gap_before_a_write_is_zeros() -> None:
    """Writing behind the end makes zeros of what lies between, even of what was cut off before."""
    host = Memory()
    with ProtectedFile.create(host, KEY, path="a") as file:
        file.write_at(0, b"x" * 20_000)
        file.truncate(5000)
        file.write_at(30_000, b"end")
        assert file.read_at(0, 40_000) == b"x" * 5000 + bytes(25_000) + b"end"
    assert second.read(KEY.reveal(), bytes(host.content))[1] == b"x" * 5000 + bytes(25_000) + b"end"


def test_cut_and_extended_small_file_is_zeros_behind_the_cut() -> None:
    """Within the inline area too."""
    host = Memory()
    with ProtectedFile.create(host, KEY, path="a") as file:
        file.write_at(0, b"x" * 3000)
        file.truncate(5)
        file.truncate(2000)
        assert file.read_at(0, 3000) == b"xxxxx" + bytes(1995)
    with ProtectedFile.open(host, KEY) as file:
        assert file.read_at(0, 3000) == b"xxxxx" + bytes(1995)


def test_truncated_file_carries_no_old_plaintext() -> None:
    """Inline area, last block and dangling slots are blank once sealed again."""
    host, _ = _made(396_289 + 4096 * 40)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        file.truncate(396_289 - 4096 * 3)  # ends within the first tree node
        file.truncate(100_001)
    opened = seal.open_metadata(KEY, parse_envelope(bytes(host.content[:NODE_BYTES])))
    assert opened is not None
    metadata = Metadata.parse(opened)
    root = bytearray(NODE_BYTES)
    assert seal.open_nodes(host.content[NODE_BYTES : 2 * NODE_BYTES], metadata.root_slot, root) == -1
    nodes = geometry.data_nodes(100_001)
    assert root[nodes * 32 :] == bytes(NODE_BYTES - nodes * 32)
    last = bytearray(NODE_BYTES)
    place = geometry.physical_data(nodes - 1) * NODE_BYTES
    slot = bytes(root[(nodes - 1) * 32 : nodes * 32])
    assert seal.open_nodes(host.content[place : place + NODE_BYTES], slot, last) == -1
    live = 100_001 - geometry.first_offset(nodes - 1)
    assert last[live:] == bytes(NODE_BYTES - live)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        file.truncate(10)
    opened = seal.open_metadata(KEY, parse_envelope(bytes(host.content[:NODE_BYTES])))
    assert opened is not None
    assert opened[780 + 32 + 10 :] == bytes(3072 - 10)
    assert opened[780:812] == bytes(32)  # no root either
    assert len(host.content) == NODE_BYTES


def test_stale_tail_left_by_another_writer_never_becomes_content() -> None:
    """A maker that leaves old bytes behind the end (Gramine may) does not have them read after growth."""
    dirty = Metadata(b"a", 5, bytes(32), b"").to_bytes()
    dirty = dirty[:812] + b"12345STALE" + dirty[822:]
    host = Memory(seal.seal_metadata(KEY, 2, dirty).to_bytes())
    with ProtectedFile.open(host, KEY, writable=True) as file:
        file.truncate(12)
        assert file.read_at(0, 12) == b"12345" + bytes(7)
    # a data node with a stale tail: 3072 + 5 bytes, the rest of the node is old
    plain, cipher, slot = bytearray(b"12345" + b"S" * 4091), bytearray(NODE_BYTES), bytearray(32)
    seal.seal_nodes(plain, cipher, slot)
    root, root_cipher, root_slot = bytearray(bytes(slot).ljust(NODE_BYTES, b"\0")), bytearray(NODE_BYTES), bytearray(32)
    seal.seal_nodes(root, root_cipher, root_slot)
    node_0 = seal.seal_metadata(KEY, 2, Metadata(b"a", 3077, bytes(root_slot), bytes(3072)).to_bytes())
    for grow in ("truncate", "write"):
        host = Memory(node_0.to_bytes() + root_cipher + cipher)
        with ProtectedFile.open(host, KEY, writable=True) as file:
            if grow == "truncate":
                file.truncate(9000)
            else:
                file.write_at(8999, b"\0")
        with ProtectedFile.open(host, KEY) as file:
            assert file.read_at(3072, 9000) == b"12345" + bytes(9000 - 3077)


def test_one_changed_byte_changes_one_slot() -> None:
    """A clean node keeps key and ciphertext: a flush costs what was written, not the file."""
    host, _ = _made(20_000)
    before = bytes(host.content)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        file.write_at(10_000, b"!")
    after = bytes(host.content)
    changed = [i for i in range(len(before) // NODE_BYTES) if before[i * 4096 :][:4096] != after[i * 4096 :][:4096]]
    assert changed == [0, 1, geometry.physical_data((10_000 - 3072) // 4096)]


@pytest.mark.parametrize("version", [1, 2])
def test_version_is_kept_by_writing(version: int) -> None:
    """Who chose version 1 for an old Gramine keeps it."""
    host, _ = _made(5000, version=version)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        file.write_at(0, b"new")
    with ProtectedFile.open(host, KEY) as file:
        assert file.version == version


def test_cache_stays_within_its_bound() -> None:
    """Whatever is read or written, the handle keeps no more than it was allowed."""
    host, content = _made(3_000_000)
    allowed = 64 * NODE_BYTES
    with ProtectedFile.open(host, KEY, writable=True, cache_bytes=allowed) as file:
        chance = random.Random(1)
        for _ in range(500):
            offset = chance.randrange(3_000_000 - 5000)
            assert file.read_at(offset, 5000) == content[offset : offset + 5000]
            kept = len(file._cache) + len(file._nodes._trees)
            assert kept * NODE_BYTES <= allowed
        for number in range(300):
            file.write_at(number * 9000, b"x" * 9000)
            assert len(file._cache.dirty) <= file._cache.max_nodes
        file.flush()
        assert len(file._cache) <= file._cache.max_nodes


# ---------------------------------------------------------------- refusals


def test_wrong_key_is_refused() -> None:
    """Nothing is said about which of key and node 0 is wrong, as it cannot be told."""
    host, _ = _made(5000)
    with pytest.raises(IntegrityError, match="key is wrong, or node 0 was altered"):
        ProtectedFile.open(host, Key128.generate())


def test_wrong_path_is_refused_with_both_paths() -> None:
    """The refusal names the path sealed in and the one expected."""
    host, _ = _made(5, path="in/model")
    with pytest.raises(WrongPath) as refusal:
        ProtectedFile.open(host, KEY, path="other")
    assert (refusal.value.expected, refusal.value.seen) == ("other", "in/model")
    ProtectedFile.open(host, KEY, path="./in//model").close()


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 4095])
def test_short_file_is_no_protected_file(content: bytes) -> None:
    """Less than one node is not a protected file, an empty one neither."""
    with pytest.raises(NotProtectedFile, match="node 0"):
        ProtectedFile.open(Memory(content), KEY)


def test_plaintext_is_no_protected_file() -> None:
    """Plaintext where ciphertext is due."""
    with pytest.raises(NotProtectedFile, match="magic"):
        ProtectedFile.open(Memory(b"plain text" * 1000), KEY)


def test_unknown_version_is_refused() -> None:
    """A version of the future."""
    host, _ = _made(5)
    host.content[8] = 3
    with pytest.raises(UnsupportedVersion):
        ProtectedFile.open(host, KEY)


@pytest.mark.parametrize("cut", [1, 100, 4096, 5000, 8192])
def test_truncated_host_file_is_refused_when_it_is_opened(cut: int) -> None:
    """Gramine's tool notices a cut by whole nodes only when it reads there; here it is noticed at once."""
    host, _ = _made(20_000)
    del host.content[-cut:]
    with pytest.raises(IntegrityError, match="on the host"):
        ProtectedFile.open(host, KEY)


def test_extension_by_a_part_of_a_node_is_refused_and_by_whole_nodes_ignored() -> None:
    """As Gramine does: nodes too many are not read."""
    host, content = _made(20_000)
    with ProtectedFile.open(Memory(host.content + bytes(8192)), KEY) as file:
        assert file.read_at(0, 30_000) == content
    with pytest.raises(IntegrityError) as refusal:
        ProtectedFile.open(Memory(host.content + b"x"), KEY)
    assert "multiple of 4096" in (refusal.value.expected or "")


def test_swapped_and_changed_nodes_are_refused_by_place() -> None:
    """Every node other than node 0: changed, or another's put in its place."""
    host, content = _made(450_000)
    count = len(host.content) // NODE_BYTES
    for place in (1, 2, 3, 50, 97, 98, 99, count - 1):
        changed = Memory(host.content)
        changed.content[place * NODE_BYTES + 17] ^= 4
        with ProtectedFile.open(changed, KEY) as file, pytest.raises(IntegrityError, match=f"node {place} "):
            file.read_at(0, file.size)
        swapped = Memory(host.content)
        other = 5 if place != 5 else 6
        swapped.content[place * 4096 : place * 4096 + 4096] = host.content[other * 4096 : other * 4096 + 4096]
        with ProtectedFile.open(swapped, KEY) as file, pytest.raises(IntegrityError):
            file.verify()
    assert content


def test_buffer_of_a_refused_read_holds_nothing_of_it() -> None:
    """What failed its check is wiped from the caller's buffer."""
    host, content = _made(3072 + 24 * 4096)
    host.content[10 * NODE_BYTES] ^= 1
    buffer = bytearray(b"x" * len(content))
    with ProtectedFile.open(host, KEY) as file, pytest.raises(IntegrityError):
        file.read_into(0, buffer)
    assert buffer == content[:3072] + bytes(24 * 4096)
    with ProtectedFile.open(_made(len(content))[0], KEY) as file:
        assert isinstance(file._backing, Memory)
        del file._backing.content[20 * NODE_BYTES :]
        with pytest.raises(IntegrityError, match=r"node 20 .* is missing"):
            file.read_into(0, buffer)
    assert buffer == content[:3072] + bytes(24 * 4096)


def test_older_version_is_refused_by_its_root() -> None:
    """Who remembers the root refuses what was before, and every flush that writes changes it."""
    host, _ = _made(20_000)
    old = bytes(host.content)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        first = file.root
        file.flush()
        assert file.root == first
        file.write_at(15_000, b"new")
        file.flush()
        root = file.root
        assert root != first
    ProtectedFile.open(host, KEY, expected_root=root).close()
    with pytest.raises(IntegrityError, match="not the version"):
        ProtectedFile.open(Memory(old), KEY, expected_root=root)


def test_older_version_put_under_an_open_handle_is_refused() -> None:
    """A reader sees tags that do not match, a writer that node 0 is another."""
    host, _ = _made(500_000)
    old = bytes(host.content)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        for offset in range(0, 500_000, 4096):
            file.write_at(offset, b"new")
    reader = ProtectedFile.open(host, KEY)
    writer = ProtectedFile.open(host, KEY, writable=True)
    host.content[:] = old
    with reader, pytest.raises(IntegrityError, match="node"):
        reader.read_at(0, reader.size)
    writer.write_at(0, b"newer")
    with pytest.raises(IntegrityError, match="changed on the host"):
        writer.flush()
    with pytest.raises(IntegrityError):
        writer.close()
    assert host.content == old


def test_closed_handle_is_refused() -> None:
    """A second close is none."""
    host, _ = _made(5)
    file = ProtectedFile.open(host, KEY)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read_at(0, 1)


def test_reading_handle_refuses_to_write() -> None:
    """Each way of writing."""
    host, _ = _made(5)
    before = bytes(host.content)
    with ProtectedFile.open(host, KEY) as file:
        changes: list[Callable[[], object]] = [
            lambda: file.write_at(0, b"x"),
            lambda: file.truncate(0),
            lambda: file.rebind("b"),
        ]
        for change in changes:
            with pytest.raises(UsageError, match="reading only"):
                change()
        file.flush(sync=True)
    assert host.content == before


def test_impossible_ranges_are_refused() -> None:
    """Negative offsets and sizes, files beyond 2**63 - 1, unknown versions."""
    host, _ = _made(5)
    with ProtectedFile.open(host, KEY, writable=True) as file:
        for call in (
            lambda: file.read_at(-1, 1),
            lambda: file.read_at(0, -1),
            lambda: file.write_at(-1, b"x"),
            lambda: file.write_at(2**63 - 1, b"x"),
            lambda: file.truncate(2**63),
            lambda: file.truncate(-1),
        ):
            with pytest.raises(UsageError):
                call()
    with pytest.raises(UsageError, match="version 3"):
        ProtectedFile.create(Memory(), KEY, path="a", version=3)


def test_backing_is_closed_where_opening_fails() -> None:
    """No descriptor leaks from a refusal."""

    class Watched(Memory):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    host = Watched(b"plain" * 2000)
    with pytest.raises(NotProtectedFile):
        ProtectedFile.open(host, KEY)
    with pytest.raises(UsageError):
        ProtectedFile.create(host, KEY, path="x" * 800)
    assert host.closed == 2


# ---------------------------------------------------------------- disks that fail


@pytest.mark.parametrize("use_log", [True, False], ids=["log", "no log"])
@pytest.mark.parametrize("size", [0, 2000, 20_000, 450_000])
def test_flush_on_a_full_disk_fails_and_succeeds_when_there_is_room(size: int, use_log: bool) -> None:
    """A flush that failed anywhere leaves the handle whole; tried again, all of it is there, under new keys."""
    base, content = _made(size)
    for good in range(40):
        chance = random.Random(good)
        with recording():
            disk = FillingDisk(bytes(base.content), good_writes=good, chance=chance)
            expected = bytearray(content)
            file = ProtectedFile.open(disk, KEY, writable=True, use_log=use_log)
            failed = False
            for _ in range(3):
                offset, data = chance.randrange(size + 9000), chance.randbytes(5000)
                file.write_at(offset, data)
                expected.extend(bytes(max(0, offset - len(expected))))
                expected[offset : offset + 5000] = data
                try:
                    file.flush()
                except StorageFailed:
                    failed = True
                    disk.good_writes = 1 << 30
                    assert file.read_at(0, len(expected)) == expected
                    disk.good_writes = chance.randrange(6)
            disk.good_writes = 1 << 30
            if failed and chance.random() < 0.5:
                file.truncate(len(expected) // 2)
                del expected[len(expected) // 2 :]
            assert file.read_at(0, len(expected) + 1) == expected
            file.close()
        with ProtectedFile.open(Memory(disk.content), KEY) as again:
            assert again.read_at(0, again.size) == expected


def test_failed_flush_without_a_log_loses_no_tree_node() -> None:
    """Tree nodes that were half written are held in memory, even where the cache has no room for all."""
    base, content = _made(12 * 96 * 4096)
    for good in range(0, 14, 2):
        disk = FillingDisk(bytes(base.content))
        expected = bytearray(content)
        file = ProtectedFile.open(disk, KEY, writable=True, use_log=False, cache_bytes=1)
        for number in (3, 7, 11):
            file.write_at(number * 96 * 4096 - 5, b"new")
            expected[number * 96 * 4096 - 5 : number * 96 * 4096 - 2] = b"new"
        disk.good_writes = good
        try:
            file.flush()
        except StorageFailed:
            disk.good_writes = 1 << 30
            assert file.read_at(0, len(expected)) == expected
        disk.good_writes = 1 << 30
        file.close()
        with ProtectedFile.open(Memory(disk.content), KEY) as again:
            assert again.read_at(0, again.size) == expected


def test_failed_flush_without_a_log_is_mended_even_if_its_writes_are_cut_off() -> None:
    """Tree nodes half written are sealed again though nothing below them is dirty any more."""
    base, content = _made(3 * 96 * 4096)
    for good in range(6):
        disk = FillingDisk(bytes(base.content), good_writes=good)
        file = ProtectedFile.open(disk, KEY, writable=True, use_log=False)
        file.write_at(len(content) - 5000, b"new")
        try:
            file.flush()
        except StorageFailed:
            disk.good_writes = 1 << 30
            file.truncate(3072 + 20 * 4096)
        else:
            break
        file.close()
        with ProtectedFile.open(Memory(disk.content), KEY) as again:
            assert again.read_at(0, again.size) == content[: 3072 + 20 * 4096]


@pytest.mark.parametrize("use_log", [True, False], ids=["log", "no log"])
def test_failed_growth_that_is_given_up_leaves_the_file_as_it_was(use_log: bool) -> None:
    """What a failed flush appended is cut off again, so that the host file is a whole number of nodes."""
    base, content = _made(2000)
    for good in range(6):
        disk = FillingDisk(bytes(base.content), good_writes=good, chance=random.Random(good))
        file = ProtectedFile.open(disk, KEY, writable=True, use_log=use_log, power_safe=False)
        file.write_at(0, b"n" * 500_000)
        with contextlib.suppress(StorageFailed):
            file.flush()
            break
        disk.good_writes = 1 << 30
        assert file.read_at(0, 5) == b"nnnnn"  # which undoes what could not be undone before
        assert len(disk.content) == NODE_BYTES
        with ProtectedFile.open(Memory(disk.content), KEY) as again:
            assert again.read_at(0, again.size) == content


def test_growth_that_does_not_fit_is_taken_back() -> None:
    """A file extended beyond the disk keeps the size that it had, and can be written to as before."""
    base, content = _made(20_000)
    for good in range(4, 60, 5):
        disk = FillingDisk(bytes(base.content), good_writes=good)
        file = ProtectedFile.open(disk, KEY, writable=True, cache_bytes=1)
        with pytest.raises(StorageFailed):
            file.truncate(10_000_000)
        disk.good_writes = 1 << 30
        assert file.size == 20_000
        file.write_at(0, b"new")
        file.close()
        with ProtectedFile.open(Memory(disk.content), KEY) as again:
            assert again.read_at(0, again.size) == b"new" + content[3:]
        assert len(disk.content) == len(base.content)


def test_memory_stays_bounded_on_a_full_disk() -> None:
    """Who goes on writing after errors is refused, and nothing piles up."""
    disk = FillingDisk(bytes(_made(20_000)[0].content), good_writes=0)
    file = ProtectedFile.open(disk, KEY, writable=True, cache_bytes=1)
    refused = 0
    for number in range(50):
        try:
            file.write_at(number * 9000, b"x" * 5000)
        except StorageFailed:
            refused += 1
    assert refused > 40
    assert len(file._cache.dirty) <= 2 * file._cache.max_nodes
    disk.good_writes = 1 << 30
    file.close()


def test_close_on_a_full_disk_says_so_and_leaves_the_last_flush() -> None:
    """What could not be written is lost with an error, what was flushed is not."""
    base, content = _made(20_000)
    for good in range(8):
        disk = FillingDisk(bytes(base.content), good_writes=good)
        file = ProtectedFile.open(disk, KEY, writable=True)
        file.write_at(0, b"new" * 5000)
        try:
            file.close()
        except StorageFailed:
            disk.good_writes = 1 << 30
            with ProtectedFile.open(disk, KEY) as again:
                assert again.read_at(0, again.size) == content


def test_creation_that_fails_leaves_the_old_file() -> None:
    """Making a file in place of another replaces it in one write, or not at all."""
    base, content = _made(20_000)
    for good in range(4):
        disk = FillingDisk(bytes(base.content), good_writes=good)
        try:
            ProtectedFile.create(disk, KEY, path="a").close()
        except StorageFailed:
            disk.good_writes = 1 << 30
            with ProtectedFile.open(disk, KEY) as again:
                assert again.read_at(0, again.size) in (content, b"")
    with ProtectedFile.open(disk, KEY) as again:
        assert again.size == 0


# ---------------------------------------------------------------- files of the operating system


def test_os_file_takes_its_log_beside_it_and_removes_it(tmp_path: Path) -> None:
    """While it is written the log lies beside the file; a clean close removes it."""
    place = tmp_path / "f"
    with ProtectedFile.create(OSFile(place, create=True), KEY, path="f") as file:
        file.write_at(0, b"x" * 10_000)
        file.flush(sync=True)
        file.write_at(5000, b"y")
        file.flush()
        assert sorted(each.name for each in tmp_path.iterdir()) == ["f", "f.gramine.recovery"]
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    assert place.stat().st_mode & 0o777 == 0o600


def test_os_file_rename_leads_to_the_new_name(tmp_path: Path) -> None:
    """Rebind, rename, moved_to: the file opens under its new path, and no log is left at the old place."""
    old, new = tmp_path / "old", tmp_path / "sub" / "new"
    new.parent.mkdir()
    with ProtectedFile.create(OSFile(old, create=True), KEY, path="d/old") as file:
        file.write_at(0, b"x" * 10_000)
        file.rebind("d/new")
        old.rename(new)
        file.moved_to(new)
        file.write_at(0, b"y")
    assert list(tmp_path.iterdir()) == [new.parent]
    assert list(new.parent.iterdir()) == [new]
    with ProtectedFile.open(OSFile(new), KEY, path="d/new") as file:
        assert file.read_at(0, 3) == b"yxx"


def test_os_file_log_is_not_made_through_a_link(tmp_path: Path) -> None:
    """A hostile link in the log's place does not lead our writes elsewhere."""
    place, victim = tmp_path / "f", tmp_path / "victim"
    victim.write_bytes(b"precious")
    ProtectedFile.create(OSFile(place, create=True), KEY, path="f").close()
    (tmp_path / "f.gramine.recovery").symlink_to(victim)
    with pytest.raises(StorageFailed), ProtectedFile.open(OSFile(place, writable=True), KEY, writable=True) as file:
        file.write_at(0, b"x" * 9000)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("version", [1, 2])
def test_os_file_whose_name_leaves_no_room_for_a_log_works_without(tmp_path: Path, version: int) -> None:
    """Names may have 255 bytes, and the suffix takes 17 of them."""
    place = tmp_path / ("n" * 250)
    with ProtectedFile.create(OSFile(place, create=True), KEY, path="f", version=version) as file:
        file.write_at(0, b"x" * 10_000)
        file.flush(sync=True)
        file.write_at(0, b"y" * 10_000)
    with ProtectedFile.open(OSFile(place), KEY, path="f") as file:
        assert file.read_at(0, 20_000) == b"y" * 10_000
    with pytest.raises(IntegrityError):
        ProtectedFile.open(OSFile(place), Key128.generate())


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_os_file_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    """Only regular files; a pipe does not block."""
    place = {"directory": tmp_path, "pipe": tmp_path / "pipe", "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(place)
    with pytest.raises((NotProtectedFile, StorageFailed)):
        OSFile(place)


def test_os_file_that_is_missing_or_forbidden_is_storage_failed(tmp_path: Path) -> None:
    """The refusal carries the error number, and as its cause the error itself."""
    with pytest.raises(StorageFailed, match="opening") as refusal:
        OSFile(tmp_path / "nowhere")
    assert refusal.value.seen == "ENOENT"
    assert isinstance(refusal.value.__cause__, FileNotFoundError)


def test_os_file_on_a_full_device_is_storage_failed() -> None:
    """ENOSPC comes as a refusal with a remedy."""
    fd = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, 1033, 0x0004 | 0x0002)  # F_ADD_SEALS: no growing, no shrinking
    backing = OSFile(fd)
    with pytest.raises(Error, match="failed"):
        ProtectedFile.create(backing, KEY, path="a")


def test_file_by_descriptor_works_without_a_log(tmp_path: Path) -> None:
    """A descriptor has no name to put a log beside; writing works all the same."""
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    with ProtectedFile.create(OSFile(fd), KEY, path="f") as file:
        for _ in range(3):
            file.write_at(4000, os.urandom(30_000))
            file.flush(sync=True)
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    with ProtectedFile.open(OSFile(tmp_path / "f"), KEY, path="f") as file:
        assert file.size == 34_000


# ---------------------------------------------------------------- threads and processes


def test_many_threads_read_one_handle() -> None:
    """Reads at once, with and without the cache, all give what was written."""
    host, content = _made(2_000_000)
    wrong: list[int] = []
    with ProtectedFile.open(host, KEY, cache_bytes=40 * NODE_BYTES) as file:

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(150):
                offset, size = chance.randrange(2_000_000), chance.choice((1, 4096, 50_000, 500_000))
                if file.read_at(offset, size) != content[offset : offset + size]:
                    wrong.append(offset)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_many_threads_write_one_handle() -> None:
    """Writers of different places at once lose nothing, whatever flushes come between."""
    host = Memory()
    with recording(), ProtectedFile.create(host, KEY, path="a", cache_bytes=40 * NODE_BYTES) as file:
        file.truncate(6 * 100_000)

        def work(number: int) -> None:
            for at in range(0, 100_000, 5000):
                file.write_at(number * 100_000 + at, bytes([number + 1]) * 5000)
                if at % 20_000 == 0:
                    file.flush()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with ProtectedFile.open(host, KEY) as file:
        assert file.read_at(0, file.size) == b"".join(bytes([n + 1]) * 100_000 for n in range(6))


def test_forked_handle_seals_with_keys_of_its_own() -> None:
    """Two processes that flush the same dirty handle after a fork never share a key."""
    host, _ = _made(20_000)
    file = ProtectedFile.open(host, KEY, writable=True)
    file.write_at(0, b"new" * 5000)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with recording() as mine:
            file.flush()
        os.write(write, b"".join(mine.sealed))
        os._exit(0)
    os.close(write)
    with recording() as mine:
        file.flush()
    with open(read, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert len(theirs) >= 16 * 3
    assert not set(mine.sealed) & {theirs[i : i + 16] for i in range(0, len(theirs), 16)}
