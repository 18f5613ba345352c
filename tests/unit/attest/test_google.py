"""Google's firmware endorsements: accepted, and each fault refused by its check."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from adyton.attest import google
from adyton.attest.google import parse_endorsement, verify_endorsement
from adyton.errors import EvidenceError, MalformedQuote
from adyton.workflow.verify import verify
from tests.support.amd_factory import NOW as AMD_NOW
from tests.support.amd_factory import SNPScenario
from tests.support.google_factory import LONG, NOW, EndorsementScenario, number, octets

SNP, MRTD = b"\x11" * 48, b"\x22" * 48


def scenario() -> EndorsementScenario:
    """A good one."""
    return EndorsementScenario(snp=[SNP, b"\x33" * 48], tdx=[MRTD])


def check(made: EndorsementScenario, *, tee: str = "snp", measurement: bytes = SNP) -> google.GoogleFirmware:
    """Verify what was made."""
    return verify_endorsement(
        parse_endorsement(made.built()), [made.root()], tee=tee, measurement=measurement, now=NOW, root=made.pin
    )


def test_endorsement_says_whose_firmware_it_is() -> None:
    """For SEV-SNP by any number of processors, for TDX by MRTD."""
    told = check(scenario()).to_dict()
    assert told["endorsed_by"] == "Google"
    assert told["svn"] == 2
    assert told["commit"] == "ab" * 20
    assert check(scenario(), tee="tdx", measurement=MRTD).svn == 3


FAULTS: dict[str, tuple[Callable[[EndorsementScenario], object], str]] = {
    "signer of another issuer": (lambda it: setattr(it, "leaf_issuer", "x"), "firmware signer: issuer and signature"),
    "signer signed by another": (
        lambda it: setattr(it, "leaf_signer", "other"),
        "firmware signer: issuer and signature",
    ),
    "root is no CA": (lambda it: setattr(it, "root_ca", False), "firmware signer: issuer and signature"),
    "signer expired": (
        lambda it: setattr(it, "leaf_window", (LONG[0], NOW - timedelta(days=1))),
        "firmware signer: valid now",
    ),
    "root not yet valid": (
        lambda it: setattr(it, "root_window", (NOW + timedelta(days=1), LONG[1])),
        "Google's firmware root: valid now",
    ),
    "signed by another": (lambda it: setattr(it, "signer", "other"), "firmware endorsement: signature"),
    "another firmware": (lambda it: it.snp.clear(), "firmware endorsement: lists the launch measurement"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_refused_by_its_check(name: str) -> None:
    """Each is validly signed but for its fault."""
    made = scenario()
    FAULTS[name][0](made)
    with pytest.raises(EvidenceError) as caught:
        check(made)
    assert caught.value.check == FAULTS[name][1]
    assert caught.value.remedy


def test_root_is_pinned() -> None:
    """A root that is not Google's counts for nothing, whoever signed it."""
    made = scenario()
    with pytest.raises(EvidenceError) as caught:
        verify_endorsement(parse_endorsement(made.built()), [made.root()], tee="snp", measurement=SNP, now=NOW)
    assert caught.value.check == "Google's firmware root: pinned"


def test_measurement_of_the_other_tee_does_not_count() -> None:
    """A SEV-SNP measurement is no MRTD."""
    with pytest.raises(EvidenceError):
        check(scenario(), tee="tdx", measurement=SNP)


@pytest.mark.parametrize(
    "more",
    [
        octets(5, b"x" * 48),
        number(1, 5),
        b"\x0b",
        b"\x00\x00",
        b"\x48\x80\x00",
        b"\x48" + b"\xff" * 10,
        b"\x4a\xff",
        octets(7, octets(2, octets(2, b"short"))),
    ],
)
def test_protocol_buffer_that_lies_is_refused(more: bytes) -> None:
    """Twice the same field, groups, the field 0, long numbers, cut fields."""
    made = scenario()
    made.more = more
    with pytest.raises(MalformedQuote):
        parse_endorsement(made.built())


def test_field_that_google_adds_is_left_out() -> None:
    """Inside the signed bytes only."""
    made = scenario()
    made.more = octets(30, b"new") + number(31, 7) + b"\xfd\x01" + bytes(4)
    assert check(made).svn == 2
    with pytest.raises(MalformedQuote):
        parse_endorsement(scenario().built() + number(3, 1))


def test_verify_shows_what_google_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the collateral: the endorsement and Google's root. It changes no verdict."""
    report = SNPScenario().built()
    made = EndorsementScenario(snp=[SNPScenario().fields["measurement"]])  # type: ignore[list-item]
    (tmp_path / "collateral.json").write_text(report.collateral.to_json())
    (tmp_path / "root.crt").write_bytes(made.root())
    (tmp_path / "firmware.binarypb").write_bytes(made.built())
    monkeypatch.setattr("adyton.attest.google.verify_endorsement.__kwdefaults__", {"root": made.pin})
    monkeypatch.setattr("adyton.workflow.verify.TrustRoots", lambda: report.roots)
    found = verify(report.report, collateral=[tmp_path], at=AMD_NOW, policy={"tees": ["snp"]})
    assert found.to_dict()["firmware"]["endorsed_by"] == "Google"
    assert "endorsed by Google on" in found.to_text()
    assert found.to_text().splitlines()[-1].startswith("verdict")
    assert not found
    (tmp_path / "firmware.binarypb").write_bytes(EndorsementScenario(snp=[SNP]).built())
    other = verify(report.report, collateral=[tmp_path], at=AMD_NOW, policy={"tees": ["snp"]})
    assert other.to_dict()["firmware"]["endorsed_by"] is None
    assert "NOT endorsed by Google" in other.to_text()
    assert other.assessment.report is not None
