"""Azure's evidence: real bodies are judged as their source says, and every step of the verification fires."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.amd import check_signature as check_report_signature
from adyton.attest.assess import Assessment, assess
from adyton.attest.azure.evidence import AzureEvidence, encode_body, parse_body
from adyton.attest.azure.hcl import TD_REPORT_FIELDS, TDREPORT, parse_hcl_report
from adyton.attest.azure.verify import (
    check_claims_bound,
    check_td_report,
    check_user_data,
    check_vmpl,
)
from adyton.attest.certificates import parse_certificate
from adyton.attest.checks import Checks
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.explain import to_dict, to_text
from adyton.attest.roots import TrustRoots
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote, parse_quote
from adyton.attest.tpm.quote import check_key, check_pcr_digest, check_selection, check_signature
from adyton.errors import MalformedQuote, Mismatch
from tests.support.evidence_factory import Built, Scenario
from tests.support.tpm_factory import NONCE, AzureScenario, TPMScenario, hcl_report, rsa_key, runtime_claims

BODIES = {
    "az-snp-vtpm-evidence-v0.json": b"challenge",
    "az-snp-vtpm-evidence-v1.json": b"challenge",
    "az-snp-vtpm-evidence-v2.json": None,
    "az-tdx-vtpm-evidence-v0.json": b"challenge",
    "az-tdx-vtpm-evidence-v1.json": b"challenge",
}


@pytest.mark.shared_vectors
@pytest.mark.parametrize(("name", "nonce"), BODIES.items())
def test_real_body_passes_every_step_that_needs_no_collateral(
    shared_vectors: Path, name: str, nonce: bytes | None
) -> None:
    """TPM quote, binding, user data, TDREPORT, VMPL, and the report's signature by its own VCEK."""
    found = parse_body((shared_vectors / "evidence/azure" / name).read_bytes())
    checks, key = Checks(), found.hcl.claims.attestation_key
    check_key(checks, key)
    check_signature(checks, key, found.signature, found.message)
    check_selection(checks, found.attest)
    check_pcr_digest(checks, found.attest, found.pcrs)
    check_claims_bound(checks, found)
    check_user_data(checks, found)
    if isinstance(found.hcl.hardware, TDREPORT):
        assert isinstance(found.hardware, TDXQuote)
        check_td_report(checks, found.hcl.hardware, found.hardware)
    else:
        assert isinstance(found.hardware, SNPReport)
        check_vmpl(checks, found.hardware)
        check_report_signature(checks, found.hardware, parse_certificate(found.vcek or b"", "VCEK"))
    assert all(check.ok for check in checks.done)
    assert nonce in (None, found.report_data)
    if nonce is None:
        assert found.hcl.claims.user_data.startswith(found.report_data)


def judge(
    machine: AzureScenario, *, body: bytes | None = None, nonce: bytes | None = NONCE, **policy: Any
) -> Assessment:
    """Verify and appraise with the event log beside the body."""
    raw = machine.body() if body is None else body
    evidence = parse_evidence(raw)
    assert isinstance(evidence, AzureEvidence)
    built = machine.snp.built()
    rules = Policy.from_dict(machine.policy(**policy))
    with_log = evidence.with_event_log(machine.tpm.event_log())
    return assess(with_log, built.collateral, built.roots, rules, built.now, report_data=nonce)


def failed(assessment: Assessment) -> list[str]:
    """The names of the checks that did not hold."""
    return [check.name for check in assessment.failed]


def test_evidence_of_an_approved_guest_is_accepted_and_names_whom_one_trusts() -> None:
    """Never as `snp`: Microsoft's paravisor is in between."""
    machine = AzureScenario()
    found = judge(machine)
    assert failed(found) == []
    shown = to_dict(found)
    assert (shown["tee"], shown["trust"], shown["bound"]) == ("az-snp", "Microsoft's paravisor", True)
    assert shown["platform"]["secure_boot"] is True
    assert shown["pcrs"]["4"] == machine.tpm.pcrs()[4].hex()
    assert "Microsoft's paravisor" in to_text(found)


def test_evidence_is_refused_as_plain_snp() -> None:
    """A policy for SEV-SNP accepts no Azure machine."""
    assert "TEE" in failed(judge(AzureScenario(), tees=["snp"]))


