"""RTMR0 with the host's ACPI tables: out of the log of an own boot, where all else in it is what is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from adyton.attest.tdx import parse_quote
from adyton.attest.tdx_boot import TABLES, check_replays, read_boot
from adyton.attest.tpm.event_log import SHA384, parse_event_log
from adyton.cli import main as command_line
from adyton.errors import Error, MalformedQuote, Mismatch, UsageError
from adyton.image.boot_events import ImageHashes, applications
from adyton.image.document import GuestImage, parse_image
from adyton.image.firmware import FirmwareFile
from adyton.image.guests import guests_of
from adyton.image.host_tables import empty_variables, variable_store_digest
from adyton.image.uki import UKI
from adyton.workflow.image import HostBoot, measure_image
from tests.support import ccel
from tests.support.image_files import firmware, write_small_image
from tests.support.tpm_factory import log_head

TDX = ((0x1000, 0x3000, 0xFFFFB000, 0x3000, 0, 1), (0, 0x1000, 0xFFFFA000, 0x1000, 1, 0))
REAL_STORE = "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6"
"""How CFV's digest begins in the real logs, and in Debian 13's OVMF.fd, which the guest image brings."""


@dataclass
class Case:
    """A small image with firmware, and the events of a boot of it."""

    folder: Path
    rtmr1: list[bytes]
    rtmr2: list[bytes]
    store: bytes

    @property
    def firmware(self) -> Path:
        """Firmware that can start TDX guests."""
        return self.folder / "OVMF.fd"

    def log(self, rtmr0: Sequence[bytes] | None = None) -> Path:
        """The log of a boot from the kernel."""
        path = self.folder / "CCEL"
        path.write_bytes(ccel.ccel(rtmr0 or ccel.settings(store=self.store), self.rtmr1, self.rtmr2))
        return path

    def measure(self, log: Path | None = None) -> GuestImage:
        """The document with the tables of this log."""
        found = measure_image(
            self.folder / "image",
            firmware_files=(self.firmware,),
            host_boot=HostBoot(log=log or self.log(), qemu="10.1", machine="q35, 2 GiB, 1 vCPU"),
        )
        assert found.image is not None
        assert found.differences == ()
        return found.image


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """An image whose firmware can start TDX guests."""
    write_small_image(tmp_path / "image")
    raw = firmware(tdx=TDX)
    (tmp_path / "OVMF.fd").write_bytes(raw)
    uki = UKI.parse((tmp_path / "image/adyton.efi").read_bytes())
    of = ImageHashes.create(uki, "sha384")
    leaving = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
    ends = [hashlib.sha384(text).digest() for text in leaving]
    store = variable_store_digest(FirmwareFile.parse(raw))
    assert store is not None
    return Case(tmp_path, [*applications(of, "kernel-boot"), *ends], [*of.sections, *of.kernel], store)


def test_log_of_an_own_boot_pins_the_tables(case: Case) -> None:
    """In the entries of this way to boot alone. The document parses again, and approves without leaving them open."""
    image = case.measure()
    boot = read_boot(case.log().read_bytes())
    assert {entry.boot for entry in image.tdx if entry.acpi is not None} == {"kernel-boot"}
    for entry in image.tdx:
        if entry.acpi is not None:
            assert entry.acpi.rtmr0.raw == boot.rtmrs[0]
            assert entry.acpi.tables is not None
            assert tuple(value.raw for value in entry.acpi.tables.values()) == ccel.ACPI
    assert parse_image(image.to_bytes()) == image
    guests = guests_of(image, "tdx")
    assert guests
    assert not any(guest.host_acpi for guest in guests)


FAULTS: dict[str, tuple[Callable[[Case], list[bytes]], str]] = {
    "secure-boot": (
        lambda case: ccel.settings(store=case.store, variables=[ccel.STORE] * 5),
        "variables of Secure Boot",
    ),
    "other-firmware": (lambda _case: ccel.settings(), "store of variables"),
    "no-separator": (lambda case: ccel.settings(store=case.store, separator=ccel.STORE), "the separator"),
    "fewer-tables": (lambda case: ccel.settings(store=case.store)[:10], "at least 11"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_log_of_another_boot_pins_nothing(case: Case, name: str) -> None:
    """Named, with what was expected."""
    events, match = FAULTS[name]
    with pytest.raises(Error, match=match):
        case.measure(case.log(events(case)))


def test_log_of_another_image_or_of_a_tpm_pins_nothing(case: Case) -> None:
    """RTMR1 and RTMR2 are compared whole."""
    case.rtmr1[0] = ccel.STORE
    with pytest.raises(UsageError, match="RTMR1 and RTMR2"):
        case.measure()
    for raw, error in ((log_head((SHA384,)), Mismatch), (b"no log", MalformedQuote)):
        (case.folder / "other").write_bytes(raw)
        with pytest.raises(error):
            case.measure(case.folder / "other")


def test_tables_of_a_document_are_its_makers_word(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured again without the log they are no difference, and left out; with it they are said."""
    image = case.measure()
    (case.folder / "image/image.json").write_bytes(image.to_bytes())
    found = measure_image(case.folder / "image", firmware_files=(case.firmware,))
    assert (found.differences, found.tables_unchecked) == ((), True)
    assert found.image is not None
    assert all(entry.acpi is None for entry in found.image.tdx)
    words = ["image", "measure", str(case.folder / "image"), "--acpi-log", str(case.log()), "--firmware"]
    words.append(str(case.firmware))
    with pytest.raises(SystemExit) as ended:
        command_line.main([*words, "--qemu", "10.1", "--machine", "q35"])
    shown = capsys.readouterr()
    assert not ended.value.code
    assert f"ACPI tables {ccel.ACPI[2].hex()}" in shown.out
    assert "it must be yours" in shown.err
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)
    assert ended.value.code == 2


