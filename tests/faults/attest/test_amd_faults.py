"""Named faults of SEV-SNP evidence: each is validly signed, refused by one check, and accepted without that check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest

from adyton.attest import amd, snp
from adyton.attest.checks import Checks
from adyton.attest.report import VerifiedReport
from adyton.attest.snp import TCBVersion
from adyton.errors import BadChain, EvidenceError, MalformedQuote, Mismatch, Revoked, Stale
from tests.faults.attest.test_dcap_faults import disable
from tests.support.amd_factory import LONG, NOW, BuiltReport, SNPScenario

PAST = (LONG[0], NOW - timedelta(seconds=1))
FUTURE = (NOW + timedelta(seconds=1), LONG[1])


@dataclass(frozen=True)
class Fault:
    """One way to spoil a scenario."""

    name: str
    spoil: Callable[[SNPScenario], None]
    check: str
    error: type[EvidenceError]
    vlek: bool = False


def _set(path: str, value: object) -> Callable[[SNPScenario], None]:
    def spoil(scenario: SNPScenario) -> None:
        holder, _, field = path.partition(".")
        target = getattr(scenario, holder) if field else scenario
        if isinstance(target, dict):
            target[field] = value
        else:
            setattr(target, field or holder, value)

    return spoil


def _rename_ark(scenario: SNPScenario) -> None:
    scenario.ark.common_name = scenario.ark.issuer = scenario.ask.issuer = scenario.crl_issuer = "ARK-Somebody"


def _rename_ask(scenario: SNPScenario) -> None:
    scenario.ask.common_name = scenario.leaf_issuer = "SEV-Somebody"


def _another_chip(scenario: SNPScenario) -> None:
    scenario.fields |= {"key_info": 1 << 1, "chip_id": bytes(range(1, 65))}


def _no_chip(scenario: SNPScenario) -> None:
    scenario.hardware_id = None
    scenario.fields["chip_id"] = bytes(64)


FAULTS = [
    Fault("wrong-root", _set("pinned", False), "ARK: pinned", BadChain),
    Fault("ark-name", _rename_ark, "ARK: name", BadChain),
    Fault("ark-of-another-issuer", _set("ark.issuer", "Somebody"), "ARK: issuer", BadChain),
    Fault("ark-signed-by-another", _set("ark.signer", "other"), "ARK: signature", BadChain),
    Fault("ask-name", _rename_ask, "ASK: name", BadChain),
    Fault("ask-of-another-issuer", _set("ask.issuer", "Somebody"), "ASK: issuer", BadChain),
    Fault("ask-signed-by-another", _set("ask.signer", "other"), "ASK: signature", BadChain),
    Fault("ask-is-no-ca", _set("ask.ca", False), "ASK: is a CA", BadChain),
    Fault("leaf-name", _set("leaf_name", "SEV-Something"), "VCEK: name", BadChain),
    Fault("leaf-of-another-issuer", _set("leaf_issuer", "Somebody"), "VCEK: issuer", BadChain),
    Fault("leaf-signed-by-another", _set("leaf_signer", "other"), "VCEK: signature", BadChain),
    Fault("vlek-name", _set("leaf_name", "SEV-VCEK"), "VLEK: name", BadChain, vlek=True),
    Fault("vlek-of-another-issuer", _set("leaf_issuer", "Somebody"), "VLEK: issuer", BadChain, vlek=True),
    Fault("vlek-signed-by-another", _set("leaf_signer", "other"), "VLEK: signature", BadChain, vlek=True),
    Fault("vlek-without-provider", _set("provider", None), "VLEK: names a provider", Mismatch, vlek=True),
    Fault("vlek-expired", _set("leaf_window", PAST), "VLEK: valid now", Stale, vlek=True),
    Fault("crl-of-another", _set("crl_issuer", "Somebody"), "AMD CRL: issuer", Mismatch),
    Fault("crl-signed-by-another", _set("crl_signer", "other"), "AMD CRL: signature", BadChain),
    Fault("revoked-ask", _set("crl_serials", [7, 2]), "ASK: not revoked", Revoked),
    Fault("leaf-expired", _set("leaf_window", PAST), "VCEK: valid now", Stale),
    Fault("leaf-not-yet-valid", _set("leaf_window", FUTURE), "VCEK: valid now", Stale),
    Fault("ask-expired", _set("ask.window", PAST), "ASK: valid now", Stale),
    Fault("ark-not-yet-valid", _set("ark.window", FUTURE), "ARK: valid now", Stale),
    Fault("crl-expired", _set("crl_window", PAST), "AMD CRL: valid now", Stale),
    Fault("report-signed-by-another", _set("signer", "another chip"), "report: signature", BadChain),
    Fault("product-of-another", _set("certificate_product", "Genoa"), "product", Mismatch),
    Fault(
        "certificate-of-another-tcb",
        _set("certificate_tcb", TCBVersion(4, 0, 24, 220)),
        "TCB: certificate is for the reported one",
        Mismatch,
    ),
    Fault(
        "certificate-of-another-chip", _set("hardware_id", bytes(64)), "chip id: certificate is for this chip", Mismatch
    ),
    Fault("chip-key-masked-and-another-chip", _another_chip, "chip id: certificate is for this chip", Mismatch),
    Fault("chip-id-masked-and-none-certified", _no_chip, "chip id: certificate is for this chip", Mismatch),
    Fault("no-signing-key", _set("fields.key_info", 7 << 2), "signing key", MalformedQuote),
]


def build(fault: Fault) -> BuiltReport:
    """The spoilt scenario, signed."""
    scenario = SNPScenario(vlek=fault.vlek)
    fault.spoil(scenario)
    return scenario.built()


def verify(built: BuiltReport, checks: Checks | None = None) -> VerifiedReport:
    """Verify what was built."""
    return amd.verify(snp.parse_report(built.report), built.collateral, built.roots, built.now, checks=checks)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_snp_fault_is_refused_by_its_check_and_by_no_other(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fault is refused by the check that it is made for, and accepted with that check alone disabled."""
    built = build(fault)
    with pytest.raises(fault.error) as caught:
        verify(built)
    assert caught.value.check == fault.check
    assert caught.value.expected
    disable(monkeypatch, fault.check)
    assert verify(built).tee == "snp"