def _stranger(machine: AzureScenario) -> None:
    machine.spoil_claims = runtime_claims(rsa_key("stranger"))
    machine.tpm.signer = rsa_key("stranger")


def _field(**fields: bytes | int) -> Callable[[AzureScenario], None]:
    return lambda machine: machine.snp.fields.update(fields)


def _tpm(**changed: object) -> Callable[[AzureScenario], None]:
    def apply(machine: AzureScenario) -> None:
        for name, value in changed.items():
            setattr(machine.tpm, name, value)

    return apply


FAULTS: dict[str, tuple[Callable[[AzureScenario], None], list[str]]] = {
    "key-of-another-tpm": (_stranger, ["runtime claims: bound in the hardware report"]),
    "report-data-tail": (
        lambda machine: setattr(machine, "report_data_tail", b"\1" + bytes(31)),
        ["runtime claims: bound in the hardware report"],
    ),
    "quote-by-another-key": (_tpm(signer=rsa_key("stranger")), ["TPM quote: signature"]),
    "no-pcrs": (_tpm(selections=()), ["TPM quote: PCR selection"]),
    "another-digest": (_tpm(digest=bytes(32)), ["TPM quote: PCR digest"]),
    "guest-asked-itself": (_field(vmpl=1), ["paravisor's privilege level (VMPL)"]),
    "report-by-another-chip": (lambda machine: setattr(machine.snp, "signer", "other"), ["report: signature"]),
    "debug": (_field(policy=0x30000 | 1 << 19), ["debug"]),
    "old-firmware": (
        lambda machine: machine.snp.fields.update(committed_tcb=bytes(8)),
        ["minimum TCB"],
    ),
    "load-options": (_tpm(more={12: b"x" * 32}), ["PCR 12"]),
    "another-boot": (_tpm(started=[b"x" * 32]), ["boot applications"]),
}


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, ["paravisor: named"]),
        ({"snp": {"id_key_digests": ["00" * 48]}}, ["paravisor: named"]),
        ({"snp": {"family_ids": ["00" * 16]}}, ["paravisor: named"]),
        ({"snp": {"id_key_digests": ["ab" * 48]}}, ["id key"]),
        ({"measurements": ["ab" * 48]}, ["measurement"]),
    ],
)
def test_paravisor_that_nobody_names_is_refused(more: dict[str, Any], names: list[str]) -> None:
    """Any guest at VMPL 0 can make such a report, and sign any PCRs. Zeros are the id key of whoever signed nothing."""
    machine = AzureScenario()
    policy: dict[str, Any] = machine.policy()
    del policy["measurements"]
    evidence = parse_evidence(machine.body())
    assert isinstance(evidence, AzureEvidence)
    built = machine.snp.built()
    rules = Policy.from_dict({**policy, **more, "snp": policy["snp"] | more.get("snp", {})})
    with_log = evidence.with_event_log(machine.tpm.event_log())
    found = assess(with_log, built.collateral, built.roots, rules, built.now, report_data=NONCE)
    assert failed(found) == names
    assert "which program?     NO" in to_text(found)


def test_paravisor_is_named_by_the_key_that_signed_it() -> None:
    """Its launch digest changes often, the key of its maker does not."""
    machine = AzureScenario()
    machine.snp.fields["id_key_digest"] = b"k" * 48
    snp: Any = machine.policy()["snp"]
    assert failed(judge(machine, measurements=[], snp=snp | {"id_key_digests": [(b"k" * 48).hex()]})) == []


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_evidence_is_refused_by_its_own_check(name: str) -> None:
    """One fault, one check."""
    spoil, checks = FAULTS[name]
    machine = AzureScenario()
    spoil(machine)
    assert failed(judge(machine)) == checks


def test_nonce_that_nobody_names_refuses() -> None:
    """The quote's nonce is compared, or the evidence is refused."""
    assert failed(judge(AzureScenario(), nonce=None)) == ["report data"]
    assert failed(judge(AzureScenario(), nonce=bytes(64))) == ["report data"]


