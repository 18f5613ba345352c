"""Named faults of SGX and TDX evidence: each is validly signed, refused by one check, and accepted without that check.

The cases cover every check that a verification makes; a test compares the two lists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from adyton.attest import dcap, sgx, tdx
from adyton.attest.checks import Checks
from adyton.attest.report import VerifiedReport
from adyton.attest.tcbinfo import parse_tcb_info
from adyton.errors import BadChain, EvidenceError, MalformedQuote, Mismatch, Revoked, Stale
from tests.support.evidence_factory import LONG, MONTH, NOW, Built, Cert, Scenario, Window, pem, stamp

PAST: Window = (LONG[0], NOW - timedelta(seconds=1))
FUTURE: Window = (NOW + timedelta(seconds=1), LONG[1])


@dataclass(frozen=True)
class Fault:
    """One way to spoil a scenario."""

    name: str
    spoil: Callable[[Scenario], None]
    check: str
    error: type[EvidenceError]
    also: tuple[str, ...] = ()
    """The same check where the same certificate or signature is met again."""
    tdx: bool = False
    td_size: int = 584
    tampers: Callable[[Built], Built] | None = None


def _other(cert: Cert, **changes: object) -> Cert:
    return replace(copy.copy(cert), **changes)  # type: ignore[arg-type]


def _set(path: str, value: object) -> Callable[[Scenario], None]:
    """Set an attribute `a.b` of a scenario, or an item where `a` is a dictionary."""

    def spoil(scenario: Scenario) -> None:
        holder, _, name = path.partition(".")
        target = getattr(scenario, holder) if name else scenario
        if isinstance(target, dict):
            target[name] = value
        else:
            setattr(target, name or holder, value)

    return spoil


def _crl_ca(**changes: object) -> Callable[[Scenario], None]:
    def spoil(scenario: Scenario) -> None:
        scenario.crl_ca = _other(scenario.ca, **changes)

    return spoil


def _rename_ca(scenario: Scenario) -> None:
    scenario.ca.common_name = "Test SGX PCK Platform"
    scenario.leaf.issuer = scenario.pck_crl.issuer = "Test SGX PCK Platform"


def _rename_root(scenario: Scenario) -> None:
    for cert in (scenario.root, scenario.ca, scenario.signer, scenario.qe_signer):
        cert.issuer = "Test Root"
    scenario.root.common_name = scenario.root_crl.issuer = "Test Root"


def _other_crl_ca(scenario: Scenario) -> None:
    scenario.crl_ca = _other(scenario.ca, key="ca of another platform")
    scenario.pck_crl.signer = "ca of another platform"


def _other_root_in_collateral(scenario: Scenario) -> None:
    other = _other(scenario.root, serial=99)
    scenario.crl_root = scenario.signer_root = scenario.qe_signer_root = other
    scenario.other_pins = [other]


def _tdx_tcb_info(scenario: Scenario) -> None:
    scenario.tcb_info = Scenario(tdx=True).tcb_info


def _swap_document_signatures(built: Built) -> Built:
    good = built.collateral
    swapped = replace(
        good, tcb_info_signature=good.qe_identity_signature, qe_identity_signature=good.tcb_info_signature
    )
    return built._replace(collateral=swapped)


def _swap_quote_signatures(built: Built) -> Built:
    quote = sgx.parse_quote(built.quote)
    signature = quote.signature
    swapped = replace(signature, signature=signature.qe_report_signature, qe_report_signature=signature.signature)
    return built._replace(quote=replace(quote, signature=swapped).to_bytes())


def _plain_ppid(ppid: bytes, pce_id: bytes) -> Callable[[Scenario], None]:
    def spoil(scenario: Scenario) -> None:
        scenario.certification_type = 1
        scenario.pck_chain_in_collateral = True
        scenario.certification_data = ppid + bytes(16) + b"\x0d\x00" + pce_id

    return spoil


def _another_leaf(scenario: Scenario) -> None:
    scenario.certification_type = 4
    scenario.pck_chain_in_collateral = True
    scenario.certification_data = pem(_other(scenario.leaf, serial=77, sgx=scenario.platform).build()).encode()


def _document_dates(name: str, first: str, last: str) -> Callable[[Scenario], None]:
    def spoil(scenario: Scenario) -> None:
        getattr(scenario, name)["issueDate"] = first
        getattr(scenario, name)["nextUpdate"] = last

    return spoil


ROOT_TWICE = ("PCK CRL root CA",)
CA_TWICE = ("PCK CRL issuer",)


def _certificate_faults() -> list[Fault]:
    """Name, extensions, issuer, signature and validity of every certificate."""
    found = [
        Fault("root-name", _rename_root, "root CA: name", BadChain, ("PCK CRL root CA: name",)),
        Fault("ca-name", _rename_ca, "PCK CA: name", BadChain, ("PCK CRL issuer: name",)),
    ]
    for attribute, what, twice in (
        ("root", "root CA", ROOT_TWICE),
        ("ca", "PCK CA", CA_TWICE),
        ("leaf", "PCK certificate", ()),
        ("signer", "TCB info signer", ()),
        ("qe_signer", "QE identity signer", ()),
    ):

        def fault(
            suffix: str,
            field: str,
            value: object,
            check: str,
            error: type[EvidenceError],
            *,
            attribute: str = attribute,
            what: str = what,
            twice: tuple[str, ...] = twice,
        ) -> Fault:
            also = tuple(f"{other}: {check}" for other in twice)
            return Fault(f"{attribute}-{suffix}", _set(f"{attribute}.{field}", value), f"{what}: {check}", error, also)

        found += [
            fault("without-extensions", "extensions", False, "extensions", BadChain),
            fault("of-another-issuer", "issuer", "Somebody else", "issuer", BadChain),
            fault("signed-by-another", "signer", "somebody else", "signature", BadChain),
            fault("expired", "window", PAST, "valid now", Stale),
            fault("not-yet-valid", "window", FUTURE, "valid now", Stale),
        ]
        if attribute in ("leaf", "signer", "qe_signer"):
            found.append(fault("name", "common_name", "Test Something", "name", BadChain))
    for suffix, changes, check, error in (
        ("without-extensions", {"extensions": False}, "extensions", BadChain),
        ("of-another-issuer", {"issuer": "Somebody else"}, "issuer", BadChain),
        ("signed-by-another", {"signer": "somebody else"}, "signature", BadChain),
        ("expired", {"window": PAST}, "valid now", Stale),
    ):
        name = f"crl-ca-{suffix}"
        found.append(Fault(name, _crl_ca(**changes), f"PCK CRL issuer: {check}", error))
    return found


FAULTS: list[Fault] = [
    *_certificate_faults(),
    Fault("wrong-root", _set("pinned", False), "root CA: pinned", BadChain, ("PCK CRL root CA: pinned",)),
    Fault("root-differs-in-collateral", _other_root_in_collateral, "root CA: same in quote and collateral", BadChain),
    Fault(
        "tcb-info-under-another-root",
        lambda s: setattr(s, "signer_root", _other(s.root, serial=98)),
        "TCB info: root",
        BadChain,
    ),
    Fault(
        "qe-identity-under-another-root",
        lambda s: setattr(s, "qe_signer_root", _other(s.root, serial=98)),
        "QE identity: root",
        BadChain,
    ),
    Fault("root-crl-of-another", _set("root_crl.issuer", "Somebody else"), "root CA CRL: issuer", Mismatch),
    Fault("root-crl-signed-by-another", _set("root_crl.signer", "x"), "root CA CRL: signature", BadChain),
    Fault("pck-crl-of-another", _set("pck_crl.issuer", "Somebody else"), "PCK CRL: issuer", Mismatch),
    Fault("pck-crl-signed-by-another", _set("pck_crl.signer", "x"), "PCK CRL: signature", BadChain),
    Fault("pck-crl-of-another-ca", _other_crl_ca, "PCK CRL: of the CA that issued the PCK certificate", Mismatch),
    Fault("root-crl-expired", _set("root_crl.window", PAST), "root CA CRL: valid now", Stale),
    Fault("root-crl-not-yet-valid", _set("root_crl.window", FUTURE), "root CA CRL: valid now", Stale),
    Fault("pck-crl-expired", _set("pck_crl.window", PAST), "PCK CRL: valid now", Stale),
    Fault("pck-crl-not-yet-valid", _set("pck_crl.window", FUTURE), "PCK CRL: valid now", Stale),
    Fault("revoked-pck", _set("pck_crl.serials", [9, 3]), "PCK certificate: not revoked", Revoked),
    Fault("revoked-intermediate", _set("root_crl.serials", [9, 2]), "PCK CA: not revoked", Revoked),
    Fault("revoked-tcb-signer", _set("root_crl.serials", [4]), "TCB info signer: not revoked", Revoked),
    Fault("revoked-qe-signer", _set("root_crl.serials", [5]), "QE identity signer: not revoked", Revoked),
    Fault(
        "tcb-info-expired",
        _document_dates("tcb_info", stamp(MONTH[0]), stamp(PAST[1])),
        "TCB info: valid now",
        Stale,
    ),
    Fault(
        "tcb-info-not-yet-valid",
        _document_dates("tcb_info", stamp(FUTURE[0]), stamp(MONTH[1])),
        "TCB info: valid now",
        Stale,
    ),
    Fault(
        "qe-identity-expired",
        _document_dates("identity", stamp(MONTH[0]), stamp(PAST[1])),
        "QE identity: valid now",
        Stale,
    ),
    Fault(
        "qe-identity-not-yet-valid",
        _document_dates("identity", stamp(FUTURE[0]), stamp(MONTH[1])),
        "QE identity: valid now",
        Stale,
    ),
    Fault("tcb-info-signed-by-another", _set("tcb_info_key", "x"), "TCB info: signature", BadChain),
    Fault("qe-identity-signed-by-another", _set("identity_key", "x"), "QE identity: signature", BadChain),
    Fault(
        "swapped-document-signatures",
        lambda _: None,
        "TCB info: signature",
        BadChain,
        ("QE identity: signature",),
        tampers=_swap_document_signatures,
    ),
    Fault("tcb-info-of-another-fmspc", _set("tcb_info.fmspc", "ffffffffffff"), "TCB info: FMSPC", Mismatch),
    Fault("tcb-info-of-another-pceid", _set("tcb_info.pceId", "0001"), "TCB info: PCEID", Mismatch),
    Fault("tcb-info-of-tdx", _tdx_tcb_info, "TCB info: kind of TEE", Mismatch),
    Fault("qe-identity-of-qve", _set("identity.id", "QVE"), "QE identity: kind", Mismatch),
    Fault("qe-report-signed-by-another", _set("pck_signer", "x"), "QE report: signature", BadChain),
    Fault(
        "qe-report-names-another-key",
        _set("qe_binding", bytes(64)),
        "attestation key: named by the QE report",
        BadChain,
    ),
    Fault("qe-miscselect", _set("qe.misc_select", 1), "QE: MISCSELECT", Mismatch),
    Fault("qe-debug", _set("qe.flags", 0x17), "QE: attributes", Mismatch),
    Fault("qe-of-another-signer", _set("qe.mrsigner", bytes(32)), "QE: MRSIGNER", Mismatch),
    Fault("qe-of-another-product", _set("qe.isv_prod_id", 9), "QE: product", Mismatch),
    Fault("quote-signed-by-another", _set("ak_signer", "x"), "quote: signature", BadChain),
    Fault(
        "swapped-quote-signatures",
        lambda _: None,
        "QE report: signature",
        BadChain,
        ("quote: signature",),
        tampers=_swap_quote_signatures,
    ),
    Fault(
        "tdx-module-unknown",
        _set("body.tee_tcb_svn", bytes([3, 2] + [2] * 14)),
        "TDX module: known version",
        Mismatch,
        tdx=True,
    ),
    Fault(
        "tdx-module-loaded-now-unknown",
        _set("body.tee_tcb_svn2", bytes([3, 2] + [2] * 14)),
        "TDX module loaded now: known version",
        Mismatch,
        tdx=True,
        td_size=648,
    ),
    Fault(
        "tdx-module-of-another",
        _set("body.mrsigner_seam", bytes(47) + b"\x01"),
        "TDX module: signer",
        Mismatch,
        tdx=True,
    ),
    Fault("tdx-module-attributes", _set("body.seam_attributes", 1), "TDX module: attributes", Mismatch, tdx=True),
    Fault("ppid-of-another", _plain_ppid(bytes(16), bytes(2)), "certification data: PPID", Mismatch),
    Fault("pceid-of-another", _plain_ppid(bytes(range(16)), b"\x01\x00"), "certification data: PCEID", Mismatch),
    Fault("leaf-of-another", _another_leaf, "certification data: PCK certificate", Mismatch),
]

UNPASSABLE = {"PCK certificate chain: given": "without a chain there is nothing to verify"}


def build(fault: Fault) -> Built:
    """The spoilt scenario, signed."""
    scenario = Scenario(
        tdx=fault.tdx, version=(5 if fault.td_size > 584 else 4) if fault.tdx else 3, td_size=fault.td_size
    )
    fault.spoil(scenario)
    built = scenario.built()
    return fault.tampers(built) if fault.tampers else built


def verify(built: Built, checks: Checks | None = None) -> VerifiedReport:
    """Verify what was built."""
    parse = tdx.parse_quote if built.quote[4] else sgx.parse_quote
    return dcap.verify(parse(built.quote), built.collateral, built.roots, built.now, checks=checks)


def disable(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these checks pass whatever they find."""
    require, require_found = Checks.require, Checks.require_found

    def lenient(self: Checks, name: str, ok: bool, **rest: object) -> None:
        require(self, name, ok or name in names, **rest)  # type: ignore[arg-type]

    def lenient_found(self: Checks, name: str, value: object, **rest: object) -> object:
        if value is None and name in names:
            value = stand_in(name)
        return require_found(self, name, value, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Checks, "require", lenient)
    monkeypatch.setattr(Checks, "require_found", lenient_found)


