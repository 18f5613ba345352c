"""SEV-SNP: real reports under AMD's roots, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adyton.attest import amd, snp
from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.collateral import AMDCollateral
from adyton.attest.roots import TrustRoots
from adyton.attest.snp import SNPReport, TCBVersion
from adyton.attest.status import TCBStatus
from adyton.errors import BadChain, EvidenceError, MalformedQuote, Mismatch

pytestmark = pytest.mark.shared_vectors

Entry = dict[str, Any]


@pytest.fixture(scope="module")
def folder(shared_vectors: Path) -> Path:
    """The folder of attestation vectors."""
    return shared_vectors / "evidence"


@pytest.fixture(scope="module")
def entries(folder: Path) -> list[Entry]:
    """The SEV-SNP reports of the index that are stated to be valid."""
    found = json.loads((folder / "INDEX.json").read_text())["entries"]
    return [entry for entry in found if entry["kind"] == "snp-report" and entry.get("expected") == "valid"]


def collateral_of(folder: Path, entry: Entry) -> AMDCollateral:
    """Leaf, issuer and ARK of a report."""
    ask, ark, asvk = split_pem((folder / entry["trust"]).read_text(), "AMD chain")
    leaf = (folder / entry["integrity"]["leaf"]).read_bytes()
    return AMDCollateral(leaf=leaf, ask=asvk if entry["integrity"]["leaf_kind"] == "vlek" else ask, ark=ark)


def test_reports_all_verify_under_amds_roots(folder: Path, entries: list[Entry]) -> None:
    """Reports of versions 2, 3 and 5, under VCEK and VLEK, of Milan, Genoa and Turin."""
    products: set[object] = set()
    versions: set[int] = set()
    for entry in entries:
        raw = (folder / entry["file"]).read_bytes()
        report = snp.parse_report(raw)
        assert report.to_bytes() == raw
        now = datetime.fromtimestamp(entry["verify_at"], UTC)
        verified = amd.verify(report, collateral_of(folder, entry), TrustRoots(), now)
        stated = entry["parsed"]
        assert verified.tee == "snp"
        assert verified.status is TCBStatus.NOT_STATED
        assert verified.measurement.hex() == stated["measurement"]
        assert verified.report_data.hex() == stated["report_data"]
        assert verified.debug == stated["policy_debug"]
        tcb = TCBVersion.parse(report.field("reported_tcb"), turin=verified.platform["product"] == "Turin")
        assert (tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode) == tuple(
            stated["reported_tcb"][part] for part in ("bl", "tee", "snp", "ucode")
        )
        assert not verified.revocation_checked
        products.add(verified.platform["product"])
        versions.add(report.version)
    assert products == {"Milan", "Genoa", "Turin"}
    assert versions == {2, 3, 5}
    assert len(entries) == 9


def test_reports_with_swapped_certificates_are_refused(folder: Path, entries: list[Entry]) -> None:
    """A certificate of another chip or TCB of the same product does not verify the report."""
    milan = [entry for entry in entries if "milan" in entry["file"] and entry["integrity"]["leaf_kind"] == "vcek"]
    for entry in milan:
        for other in milan:
            if other is entry or other["parsed"]["chip_id"] == entry["parsed"]["chip_id"]:
                continue
            collateral = collateral_of(folder, other)
            now = datetime.fromtimestamp(entry["verify_at"], UTC)
            leaf = parse_certificate(collateral.leaf, "VCEK").window
            if not leaf.not_before <= now <= leaf.not_after:
                continue
            with pytest.raises((BadChain, Mismatch)):
                amd.verify(snp.parse_report((folder / entry["file"]).read_bytes()), collateral, TrustRoots(), now)


def test_reports_with_any_flipped_byte_are_refused(folder: Path, entries: list[Entry]) -> None:
    """No byte of a report can be changed."""
    entry = entries[0]
    raw = (folder / entry["file"]).read_bytes()
    collateral = collateral_of(folder, entry)
    now = datetime.fromtimestamp(entry["verify_at"], UTC)
    for at in range(0, len(raw), 29):
        spoilt = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        with pytest.raises(EvidenceError):
            amd.verify(snp.parse_report(spoilt), collateral, TrustRoots(), now)


def test_report_of_1185_bytes_is_refused(folder: Path) -> None:
    """One byte too many is one too many."""
    with pytest.raises(MalformedQuote, match="1184"):
        snp.parse_report((folder / "snp/bad-report-signature.report.bin").read_bytes())


def test_report_with_legacy_bad_vcek_is_refused(folder: Path, entries: list[Entry]) -> None:
    """A VCEK that does not belong to the report is refused."""
    entry = next(entry for entry in entries if entry["file"] == "snp/milan-v2-trustee.report.bin")
    good = collateral_of(folder, entry)
    bad = AMDCollateral(leaf=(folder / "snp/bad-vcek-legacy.der").read_bytes(), ask=good.ask, ark=good.ark)
    report = snp.parse_report((folder / entry["file"]).read_bytes())
    with pytest.raises(EvidenceError):
        amd.verify(report, bad, TrustRoots(), datetime.fromtimestamp(entry["verify_at"], UTC))


def test_vcek_with_serial_number_zero_is_read_without_warning(folder: Path) -> None:
    """AMD's serial number 0 is read as 0, the signed bytes stay untouched, and nothing warns (warnings are errors)."""
    raw = (folder / "snp/milan-v2-trustee.vcek.der").read_bytes()
    certificate = parse_certificate(raw, "VCEK")
    assert certificate.serial == 0
    assert certificate.tbs in raw
    chip = amd.parse_chip_certificate(certificate)
    assert chip.product == "Milan-B0"
    assert len(chip.hardware_id or b"") == 64


def test_amd_collateral_round_trips_as_json(folder: Path, entries: list[Entry]) -> None:
    """The JSON document gives the same certificates back."""
    collateral = collateral_of(folder, entries[0])
    assert AMDCollateral.from_dict(json.loads(collateral.to_json())) == collateral


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version 1"),
        ({"version": 6}, "version 6"),
        ({"signature_algorithm": 2}, "ECDSA"),
        ({"policy": 0}, "bit 17"),
        ({"reserved4": bytes(151) + b"\x01"}, "reserved"),
    ],
)
def test_report_that_is_none_is_malformed(changes: dict[str, bytes | int], message: str) -> None:
    """Version, algorithm, policy bit 17 and reserved fields are checked when parsing."""
    fields: dict[str, bytes | int] = {"version": 3, "signature_algorithm": 1, "policy": 1 << 17}
    with pytest.raises(MalformedQuote, match=message):
        snp.parse_report(SNPReport.build(**(fields | changes)).to_bytes())


def test_tcb_version_round_trips_in_both_layouts() -> None:
    """Milan's and Turin's layouts of TCB_VERSION."""
    for turin in (False, True):
        raw = bytes([1, 2, 3, 4, 0, 0, 0, 8]) if turin else bytes([1, 2, 0, 0, 0, 0, 7, 8])
        assert TCBVersion.parse(raw, turin=turin).to_bytes() == raw
    low, high = TCBVersion(1, 2, 3, 4), TCBVersion(1, 3, 2, 4)
    assert low.below(high) == ["tee"]
    assert high.below(low) == ["snp"]