def test_measurement_of_the_paravisor_alone_pins_no_guest() -> None:
    """It is Microsoft's firmware, the same under every guest."""
    machine = AzureScenario()
    policy = machine.policy(measurements=[bytes(machine.snp.fields["measurement"]).hex()])
    del policy["boot_applications"], policy["workloads"]
    built = machine.snp.built()
    evidence = parse_evidence(machine.body())
    found = assess(evidence, built.collateral, built.roots, Policy.from_dict(policy), built.now, report_data=NONCE)
    assert failed(found) == ["boot applications: named", "event log", "workload: named"]


def test_user_data_of_version_2_begins_with_the_nonce() -> None:
    """And a body that says 2 without it is refused."""
    machine = AzureScenario(claims={"user-data": NONCE.hex()})
    body = json.loads(machine.body()) | {"version": 2}
    assert failed(judge(machine, body=json.dumps(body).encode())) == []
    machine = AzureScenario()
    body = json.loads(machine.body()) | {"version": 2}
    assert failed(judge(machine, body=json.dumps(body).encode())) == ["runtime claims: user data"]


def test_collateral_of_another_vendor_is_refused() -> None:
    """Intel's collateral for a machine of AMD."""
    machine, intel = AzureScenario(), Scenario().built()
    rules = Policy.from_dict(machine.policy())
    found = assess(parse_evidence(machine.body()), intel.collateral, intel.roots, rules, intel.now, report_data=NONCE)
    assert isinstance(found.error, Mismatch)
    assert found.error.check == "collateral: vendor"


@pytest.mark.shared_vectors
def test_quote_of_another_trust_domain_is_refused(shared_vectors: Path) -> None:
    """The TDREPORT that binds the key is of one domain, the quote of another."""
    folder = shared_vectors / "evidence"
    found = parse_body((folder / "azure/az-tdx-vtpm-evidence-v1.json").read_bytes())
    other = parse_evidence((folder / "tdx/tdx-v4-00806f-cos113.quote.bin").read_bytes())
    assert isinstance(found.hcl.hardware, TDREPORT)
    assert isinstance(other, TDXQuote)
    with pytest.raises(Mismatch) as caught:
        check_td_report(Checks(), found.hcl.hardware, other)
    assert caught.value.check == "TDREPORT: the one that was quoted"


@pytest.mark.shared_vectors
def test_real_machine_is_judged_with_its_makers_roots(shared_vectors: Path) -> None:
    """Genuine under AMD's own root at its time, and refused where nothing names its boot."""
    from adyton.attest.certificates import split_pem
    from adyton.attest.collateral import AMDCollateral

    folder = shared_vectors / "evidence"
    evidence = parse_evidence((folder / "azure/az-snp-vtpm-evidence-v1.json").read_bytes())
    assert isinstance(evidence, AzureEvidence)
    chain = next(iter(sorted((folder / "trust").glob("*ilan*.pem"))), None)
    if chain is None:
        pytest.skip("the folder of vectors has no chain of Milan")
    blocks = split_pem(chain.read_bytes(), "AMD chain")
    collateral = AMDCollateral(leaf=evidence.vcek or b"", ask=blocks[0], ark=blocks[1])
    policy = Policy.from_dict({"tees": ["az-snp"], "any_program": True, "allow_missing_crl": True})
    now = datetime(2025, 6, 1, tzinfo=UTC)
    found = assess(evidence, collateral, TrustRoots(), policy, now, report_data=b"challenge")
    assert found.report is not None
    assert found.report.tee == "az-snp"
    assert failed(found) == ["product accepted", "minimum TCB"]


def trust_domain(claims: bytes, *, tail: bytes = bytes(32)) -> tuple[bytes, Built]:
    """An Azure machine on a test Intel: its body, and what judges the quote in it."""
    scenario, tpm = Scenario(tdx=True, version=4), TPMScenario(ak_key=rsa_key("hcl-ak"))
    scenario.body["report_data"] = hashlib.sha256(claims).digest() + tail
    built = scenario.built()
    quote = parse_quote(built.quote)
    report = bytearray(1024)
    report[0] = 0x81
    for name, place in TD_REPORT_FIELDS.items():
        if name != "report_type":
            report[place.offset : place.offset + place.size] = quote.report.field(name)
    message = tpm.attest().to_bytes()
    body = encode_body(
        hcl_report(bytes(report), claims, kind=4),
        vcek=None,
        td_quote=built.quote,
        message=message,
        signature=tpm.signature(message).value,
        pcrs=tpm.pcrs(),
    )
    return body, built


