"""The pseudo-files of /dev/attestation."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest

from adyton.attest.report_data import ProgramEvidence, program_report_data
from adyton.values import Key128, Measurement
from adyton.vfs.attestation import MAX_PROCESSES, AttestationTree
from adyton.vfs.storage_watchdog import StorageWatchdog

KEY = Key128(bytes(range(16)))
WORKLOAD = Measurement(bytes(range(32)))


def _quote(report_data: bytes) -> bytes:
    return b"\x03\x00" + bytes(46) + bytes(320) + report_data + bytes(50)


def _evidence(quote: Callable[[bytes], bytes] = _quote) -> ProgramEvidence:
    return ProgramEvidence(quote, WORKLOAD)


def _tree(kind: str = "dcap") -> AttestationTree:
    return AttestationTree(_evidence(), {"k": KEY}, kind=kind)


def _read(tree: AttestationTree, path: str) -> bytes:
    buffer = memoryview(bytearray(9000))
    return bytes(buffer[: tree.read_into(tree.open(path), 0, buffer)])


def test_quote_is_over_the_data_as_written_last() -> None:
    """Each write replaces all of it, filled with zeros, and what is beyond 64 bytes is ignored; all of it hashed."""
    tree = _tree()
    opened = tree.open("user_report_data")
    tree.write(opened, memoryview(b"x" * 64), 0)
    assert tree.write(opened, memoryview(b"y" * 70), 0) == 70
    assert _read(tree, "quote")[368:432] == program_report_data(WORKLOAD, b"y" * 64)
    tree.write(opened, memoryview(b"z"), 0)
    assert _read(tree, "quote")[368:432] == program_report_data(WORKLOAD, b"z")
    assert _read(tree, "user_report_data") == b""


def test_report_data_is_each_processs_own() -> None:
    """Workers beside each other do not get each other's; who wrote none has what was written last."""
    now = [0]
    tree = AttestationTree(_evidence(), {}, kind="dcap", caller=lambda: now[0])

    def write_as(process: int, data: bytes) -> None:
        now[0] = process
        tree.write(tree.open("user_report_data"), memoryview(data), 0)

    def quoted_by(process: int) -> bytes:
        now[0] = process
        return _read(tree, "quote")[368:432]

    write_as(1, b"1")
    write_as(2, b"2")
    wanted = [program_report_data(WORKLOAD, data) for data in (b"1", b"2", b"2")]
    assert [quoted_by(process) for process in (1, 2, 3)] == wanted
    for process in range(10, 20 + MAX_PROCESSES):
        write_as(process, b"x")
    assert len(tree._user_data) == MAX_PROCESSES


def test_quote_may_take_as_long_as_the_hardware_needs() -> None:
    """Longer than storage may; after it the old limit holds."""
    watchdog = StorageWatchdog(answer_s=0.01)

    def slow(report_data: bytes) -> bytes:
        time.sleep(0.05)
        assert watchdog.overdue() is None
        return _quote(report_data)

    tree = AttestationTree(_evidence(slow), {}, kind="dcap", watchdog=watchdog)
    watchdog.start("open")
    tree.open("quote")
    time.sleep(0.05)
    assert watchdog.overdue() is not None


def test_report_is_432_bytes_around_the_same_report_data() -> None:
    """Body of the quote, then key id and MAC."""
    report = _read(_tree(), "report")
    assert len(report) == 432
    assert report[:384] == _quote(program_report_data(WORKLOAD, b""))[48:432]


def test_report_of_another_shape_of_quote_is_no_device() -> None:
    """Only SGX quotes have an SGX report in them."""
    tree = AttestationTree(_evidence(lambda data: b"\x04\x00" + data), {}, kind="dcap")
    with pytest.raises(OSError) as raised:
        tree.open("report")
    assert raised.value.errno == errno.ENODEV


def test_keys_are_read_and_never_replaced() -> None:
    """The same key may be written again; another, a short or a long one, is EACCES; unknown names are ENOENT."""
    tree = _tree()
    assert _read(tree, "keys/k") == KEY.reveal()
    opened = tree.open("keys/k")
    assert tree.write(opened, memoryview(KEY.reveal()), 0) == 16
    for bad in (bytes(16), bytes(15), KEY.reveal() + b"x"):
        with pytest.raises(OSError) as raised:
            tree.write(opened, memoryview(bad), 0)
        assert raised.value.errno == errno.EACCES
    with pytest.raises(OSError) as missing:
        tree.open("keys/other")
    assert missing.value.errno == errno.ENOENT


def test_without_remote_attestation_there_is_no_quote() -> None:
    """As in Gramine: attestation_type says none, and only the keys are there."""
    tree = _tree("none")
    assert sorted(name for name, _ in tree.listing("")) == ["attestation_type", "keys"]
    assert _read(tree, "attestation_type") == b"none"


@pytest.mark.parametrize("name", ["create", "remove", "remove_folder", "make_folder", "rename", "set_mode"])
def test_nothing_else_can_be_done(name: str) -> None:
    """No file is made, removed, renamed or changed."""
    tree = _tree()
    words = {"create": ("x", 0o644), "make_folder": ("x", 0o755), "rename": ("quote", "x", 0), "set_mode": ("quote", 0)}
    with pytest.raises(OSError):
        getattr(tree, name)(*words.get(name, ("quote",)))
