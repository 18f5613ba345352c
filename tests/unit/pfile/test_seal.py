"""Sealing and opening: the C part and the fallback, each against the other, and keys that never repeat."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from adyton.pfile import keys, seal
from adyton.pfile.layout import NODE_BYTES, SEALED_BYTES, SLOT_BYTES, Metadata
from adyton.values import Key128
from tests.support.recorder import KeyUsedTwice, recording

ENGINES = [pytest.param(seal.engine, id="in use"), pytest.param(seal.Fallback, id="fallback")]


def test_the_c_part_is_built_here() -> None:
    """The tests are worth little if the fallback stands in for both."""
    assert seal.NATIVE


def test_metadata_key_of_known_nonce_is_known() -> None:
    """The vector of the format's description."""
    nonce = bytes(range(0x20, 0x40))
    assert keys.metadata_key(Key128(bytes(range(16))), nonce).hex() == "70ed96c7236900467f5461579ab272f8"


def test_metadata_key_of_short_nonce_is_refused() -> None:
    """A nonce has 32 bytes."""
    with pytest.raises(ValueError, match="32"):
        keys.metadata_key(Key128(bytes(16)), bytes(31))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 96, 255, 256, 257, 600])
@pytest.mark.parametrize("sealing", ENGINES)
@pytest.mark.parametrize("opening", ENGINES)
def test_nodes_sealed_by_one_engine_open_with_the_other(sealing: seal.Engine, opening: seal.Engine, count: int) -> None:
    """Both do the same, for any number of nodes."""
    plain = os.urandom(count * NODE_BYTES)
    cipher, slots, out = bytearray(len(plain)), bytearray(count * SLOT_BYTES), bytearray(len(plain))
    sealing.seal_nodes(plain, cipher, slots)
    assert count == 0 or cipher != plain
    assert opening.open_nodes(cipher, slots, out) == -1
    assert out == plain


@pytest.mark.parametrize("engine", ENGINES)
def test_nodes_are_sealed_and_opened_in_place(engine: seal.Engine) -> None:
    """Output and input may be the same buffer."""
    plain = os.urandom(7 * NODE_BYTES)
    buffer, slots = bytearray(plain), bytearray(7 * SLOT_BYTES)
    engine.seal_nodes(buffer, buffer, slots)
    assert buffer != plain
    assert engine.open_nodes(buffer, slots, buffer) == -1
    assert buffer == plain


@pytest.mark.parametrize("bad", [0, 3, 6])
@pytest.mark.parametrize("what", ["ciphertext", "key", "tag"])
@pytest.mark.parametrize("engine", ENGINES)
def test_changed_node_is_named_and_nothing_of_the_run_is_released(engine: seal.Engine, what: str, bad: int) -> None:
    """The first bad node is told, and the whole output is wiped, nodes before it too."""
    plain = os.urandom(7 * NODE_BYTES)
    cipher, slots, out = bytearray(len(plain)), bytearray(7 * SLOT_BYTES), bytearray(b"x" * len(plain))
    engine.seal_nodes(plain, cipher, slots)
    if what == "ciphertext":
        cipher[bad * NODE_BYTES + 4095] ^= 1
    else:
        slots[bad * SLOT_BYTES + (0 if what == "key" else 31)] ^= 0x80
    assert engine.open_nodes(cipher, slots, out) == bad
    assert out == bytes(len(out))


@pytest.mark.parametrize("engine", ENGINES)
def test_buffers_that_do_not_belong_together_are_refused(engine: seal.Engine) -> None:
    """Sizes are checked before anything is written."""
    one, two, slot = bytearray(NODE_BYTES), bytearray(2 * NODE_BYTES), bytearray(SLOT_BYTES)
    for plain, cipher, slots in ((one, two, slot), (one, one, bytearray(31)), (bytearray(100), bytearray(100), slot)):
        with pytest.raises(ValueError, match="belong together"):
            engine.seal_nodes(plain, cipher, slots)
        with pytest.raises(ValueError, match="belong together"):
            engine.open_nodes(plain, slots, cipher)


def test_overlapping_buffers_are_refused_by_the_c_part() -> None:
    """Half over each other would garble what is still to be read."""
    whole = memoryview(bytearray(4 * NODE_BYTES))
    slots = bytearray(2 * SLOT_BYTES)
    with pytest.raises(ValueError, match="overlap"):
        seal.engine.seal_nodes(whole[: 2 * NODE_BYTES], whole[NODE_BYTES : 3 * NODE_BYTES], slots)
    with pytest.raises(ValueError, match="overlap"):
        seal.engine.open_nodes(whole[:NODE_BYTES], whole[:SLOT_BYTES], whole[2 * NODE_BYTES : 3 * NODE_BYTES])