def test_table_in_a_document_is_a_digest_with_a_known_name(case: Case) -> None:
    """As everything else in it."""
    document = json.loads(case.measure().to_bytes())
    entry = next(entry for entry in document["tdx"] if "acpi" in entry)
    for wrong in (
        {},
        {"loader": "11" * 48},
        {**entry["acpi"]["tables"], "dsdt": "11" * 48},
        dict.fromkeys(TABLES, "x"),
    ):
        entry["acpi"]["tables"] = wrong
        with pytest.raises(UsageError, match="tables"):
            parse_image(json.dumps(document).encode())


# --- real logs ---


@pytest.mark.shared_vectors
@pytest.mark.parametrize("name", ["ccel-live", "ccel-ovmf"])
def test_real_logs_have_this_form(shared_vectors: Path, name: str) -> None:
    """Two boots under QEMU and OVMF: empty variables as computed, and the store of Debian 13's firmware."""
    raw = (shared_vectors / f"evidence/eventlogs/{name}.bin").read_bytes()
    boot = read_boot(raw)
    assert boot.variables == empty_variables()
    assert boot.variable_store.hex().startswith(REAL_STORE)
    named = [event for event in parse_event_log(raw).events if event.data == b"ACPI DATA"]
    assert tuple(event.digest(SHA384) for event in named) == boot.acpi


@pytest.mark.shared_vectors
def test_real_log_replays_to_its_quote_and_to_no_other(shared_vectors: Path) -> None:
    """RTMR0 to RTMR2."""
    folder = shared_vectors / "evidence/eventlogs"
    boot = read_boot((folder / "ccel-live.bin").read_bytes())
    quote = parse_quote((folder / "quote-live.bin").read_bytes())
    check_replays(boot, quote)
    with pytest.raises(Mismatch) as caught:
        check_replays(read_boot((folder / "ccel-ovmf.bin").read_bytes()), quote)
    assert caught.value.check == "event log: RTMR0"
