"""MRTD: the calls of the TDX module, in both orders of pages. Not compared with hardware."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.image.firmware import MAX_MEASURED_BYTES, FirmwareFile
from adyton.image.measure_tdx import mrtd
from tests.support.image_files import firmware

DEBIAN_12 = Path("/usr/share/ovmf/OVMF.fd")
DEBIAN_12_SHA256 = "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"

SECTIONS = (
    (0x1000, 0x3000, 0xFFFF9000, 0x3000, 0, 1),  # measured code
    (0x0, 0x1000, 0xFFFF8000, 0x1000, 1, 0),  # variables: added only
    (0, 0, 0x810000, 0x2000, 3, 0),  # memory without content
    (0, 0, 0x820000, 0x1000, 2, 2),  # added by the guest: not at all
)


def test_mrtd_is_the_hash_over_the_calls() -> None:
    """Written out by hand: one ADD for each page, 16 EXTEND for each measured page."""
    raw = firmware(sev=(), hashes_at=None, reset=None, tdx=SECTIONS)

    def add(address: int) -> bytes:
        return b"MEM.PAGE.ADD\0\0\0\0" + address.to_bytes(8, "little") + bytes(104)

    def extend(page: int) -> bytes:
        out = b""
        for chunk in range(16):
            out += (
                b"MR.EXTEND\0\0\0\0\0\0\0" + (0xFFFF9000 + page * 4096 + chunk * 256).to_bytes(8, "little") + bytes(104)
            )
            start = 0x1000 + page * 4096 + chunk * 256
            out += raw[start : start + 256]
        return out

    pages = [0xFFFF9000, 0xFFFFA000, 0xFFFFB000]
    others = add(0xFFFF8000) + add(0x810000) + add(0x811000)
    two = b"".join(map(add, pages)) + b"".join(map(extend, range(3))) + others
    one = b"".join(add(address) + extend(index) for index, address in enumerate(pages)) + others
    parsed = FirmwareFile.parse(raw)
    assert mrtd(parsed, "two-pass") == hashlib.sha384(two).digest()
    assert mrtd(parsed, "single-pass") == hashlib.sha384(one).digest()


@pytest.mark.skipif(not DEBIAN_12.exists(), reason="no /usr/share/ovmf/OVMF.fd (apt-get install ovmf)")
def test_mrtd_of_debians_firmware_is_as_computed_elsewhere() -> None:
    """Debian 12's file; another implementation gave the same two values."""
    raw = DEBIAN_12.read_bytes()
    if hashlib.sha256(raw).hexdigest() != DEBIAN_12_SHA256:
        pytest.skip("/usr/share/ovmf/OVMF.fd is not that of ovmf 2022.11-6+deb12u2")
    parsed = FirmwareFile.parse(raw)
    assert mrtd(parsed, "two-pass").hex().startswith("acccbcc870a381ad")
    assert mrtd(parsed, "single-pass").hex().startswith("4c7206f0f483c524")


def test_firmware_without_metadata_is_refused() -> None:
    """A file of CODE without VARS, for example."""
    with pytest.raises(UsageError, match="cannot start a TDX guest"):
        mrtd(FirmwareFile.parse(firmware()), "single-pass")


@pytest.mark.parametrize(
    "section",
    [
        (0, 0x1000, 0x800, 0x1000, 0, 1),  # no whole page's address
        (0, 0x1000, 0x1000, 0x1800, 0, 1),  # no whole pages
        (0, 0x2000, 0x1000, 0x1000, 0, 1),  # more in the file than in memory
        (0x7800, 0x1000, 0x1000, 0x1000, 0, 1),  # beyond the file
        (0, 0, 0x1000, MAX_MEASURED_BYTES + 4096, 0, 0),  # endless work
    ],
)
def test_impossible_sections_are_refused(section: tuple[int, int, int, int, int, int]) -> None:
    """What a section says is held against the file and against a limit of work."""
    with pytest.raises(UsageError, match="TDX section"):
        FirmwareFile.parse(firmware(tdx=(section,)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw[:-1], "size of the firmware"),
        (lambda raw: raw[: -32 - 18] + b"\xff\xff" + raw[-32 - 16 :], "table of the firmware"),
        (lambda raw: raw[: -32 - 18 - 18] + b"\0\0" + raw[-32 - 18 - 16 :], "table of the firmware"),
        (lambda raw: raw.replace(b"ASEV", b"BSEV"), "metadata of the firmware"),
        (lambda raw: raw.replace(b"ASEV\x34\0\0\0\1", b"ASEV\x34\0\0\0\2"), "metadata of the firmware"),
    ],
)
def test_damaged_tables_are_refused(change: object, match: str) -> None:
    """Sizes, GUIDs, magic and version."""
    assert callable(change)
    with pytest.raises(UsageError, match=match):
        FirmwareFile.parse(change(firmware()))