def test_read_only_target_is_refused_by_the_c_part() -> None:
    """Bytes are not written to."""
    with pytest.raises((TypeError, BufferError)):
        seal.engine.seal_nodes(bytes(NODE_BYTES), bytes(NODE_BYTES), bytearray(SLOT_BYTES))


@pytest.mark.parametrize("engine", ENGINES)
def test_same_bytes_sealed_again_have_other_keys(engine: seal.Engine) -> None:
    """No key comes back, within a run or between runs."""
    plain = bytes(300 * NODE_BYTES)
    cipher, slots = bytearray(len(plain)), bytearray(300 * SLOT_BYTES)
    seen: set[bytes] = set()
    for _ in range(5):
        engine.seal_nodes(plain, cipher, slots)
        seen |= {bytes(slots[i : i + 16]) for i in range(0, len(slots), SLOT_BYTES)}
    assert len(seen) == 1500


def test_same_metadata_sealed_again_has_another_nonce() -> None:
    """Nonce, tag and ciphertext all differ."""
    key, opened = Key128.generate(), Metadata(b"a", 0, bytes(32), b"").to_bytes()
    one, two = (seal.seal_metadata(key, 2, opened) for _ in range(2))
    assert one.nonce != two.nonce
    assert one.sealed != two.sealed
    assert seal.open_metadata(key, one) == opened
    assert seal.open_metadata(Key128.generate(), one) is None


def test_metadata_of_other_size_is_not_sealed() -> None:
    """The sealed part has 3884 bytes."""
    with pytest.raises(ValueError, match=str(SEALED_BYTES)):
        seal.seal_metadata(Key128.generate(), 2, b"short")


def test_many_threads_seal_at_once_without_a_key_twice() -> None:
    """Contexts are per thread; keys come from the kernel for every call."""
    slots = [bytearray(200 * SLOT_BYTES) for _ in range(8)]

    def work(mine: bytearray) -> None:
        plain, cipher = bytes(50 * NODE_BYTES), bytearray(50 * NODE_BYTES)
        for at in range(0, len(mine), 50 * SLOT_BYTES):
            run = memoryview(mine)[at : at + 50 * SLOT_BYTES]
            seal.seal_nodes(plain, cipher, run)
            assert seal.open_nodes(cipher, run, bytearray(len(cipher))) == -1

    threads = [threading.Thread(target=work, args=(each,)) for each in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bytes(each[i : i + 16]) for each in slots for i in range(0, len(each), SLOT_BYTES)}) == 1600


def test_forked_process_has_keys_of_its_own() -> None:
    """Parent and child seal the same bytes after a fork, under different keys."""
    plain, cipher, slots = bytes(4 * NODE_BYTES), bytearray(4 * NODE_BYTES), bytearray(4 * SLOT_BYTES)
    seal.seal_nodes(plain, cipher, slots)  # whatever is set up once is set up
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seal.seal_nodes(plain, cipher, slots)
        os.write(write, slots)
        os._exit(0)
    os.close(write)
    seal.seal_nodes(plain, cipher, slots)
    with open(read, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert len(theirs) == len(slots)
    mine = {bytes(slots[i : i + 16]) for i in range(0, len(slots), SLOT_BYTES)}
    assert not mine & {theirs[i : i + 16] for i in range(0, len(theirs), SLOT_BYTES)}


def test_recorder_finds_a_key_that_seals_twice() -> None:
    """The watch that other tests rely on does fire."""

    class Stuck:
        @staticmethod
        def seal_nodes(plain: object, cipher: object, slots: bytearray, /) -> None:
            slots[:] = bytes(len(slots))

        open_nodes = seal.Fallback.open_nodes

    before = seal.engine
    seal.engine = Stuck  # type: ignore[assignment]
    try:
        with recording():
            seal.seal_nodes(bytes(NODE_BYTES), bytearray(NODE_BYTES), bytearray(SLOT_BYTES))
            with pytest.raises(KeyUsedTwice):
                seal.seal_nodes(bytes(NODE_BYTES), bytearray(NODE_BYTES), bytearray(SLOT_BYTES))
    finally:
        seal.engine = before


def test_fallback_reports_a_kernel_without_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys nothing is sealed."""

    def fail(_size: int) -> bytes:
        raise OSError(errno.ENOSYS, "no getrandom")

    monkeypatch.setattr(os, "urandom", fail)
    cipher = bytearray(NODE_BYTES)
    with pytest.raises(OSError, match="getrandom"):
        seal.Fallback.seal_nodes(bytes(NODE_BYTES), cipher, bytearray(SLOT_BYTES))
    assert cipher == bytes(NODE_BYTES)