def test_trust_domain_below_a_paravisor_is_accepted_and_bound() -> None:
    """TDX: the quote is judged as every quote, and its TDREPORT binds the TPM's key."""
    body, built = trust_domain(CLAIMS)
    evidence = parse_evidence(body)
    assert isinstance(evidence, AzureEvidence)
    tpm = TPMScenario(ak_key=rsa_key("hcl-ak"))
    with_log = evidence.with_event_log(tpm.event_log())

    def rules_for(**more: object) -> Policy:
        return Policy.from_dict(tpm.policy(tees=["az-tdx"], **more))

    for policy, names in (
        (rules_for(), ["paravisor: named"]),
        (rules_for(snp={"id_key_digests": ["ab" * 48]}), ["paravisor: named"]),
        (rules_for(measurements=["ab" * 48]), ["measurement"]),
    ):
        assert failed(assess(with_log, built.collateral, built.roots, policy, built.now, report_data=NONCE)) == names
    assert isinstance(evidence.hardware, TDXQuote)
    rules = rules_for(measurements=[evidence.hardware.report.mrtd.hex()])
    found = assess(with_log, built.collateral, built.roots, rules, built.now, report_data=NONCE)
    assert failed(found) == []
    assert to_dict(found)["tee"] == "az-tdx"
    for claims, tail in ((CLAIMS, b"\1" * 32), (runtime_claims(rsa_key("stranger")), bytes(32))):
        body, built = trust_domain(claims, tail=tail)
        found = assess(parse_evidence(body), built.collateral, built.roots, rules, built.now, report_data=NONCE)
        wanted = "runtime claims: bound in the hardware report" if claims == CLAIMS else "TPM quote: signature"
        assert failed(found) == [wanted]


def test_simulated_trust_domain_is_no_azure_machine() -> None:
    """A root that counts for sim-tdx does not count below a paravisor."""
    body, built = trust_domain(CLAIMS)
    roots = TrustRoots(intel=frozenset(), sim=built.roots.intel)
    rules = Policy.from_dict({"tees": ["az-tdx"], "any_program": True})
    found = assess(parse_evidence(body), built.collateral, roots, rules, built.now, report_data=NONCE)
    assert found.report is None


CLAIMS = runtime_claims(rsa_key("hcl-ak"))


def _claims(**changed: object) -> bytes:
    return json.dumps(json.loads(CLAIMS) | changed).encode()


def _key(**changed: object) -> bytes:
    document = json.loads(CLAIMS)
    return _claims(keys=[document["keys"][0] | changed])