def stand_in(name: str) -> object:
    """What a check finds in a good scenario, for the verification that goes on where the check is disabled."""
    if name == "ARK: pinned":
        return "Milan"
    return parse_tcb_info(Scenario(tdx=True).built().collateral.tcb_info).modules[0]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_refused_by_its_check(fault: Fault) -> None:
    """Every fault is refused, by the check that it is made for, with the error of its kind and a full explanation."""
    built = build(fault)
    with pytest.raises(fault.error) as caught:
        verify(built)
    assert caught.value.check == fault.check
    assert type(caught.value) is fault.error
    assert caught.value.expected
    assert caught.value.seen


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_without_its_check_is_accepted(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """With that check alone disabled the same evidence passes, so nothing else in it is wrong."""
    built = build(fault)
    disable(monkeypatch, fault.check, *fault.also)
    assert verify(built).checks


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.also], ids=lambda fault: fault.name)
def test_fault_met_twice_is_refused_by_each_check(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that two checks see is refused by the second where the first is disabled."""
    built = build(fault)
    disable(monkeypatch, fault.check)
    with pytest.raises(fault.error) as caught:
        verify(built)
    assert caught.value.check in fault.also


def test_faults_cover_every_check() -> None:
    """Every check that a verification makes has a fault, so none of them is without a test in which it fires."""
    made: set[str] = set()
    plain, leaf = Scenario(), Scenario()
    _plain_ppid(bytes(range(16)), bytes(2))(plain)
    leaf.certification_type, leaf.pck_chain_in_collateral = 4, True
    leaf.certification_data = pem(_other(leaf.leaf, sgx=leaf.platform).build()).encode()
    for scenario in (Scenario(), Scenario(tdx=True, version=5, td_size=648), plain, leaf):
        checks = Checks()
        verify(scenario.built(), checks)
        made |= {check.name for check in checks.done}
    covered = {name for fault in FAULTS for name in (fault.check, *fault.also)}
    assert made - covered == set(UNPASSABLE)
    assert covered <= made


def test_chain_that_is_neither_in_quote_nor_collateral_is_refused_with_the_way_to_get_it() -> None:
    """Certification data that only names the platform needs the chain from elsewhere, and the refusal says so."""
    scenario = Scenario()
    _plain_ppid(bytes(range(16)), bytes(2))(scenario)
    scenario.pck_chain_in_collateral = False
    with pytest.raises(Mismatch) as caught:
        verify(scenario.built())
    assert caught.value.check == "PCK certificate chain: given"
    assert "collateral fetch" in (caught.value.remedy or "")


def test_pck_certificate_without_sgx_extension_is_refused() -> None:
    """A PCK certificate that does not say which platform it is for is refused."""
    with pytest.raises(MalformedQuote) as caught:
        verify(Scenario(sgx_extension=False).built())
    assert caught.value.check == "PCK certificate SGX extension"


def test_signed_nonsense_as_tcb_info_is_malformed() -> None:
    """Signed nonsense in place of TCB info is refused as malformed."""
    scenario = Scenario()
    scenario.tcb_info = {"version": 3}
    with pytest.raises(MalformedQuote):
        verify(scenario.built())
