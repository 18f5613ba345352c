"""PE files and kernel images: what was put together is found again, and everything else is refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.attest.tpm.event_log import SHA384, parse_event_log
from adyton.attest.tpm.pe import authenticode
from adyton.errors import UsageError
from adyton.image.boot_events import ImageHashes, applications, load_options, predict, replay, tdx_registers
from adyton.image.cpio import as_booted
from adyton.image.pe import PEFile, add_sections
from adyton.image.uki import UKI, build_uki
from tests.support.image_files import kernel, pe_file, stub

LINE = "adyton.root=00 panic=-1"


def uki(**changed: object) -> bytes:
    """A kernel image; arguments of `build_uki` can be given."""
    parts = {"linux": kernel(), "initrd": b"initrd", "command_line": LINE, "os_release": "ID=a\n", "kernel": "7.3"}
    return build_uki(stub(), **(parts | changed))  # type: ignore[arg-type]


def test_sections_are_found_again_with_their_exact_content() -> None:
    """The stub's own stay, and the added ones have no padding."""
    parsed = UKI.parse(uki())
    assert parsed.sections[".linux"] == kernel() == parsed.linux
    assert parsed.sections[".initrd"] == b"initrd"
    assert parsed.command_line == LINE
    assert parsed.sections[".text"] == b"content of .text"
    ends = [section.address for section in parsed.file.sections]
    assert ends == sorted(ends)
    assert all(address % 4096 == 0 for address in ends)
    assert uki() == uki()


def test_same_parts_give_the_same_authenticode_hash_and_every_part_counts() -> None:
    """Kernel, initrd, command line, system's name and kernel's release are all covered."""
    found = {
        authenticode(raw)
        for raw in (
            uki(),
            uki(linux=kernel(b"other")),
            uki(initrd=b"Initrd"),
            uki(command_line=LINE + " init=/bin/sh"),
            uki(os_release="ID=b\n"),
            uki(kernel="7.4"),
        )
    }
    assert len(found) == 6


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "signature of the PE file"),
        (b"MZ".ljust(0x3C, b"\0") + b"\xff\xff\xff\xff", "signature"),
        (stub().replace(b"\x64\x86", b"\x4c\x01", 1), "kind of the PE file"),
        (stub()[:0x300], "headers of the PE file"),
        (stub()[:-512], "place of the section"),
        (pe_file({"": b"x"}), "name of a section"),
        (pe_file({f".s{n}": b"x" for n in range(65)}, headers_bytes=0x1000), "sections of the PE file"),
    ],
)
def test_files_that_are_no_plain_pe_are_refused(raw: bytes, match: str) -> None:
    """Machine, sizes, names and places are checked."""
    with pytest.raises(UsageError, match=match):
        PEFile.parse(raw)


def _with(at: int, number: int, raw: bytes | None = None) -> bytes:
    """The stub with another number of 32 bits at an offset of its optional header."""
    out = bytearray(raw or stub())
    struct.pack_into("<I", out, 0x58 + at, number)
    return bytes(out)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (_with(60, 0x100), "headers of the PE file"),
        (_with(108, 17), "data directories"),
        (_with(112 + 32, 0x1000), "certificates"),
        (_with(240 + 8, 1 << 31), "size of the section"),
        (_with(240 + 40 + 20, 0x600), "place of the section"),  # .rodata over .text
    ],
)
def test_headers_that_lie_are_refused(raw: bytes, match: str) -> None:
    """A size or an offset that does not fit the rest."""
    with pytest.raises(UsageError, match=match):
        PEFile.parse(raw)


def test_section_that_is_not_the_images_is_refused() -> None:
    """The stub would take a device tree, microcode or a second profile from it."""
    for name in (".dtb", ".ucode", ".profile", ".pcrsig"):
        raw = add_sections(uki(), {name: b"evil"})
        with pytest.raises(UsageError, match="sections of the kernel image"):
            UKI.parse(raw)
    twice = bytearray(uki())
    twice[twice.index(b".uname\0\0") : twice.index(b".uname\0\0") + 8] = b".osrel\0\0"
    with pytest.raises(UsageError, match="names of the sections"):
        UKI.parse(bytes(twice))


def test_sections_that_cannot_be_added_are_refused() -> None:
    """One that is there already, and more than the headers have room for."""
    with pytest.raises(UsageError, match="none of those to add"):
        add_sections(stub(), {".text": b""})
    with pytest.raises(UsageError, match="room for"):
        add_sections(stub(), {f".s{n}": b"x" for n in range(40)})


@pytest.mark.parametrize("line", ["é", "x" * 2048])
def test_command_line_beyond_the_kernels_limits_is_refused(line: str) -> None:
    """ASCII, and at most 2047 characters."""
    with pytest.raises((UsageError, UnicodeEncodeError)):
        uki(command_line=line)