def test_snp_faults_cover_every_check() -> None:
    """Every check that a verification makes has a fault."""
    made: set[str] = set()
    for scenario in (SNPScenario(), SNPScenario(vlek=True)):
        checks = Checks()
        verify(scenario.built(), checks)
        made |= {check.name for check in checks.done}
    assert made == {fault.check for fault in FAULTS}


@pytest.mark.parametrize("scenario", [{}, {"product": "Turin"}, {"vlek": True}], ids=["milan", "turin", "vlek"])
def test_snp_scenario_verifies_under_test_roots(scenario: dict[str, object]) -> None:
    """The scenarios are good before they are spoilt."""
    report = verify(SNPScenario(**scenario).built())  # type: ignore[arg-type]
    assert report.revocation_checked
    assert report.platform["product"] in ("Milan", "Turin")


@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize("key_info", [0, 1 << 1], ids=["key-in-the-clear", "key-masked"])
def test_report_with_a_masked_chip_id_is_genuine(product: str, key_info: int) -> None:
    """A host may mask the chip id (zeros, no bit says so) and the chip key (a bit): neither makes a report false.

    The certificate of the key that signed names the chip.
    """
    scenario = SNPScenario(product=product)
    clear = verify(scenario.built())
    scenario.fields |= {"chip_id": bytes(64), "key_info": key_info}
    masked = verify(scenario.built())
    assert masked.platform["chip_id_masked"] is True
    assert clear.platform["chip_id_masked"] is False
    assert masked.platform["chip_id"] == clear.platform["chip_id"] == (scenario.hardware_id or b"").ljust(64, b"\0")


def test_report_under_a_vlek_names_no_chip() -> None:
    """A VLEK belongs to a provider: there is no chip id, not one of zeros."""
    assert verify(SNPScenario(vlek=True).built()).platform["chip_id"] is None
