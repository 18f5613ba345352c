"""The workload register and the device digest: the bytes of docs/registers.md."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import pytest

from adyton.attest.devices import MAX_DEVICES, NO_DEVICES, Device, device_digest
from adyton.attest.workload_register import BANKS, events, extend, states, workload_register
from adyton.errors import UsageError
from adyton.values import Measurement

WORKLOAD = Measurement(bytes(range(32)))
PAGE = (Path(__file__).parents[3] / "docs" / "registers.md").read_text(encoding="utf-8")
UEIDS = ("478176379286082186618948445787393647364802107249", "99")


def _lp(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def _gpu(ueid: str, driver: str = "570.158.01", vbios: str = "96.00.88.00.11") -> Device:
    return Device(ueid=ueid, driver=driver, vbios=vbios)


def _digest_by_hand(*ueids: str) -> bytes:
    items = b"".join(_lp(_lp(ueid.encode()) + _lp(b"570.158.01") + _lp(b"96.00.88.00.11")) for ueid in ueids)
    return hashlib.sha384(b"adyton devices/1\0" + items).digest()


def _register_by_hand(bank: str, devices: bytes) -> bytes:
    register = bytes(BANKS[bank])
    for raw in (WORKLOAD.raw, devices):
        register = hashlib.new(bank, register + hashlib.new(bank, raw).digest()).digest()
    return register


def test_device_digest_is_what_the_page_says() -> None:
    """Sorted by UEID as a number, each text with its length, each item with its length."""
    assert device_digest(()) == NO_DEVICES == _digest_by_hand()
    assert device_digest(map(_gpu, UEIDS)) == device_digest(map(_gpu, reversed(UEIDS)))
    assert device_digest(map(_gpu, UEIDS)) == _digest_by_hand("99", UEIDS[0])


@pytest.mark.parametrize("bank", BANKS)
def test_register_is_what_the_page_says(bank: str) -> None:
    """Two events, in this order."""
    devices = device_digest(map(_gpu, UEIDS))
    assert events(WORKLOAD, bank=bank)[0] == hashlib.new(bank, WORKLOAD.raw).digest()
    assert workload_register(WORKLOAD, bank=bank) == _register_by_hand(bank, NO_DEVICES)
    assert workload_register(WORKLOAD, devices, bank=bank) == _register_by_hand(bank, devices)
    assert states(WORKLOAD, bank=bank)[0] == bytes(BANKS[bank])
    assert len(set(states(WORKLOAD, bank=bank))) == 3


def test_page_has_the_worked_examples() -> None:
    """Every value of the page's tables is what the code computes."""
    section = PAGE.split("### Worked examples")[1].split("## ")[0]
    shown = re.findall(r"\| `([0-9a-f]{64,96})` \|", section)
    devices = device_digest(map(_gpu, UEIDS))
    small, large = events(WORKLOAD, bank="sha256"), events(WORKLOAD, bank="sha384")
    computed = [
        NO_DEVICES,
        *small,
        workload_register(WORKLOAD, bank="sha256"),
        *large,
        workload_register(WORKLOAD, bank="sha384"),
        devices,
        workload_register(WORKLOAD, devices, bank="sha256"),
        workload_register(WORKLOAD, devices, bank="sha384"),
    ]
    assert shown == [value.hex() for value in computed]


@pytest.mark.parametrize(
    "fields",
    [
        {"ueid": ""},
        {"ueid": "07"},
        {"ueid": "-1"},
        {"ueid": "1e3"},
        {"ueid": "٣"},
        {"ueid": "9" * 79},
        {"driver": ""},
        {"driver": "570 158"},
        {"driver": "5" * 65},
        {"driver": "5\n"},
        {"vbios": ".5"},
        {"vbios": "96:00"},
    ],
    ids=repr,
)
def test_malformed_device_is_refused(fields: dict[str, str]) -> None:
    """What could be written in two ways, or is too long, is no device."""
    with pytest.raises(UsageError) as refused:
        Device(**{"ueid": "1", "driver": "570", "vbios": "96"} | fields)
    assert next(iter(fields)) in (refused.value.check or "")


def test_device_twice_and_too_many_devices_are_refused() -> None:
    """One GPU cannot stand for two."""
    with pytest.raises(UsageError, match="twice"):
        device_digest([_gpu("1"), _gpu("1", driver="571")])
    device_digest([_gpu(str(number)) for number in range(MAX_DEVICES)])
    with pytest.raises(UsageError, match="more than"):
        device_digest([_gpu(str(number)) for number in range(MAX_DEVICES + 1)])


def test_fields_cannot_be_shifted() -> None:
    """Characters moved from one field to its neighbour give another digest."""
    assert device_digest([_gpu("1", "57", "96")]) != device_digest([_gpu("1", "5", "796")])


@pytest.mark.parametrize(
    "call",
    [
        lambda: events(Measurement(bytes(48)), bank="sha256"),
        lambda: events(WORKLOAD, bytes(32), bank="sha256"),
        lambda: events(WORKLOAD, bank="sha1"),
        lambda: extend(bytes(32), bytes(32), bank="sha384"),
        lambda: extend(bytes(32), bytes(31), bank="sha256"),
    ],
)
def test_other_sizes_and_banks_are_refused(call: object) -> None:
    """Nothing is padded or cut."""
    with pytest.raises(UsageError):
        call()  # type: ignore[operator]