# --- registers ---------------------------------------------------------------------------------------------------


def _manual(bank: str, digests: list[bytes]) -> bytes:
    value = bytes(hashlib.new(bank).digest_size)
    for digest in digests:
        value = hashlib.new(bank, value + digest).digest()
    return value


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_pcr_4_and_11_are_the_events_of_the_specification(bank: str) -> None:
    """Written out by hand for both ways to boot."""
    raw = uki()
    parsed = UKI.parse(raw)
    of = ImageHashes.create(parsed, bank)  # type: ignore[arg-type]

    def hashed(data: bytes) -> bytes:
        return hashlib.new(bank, data).digest()

    own, linux = authenticode(raw, bank), authenticode(kernel(), bank)  # type: ignore[arg-type]
    calling, separator = hashed(b"Calling EFI Application from Boot Option"), hashed(bytes(4))
    assert replay(applications(of, "kernel-boot"), bank) == _manual(bank, [own, calling, separator, linux])
    assert replay(applications(of, "disk-boot"), bank) == _manual(bank, [calling, separator, own, linux])
    events = []
    for name in (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"):
        events += [hashed(name.encode() + b"\0"), hashed(parsed.sections[name])]
    assert replay(of.sections, bank) == _manual(bank, events)
    found = predict(parsed, b"table")
    assert found["disk-boot"].pcrs[bank]["11"] == _manual(bank, events)
    assert not any(found["kernel-boot"].pcrs[bank]["12"] + found["kernel-boot"].pcrs[bank]["13"])


def test_rtmr_1_and_2_take_the_events_of_their_pcrs() -> None:
    """RTMR1: PCR 2 to 6 with one separator. RTMR2: PCR 8 to 15."""
    parsed = UKI.parse(uki())
    of = ImageHashes.create(parsed, "sha384")

    def hashed(data: bytes) -> bytes:
        return hashlib.sha384(data).digest()

    ends = [hashed(b"Exit Boot Services Invocation"), hashed(b"Exit Boot Services Returned with Success")]
    calling, separator = hashed(b"Calling EFI Application from Boot Option"), hashed(bytes(4))
    found = predict(parsed, b"table")
    disk = [calling, separator, hashed(b"table"), of.uki, of.linux, *ends]
    assert found["disk-boot"].rtmr1 == _manual("sha384", disk)
    assert found["kernel-boot"].rtmr1 == _manual("sha384", [of.uki, calling, separator, of.linux, *ends])
    kernels = [hashed(load_options(LINE)), hashed(as_booted(b"initrd", b"ID=a\n"))]
    assert found["disk-boot"].rtmr2 == found["kernel-boot"].rtmr2 == _manual("sha384", [*of.sections, *kernels])


@pytest.mark.shared_vectors
def test_rtmr1_takes_its_events_in_the_order_of_a_real_boot_at_google(shared_vectors: Path) -> None:
    """A log of a Google machine that started a kernel image from its disk: with that log's own digests, its RTMR1."""
    log = parse_event_log((shared_vectors / "evidence/eventlogs/ccel-gcp.bin").read_bytes())
    events = [event for event in log.events if event.index == 2]
    _, _, table, image, linux, _, _ = events
    of = ImageHashes("sha384", image.digest(SHA384), linux.digest(SHA384), (), ())
    assert hashlib.sha384(table.data).digest() == table.digest(SHA384)
    assert tdx_registers(of, "disk-boot", table.data)[0] == log.replay(SHA384)[2]


def test_load_options_are_utf_16_with_a_nul() -> None:
    """As the kernel's stub measures them."""
    assert load_options("ab") == b"a\0b\0\0\0"


def test_archive_of_the_stub_has_the_systems_name() -> None:
    """Padded to four bytes, with a folder and a file of fixed modes. A real boot measured the same bytes."""
    raw = as_booted(b"12345", b"ID=a\n")
    assert raw[:8] == b"12345\0\0\0"
    assert raw[8:22] == b"07070100000001"
    assert b"000041ed" not in raw
    assert b"0000416d" in raw
    assert b".extra/os-release\0" in raw
    assert raw.endswith(b"0000000B00000000TRAILER!!!\0\0\0\0")


def test_kernel_that_is_no_pe_file_is_refused() -> None:
    """Firmware would not start it, so there is nothing to predict."""
    parsed = UKI.parse(uki())
    broken = replace(parsed, sections={**parsed.sections, ".linux": b"no kernel"})
    change: Callable[[], object] = lambda: predict(broken, b"")  # noqa: E731
    with pytest.raises(Exception, match="PE"):
        change()