REPORTS: dict[str, tuple[bytes | dict[int, int], str]] = {
    "magic": ({0: 0}, "HCL report: magic and version"),
    "version": ({4: 3}, "HCL report: magic and version"),
    "request": ({12: 1}, "HCL report: request"),
    "status": ({16: 1}, "HCL report: request"),
    "reserved": ({20: 1}, "HCL report: request"),
    "data-size": ({1216: 0}, "HCL report: size of the runtime data"),
    "data-version": ({1220: 2}, "HCL report: runtime data"),
    "data-type": ({1224: 3}, "HCL report: runtime data"),
    "data-hash": ({1228: 2}, "HCL report: runtime data"),
    "padding": ({2599: 1}, "HCL report: padding"),
    "cut": (bytes(100), "HCL report: size"),
    "long": (bytes(5000), "HCL report: size"),
    "no-key": (_claims(keys=[]), "runtime claims: keys"),
    "two-keys": (_claims(keys=json.loads(CLAIMS)["keys"] * 2), "runtime claims: keys"),
    "keys-no-list": (_claims(keys={}), "runtime claims: keys"),
    "key-for-encryption": (_key(key_ops=["encrypt"]), "runtime claims: HCLAkPub"),
    "modulus": (_key(n="AAAA"), "runtime claims: HCLAkPub: n"),
    "exponent": (_key(e="A="), "runtime claims: HCLAkPub: e"),
    "user-data": (_claims(**{"user-data": "00"}), "runtime claims: user-data"),
    "machine": (_claims(**{"vm-configuration": 1}), "runtime claims: vm-configuration"),
    "secure-boot": (_claims(**{"vm-configuration": {"secure-boot": "yes"}}), "runtime claims: secure-boot"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_malformed_report_is_refused_by_its_own_check(name: str) -> None:
    """One fault, one check."""
    fault, check = REPORTS[name]
    machine = AzureScenario()
    if isinstance(fault, dict):
        machine.head = fault
        raw = machine.hcl_report()
    else:
        raw = fault if not fault.startswith(b"{") else hcl_report(machine.snp.report(), fault)
    with pytest.raises(MalformedQuote) as caught:
        parse_hcl_report(raw)
    assert caught.value.check == check


def test_attestation_key_of_a_small_exponent_is_refused() -> None:
    """Exponent 3 under a genuine report."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(3, 2048)
    machine = AzureScenario()
    machine.tpm.ak_key = key
    assert failed(judge(machine)) == ["attestation key"]


BODY: dict[str, Any] = json.loads(AzureScenario().body())
BODY_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "version": (BODY | {"version": 3}, "Azure evidence: version"),
    "version-0-named": (BODY | {"version": 0}, "Azure evidence: version"),
    "version-text": (BODY | {"version": "1"}, "Azure evidence: version"),
    "member": (BODY | {"more": 1}, "Azure evidence: members"),
    "both": (BODY | {"td_quote": "AAAA"}, "Azure evidence: members"),
    "other-vendor": (
        {name: value for name, value in BODY.items() if name != "vcek"} | {"td_quote": "AAAA"},
        "Azure evidence: members",
    ),
    "quote": (BODY | {"tpm_quote": {}}, "Azure evidence: tpm_quote"),
    "report": (BODY | {"hcl_report": "A"}, "Azure evidence: hcl_report"),
    "report-standard-base64": (BODY | {"hcl_report": "+/+/"}, "Azure evidence: hcl_report"),
    "signature": (
        BODY | {"tpm_quote": BODY["tpm_quote"] | {"signature": "00" * 128}},
        "Azure evidence: signature",
    ),
    "message": (BODY | {"tpm_quote": BODY["tpm_quote"] | {"message": "0"}}, "Azure evidence: message"),
    "pcrs": (BODY | {"tpm_quote": BODY["tpm_quote"] | {"pcrs": []}}, "pcrs"),
}


@pytest.mark.parametrize("name", BODY_FAULTS)
def test_malformed_body_is_refused_by_its_own_check(name: str) -> None:
    """One fault, one check."""
    document, check = BODY_FAULTS[name]
    with pytest.raises(MalformedQuote) as caught:
        parse_body(json.dumps(document).encode())
    assert caught.value.check == check


def test_body_of_version_0_says_the_same() -> None:
    """Lists of whole numbers and PEM instead of text."""
    machine = AzureScenario()
    new = parse_body(machine.body())
    old = {
        "quote": {
            "message": list(new.message),
            "signature": list(new.signature.value),
            "pcrs": [list(value) for value in new.pcrs],
        },
        "report": list(new.hcl.raw),
        "vcek": parse_certificate(new.vcek or b"", "VCEK").pem,
    }
    found = parse_body(json.dumps(old).encode())
    assert (found.message, found.pcrs, found.hcl.raw) == (new.message, new.pcrs, new.hcl.raw)
    faults: list[dict[str, object]] = [{"report": [256]}, {"report": []}, {"vcek": "x"}, {"report": [True]}]
    for changed in faults:
        with pytest.raises(MalformedQuote):
            parse_body(json.dumps(old | changed).encode())
    short = {**old, "quote": old["quote"] | {"pcrs": [[0]] * 24}}  # type: ignore[operator]
    with pytest.raises(MalformedQuote):
        parse_body(json.dumps(short).encode())


def test_base64url_with_padding_is_read() -> None:
    """Some clients write it, some do not; one text has one of two forms and no other."""
    raw = base64.urlsafe_b64encode(AzureScenario().hcl_report()).decode()
    assert parse_body(json.dumps(BODY | {"hcl_report": raw}).encode()).hcl
