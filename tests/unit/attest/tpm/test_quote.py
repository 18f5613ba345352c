"""A TPM's quote: accepted as it should be, and refused by the one check that a fault concerns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509

from adyton.attest.assess import Assessment, assess
from adyton.attest.checks import Checks
from adyton.attest.collateral import NoCollateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.explain import to_dict, to_text
from adyton.attest.roots import TrustRoots
from adyton.attest.tpm.document import TPMQuote, parse_quote_document
from adyton.attest.tpm.pcr_policy import CALLING, SEPARATOR
from adyton.attest.tpm.quote import check_key
from adyton.attest.tpm.structures import PCRSelection, parse_attest, parse_signature
from adyton.errors import BadChain, MalformedQuote, UsageError
from tests.support.tpm_factory import LINUX, NONCE, NOW, UKI, AKCert, TPMScenario, event, log_head, p256, rsa_key

EVIL = hashlib.sha256(b"another program").digest()


def judge(
    machine: TPMScenario,
    *,
    policy: dict[str, object] | None = None,
    nonce: bytes | None = NONCE,
    document: bytes | None = None,
    roots: TrustRoots | None = None,
) -> Assessment:
    """Verify and appraise."""
    evidence = parse_evidence(machine.built() if document is None else document)
    rules = Policy.from_dict(machine.policy() if policy is None else policy)
    trusted = TrustRoots().with_sim(rules.sim_roots).with_tpm(rules.every_tpm_root) if roots is None else roots
    return assess(evidence, NoCollateral(), trusted, rules, NOW, report_data=nonce)


def failed(assessment: Assessment) -> list[str]:
    """The names of the checks that did not hold."""
    return [check.name for check in assessment.failed]


@pytest.mark.parametrize("kind", ["p256", "rsa"])
def test_quote_of_an_approved_guest_is_accepted(kind: str) -> None:
    """Both kinds of attestation key; the verdict names the simulated root and every PCR."""
    machine = TPMScenario(ak_key=p256("ak") if kind == "p256" else rsa_key("ak"))
    found = judge(machine)
    assert failed(found) == []
    shown = to_dict(found)
    assert (shown["tee"], shown["tee_with_root"]) == ("sim-tpm", f"sim-tpm:{machine.root_pin}")
    assert shown["pcrs"]["4"] == machine.pcrs()[4].hex()
    assert shown["bound"] is True
    assert "encrypts no memory" in to_text(found)


def test_quote_under_a_named_root_is_of_a_tpm() -> None:
    """A root that the policy names as a TPM's makes `tpm`, never a simulated one."""
    machine = TPMScenario()
    policy = machine.policy(tees=["tpm"], tpm_roots=[machine.root_pin.hex()])
    found = judge(machine, policy=policy)
    assert failed(found) == []
    assert to_dict(found)["tee"] == "tpm"


def test_root_of_a_tpm_counts_in_its_own_alternative_only() -> None:
    """One alternative names the root, the other the guest: neither accepts that guest under that root."""
    machine = TPMScenario()
    guest = machine.policy(tees=["tpm"])
    mine, other = machine.root_pin.hex(), "ab" * 32
    assert failed(judge(machine, policy={"any_of": [{**guest, "tpm_roots": [mine]}]})) == []
    apart: dict[str, object] = {"any_of": [{**guest, "tpm_roots": [other]}, {"tees": ["tpm"], "tpm_roots": [mine]}]}
    assert failed(judge(machine, policy=apart)) == ["AK root: named"]
    outer: dict[str, object] = {"tpm_roots": [mine], "any_of": [{**guest, "tpm_roots": [other]}]}
    assert failed(judge(machine, policy=outer)) == ["AK root: named"]


def test_document_is_written_as_it_was_read() -> None:
    """Parse and write are inverse."""
    machine = TPMScenario()
    quote = parse_quote_document(machine.built())
    assert json.loads(quote.to_bytes()) == machine.document()
    assert parse_attest(quote.attest.to_bytes()) == quote.attest
    assert parse_signature(quote.signature.to_bytes()) == quote.signature
    assert quote.with_event_log(None).event_log is None
    assert isinstance(quote, TPMQuote)


def _intermediate(machine: TPMScenario, path_length: int | None, *, ca: bool = True) -> None:
    machine.root.path_length = path_length
    machine.middle = AKCert("middle", "TPM root", p256("middle"), machine.root.key, ca=ca)
    machine.leaf.issuer, machine.leaf.signer = "middle", p256("middle")


def test_chain_with_an_intermediate_is_accepted() -> None:
    """Up to its root, under which one CA is allowed."""
    machine = TPMScenario()
    _intermediate(machine, 1)
    assert failed(judge(machine)) == []


def _set(**changed: object) -> Callable[[TPMScenario], None]:
    def apply(machine: TPMScenario) -> None:
        for name, value in changed.items():
            setattr(machine, name, value)

    return apply


def _leaf(**changed: object) -> Callable[[TPMScenario], None]:
    def apply(machine: TPMScenario) -> None:
        for name, value in changed.items():
            setattr(machine.leaf, name, value)

    return apply


OLD = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))
OTHER_PURPOSE = (x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1"),)
VERIFICATION: dict[str, tuple[Callable[[TPMScenario], None], str]] = {
    "another-issuer": (_leaf(issuer="somebody"), "AK certificate: issuer"),
    "another-signer": (_leaf(signer=p256("stranger")), "AK certificate: signature"),
    "wrong-purpose": (_leaf(purposes=OTHER_PURPOSE), "AK certificate: for attestation"),
    "no-purpose": (_leaf(purposes=()), "AK certificate: for attestation"),
    "leaf-is-a-ca": (_leaf(ca=True), "AK certificate: for attestation"),
    "critical-extension": (_leaf(critical=b"x"), "AK certificate: critical extensions"),
    "expired": (_leaf(window=OLD), "AK certificate: valid now"),
    "issuer-is-no-ca": (lambda machine: _intermediate(machine, None, ca=False), "AK issuer 1: is a CA"),
    "path-too-long": (lambda machine: _intermediate(machine, 0), "AK root: is a CA"),
    "another-key": (_set(signer=p256("stranger")), "TPM quote: signature"),
    "another-kind-of-key": (_set(signer=rsa_key("ak")), "TPM quote: signature"),
    "fewer-pcrs": (_set(selections=(PCRSelection(0x0B, b"\xff\xff\x7f"),)), "TPM quote: PCR selection"),
    "another-bank": (_set(selections=(PCRSelection(0x04, b"\xff\xff\xff"),)), "TPM quote: PCR selection"),
    "two-banks": (
        _set(selections=(PCRSelection(0x0B, b"\xff\xff\xff"), PCRSelection(0x04, b"\xff\xff\xff"))),
        "TPM quote: PCR selection",
    ),
    "no-pcrs": (_set(selections=()), "TPM quote: PCR selection"),
    "another-digest": (_set(digest=bytes(32)), "TPM quote: PCR digest"),
}


@pytest.mark.parametrize("name", VERIFICATION)
def test_false_quote_is_refused_by_its_own_check(name: str) -> None:
    """It is not genuine, so nothing is said of its program."""
    spoil, check = VERIFICATION[name]
    machine = TPMScenario()
    spoil(machine)
    found = judge(machine)
    assert found.report is None
    assert failed(found) == [check]


def test_quote_under_an_unknown_root_is_refused() -> None:
    """No root is built in, and none is taken from the evidence."""
    found = judge(TPMScenario(), roots=TrustRoots())
    assert failed(found) == ["AK root: pinned"]


def test_short_key_is_refused() -> None:
    """RSA of 1024 bits, although certified."""
    checks = Checks()
    with pytest.raises(BadChain) as caught:
        check_key(checks, rsa_key("weak", 1024).public_key())
    assert caught.value.check == "attestation key"
    with pytest.raises(MalformedQuote):
        judge(TPMScenario(ak_key=rsa_key("weak", 1024)))


def _log_without(index: int) -> bytes:
    machine = TPMScenario()
    banks = machine.banks
    events = [(4, digest) for digest in machine.started] if index != 4 else [(7, EVIL)]
    return log_head(banks) + b"".join(event(place, digest, banks=banks) for place, digest in events)


APPRAISAL: dict[str, tuple[Callable[[TPMScenario], None], list[str]]] = {
    "unknown-program": (_set(started=[CALLING, SEPARATOR, UKI, LINUX, EVIL]), ["boot applications"]),
    "another-order": (_set(started=[CALLING, SEPARATOR, LINUX, UKI]), ["boot applications"]),
    "kernel-alone": (_set(started=[CALLING, SEPARATOR, LINUX]), ["boot applications"]),
    "started-twice": (_set(started=[CALLING, SEPARATOR, UKI, LINUX, LINUX]), ["boot applications"]),
    "second-boot-entry": (_set(started=[CALLING, SEPARATOR, CALLING, UKI, LINUX]), ["boot applications"]),
    "no-separator": (_set(started=[CALLING, UKI, LINUX]), ["boot applications"]),
    "log-of-another-boot": (
        _set(spoil_log=TPMScenario(started=[SEPARATOR, UKI, LINUX]).event_log()),
        ["event log: PCR 4"],
    ),
    "log-without-pcr-4": (
        _set(spoil_log=_log_without(4)),
        ["event log: covers the boot", "event log: PCR 7", "boot applications"],
    ),
    "log-that-does-not-parse": (_set(spoil_log=b"\1" * 99), ["event log"]),
    "log-of-tdx": (_set(spoil_log=log_head((0x0C,), 1)), ["event log"]),
    "driver-of-a-device": (_set(more={2: EVIL}), ["event log: PCR 2", "PCR 2"]),
    "load-options": (_set(more={12: EVIL}), ["PCR 12"]),
    "system-extension": (_set(more={13: EVIL}), ["PCR 13"]),
    "another-workload": (_set(more={15: EVIL}), ["workload"]),
    "no-workload": (_set(more={15: bytes(32)}), ["workload"]),
    "another-image": (_set(more={11: EVIL}), ["PCR 11"]),
}


@pytest.mark.parametrize("name", APPRAISAL)
def test_other_guest_is_refused_by_its_own_checks(name: str) -> None:
    """The quote is genuine. The guest is not the approved one. PCR 4 and 11 may be as they should."""
    spoil, checks = APPRAISAL[name]
    policy = TPMScenario().policy(pcrs={"11": [TPMScenario().pcrs()[11].hex()]})
    machine = TPMScenario()
    spoil(machine)
    found = judge(machine, policy=policy)
    assert found.report is not None
    assert failed(found) == checks
    assert all(check.remedy for check in found.failed)


@pytest.mark.parametrize("pcr", [0, 1, 5, 10, 12, 15, 16, 23])
def test_pcr_that_must_not_be_named_is_refused(pcr: int) -> None:
    """Though the value is the one in the quote."""
    machine = TPMScenario()
    found = judge(machine, policy=machine.policy(pcrs={str(pcr): [machine.pcrs()[pcr].hex()]}))
    assert f"PCR {pcr}" in failed(found)


def test_pcr_11_alone_is_refused() -> None:
    """Any loader can extend it."""
    machine = TPMScenario()
    policy = machine.policy(pcrs={"11": [machine.pcrs()[11].hex()]})
    del policy["boot_applications"]
    assert "boot applications: named" in failed(judge(machine, policy=policy))


def test_policy_without_a_workload_is_refused() -> None:
    """All else being as it should."""
    machine = TPMScenario()
    policy = machine.policy()
    del policy["workloads"]
    assert failed(judge(machine, policy=policy)) == ["program", "workload: named"]


def test_quote_without_its_log_is_refused() -> None:
    """PCR 4 is judged by its log only."""
    machine = TPMScenario()
    document = machine.document()
    del document["event_log"]
    assert failed(judge(machine, document=json.dumps(document).encode())) == ["event log"]


@pytest.mark.parametrize(("nonce", "check"), [(None, "report data"), (b"other".ljust(64), "report data")])
def test_quote_over_another_nonce_or_none_is_refused(nonce: bytes | None, check: str) -> None:
    """A nonce that nobody names would let every old quote pass."""
    assert failed(judge(TPMScenario(), nonce=nonce)) == [check]


def test_quote_over_a_short_nonce_is_compared_whole() -> None:
    """Nothing is padded: neither a beginning of the nonce nor one with zeros behind passes."""
    machine = TPMScenario(nonce=b"challenge")
    assert failed(judge(machine, nonce=b"challenge")) == []
    for other in (b"challeng", b"challenge\0", b"challenge".ljust(64, b"\0")):
        assert failed(judge(machine, nonce=other)) == ["report data"]
    with pytest.raises(UsageError):
        judge(machine, nonce=b"")


def test_rules_for_pcrs_refuse_evidence_without_any() -> None:
    """The policy of a TPM does not pass a quote of SGX by leaving its rules out."""
    from tests.support.evidence_factory import Scenario

    built = Scenario().built()
    policy = Policy.from_dict({"tees": ["sgx"], "any_program": True, "boot_applications": [UKI.hex()]})
    found = assess(parse_evidence(built.quote), built.collateral, built.roots, policy, built.now, report_data=None)
    assert "boot applications" in failed(found)


DOCUMENTS: dict[str, tuple[dict[str, object], str]] = {
    "format": ({"format": "adyton-tpm-quote/2"}, "members of the TPM quote"),
    "member": ({"more": 1}, "members of the TPM quote"),
    "one-certificate": ({"ak_certificates": ["AAAA"]}, "ak_certificates"),
    "too-many-certificates": ({"ak_certificates": ["AAAA"] * 6}, "ak_certificates"),
    "certificate-too-long": ({"ak_certificates": ["A" * 8000] * 2}, "ak_certificates"),
    "message-no-text": ({"message": 5}, "message"),
    "message-urlsafe": ({"message": "_-=="}, "message"),
    "message-empty": ({"message": ""}, "message"),
    "message-trailing-bits": ({"message": "AB=="}, "message"),
    "pcrs-bank": ({"pcrs": {"sha1": []}}, "pcrs"),
    "pcrs-count": ({"pcrs": {"sha256": ["00" * 32] * 23}}, "pcrs"),
    "pcrs-size": ({"pcrs": {"sha256": ["00" * 31] * 24}}, "PCR 0"),
    "log-null": ({"event_log": None}, "event_log"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_malformed_document_is_refused_by_its_own_check(name: str) -> None:
    """Members are strict."""
    changed, check = DOCUMENTS[name]
    with pytest.raises(MalformedQuote) as caught:
        parse_quote_document(json.dumps(TPMScenario().document() | changed).encode())
    assert caught.value.check == check


ATTEST = TPMScenario().attest().to_bytes()
STRUCTURES = {
    "magic": (b"\xfe" + ATTEST[1:], "TPMS_ATTEST: magic"),
    "type": (ATTEST[:4] + b"\x80\x17" + ATTEST[6:], "TPMS_ATTEST: type"),
    "rest": (ATTEST + b"\0", "end of the TPMS_ATTEST"),
    "cut": (ATTEST[:-1], "length of the TPMS_ATTEST"),
    "long": (bytes(2000), "size of TPMS_ATTEST"),
    "signer": (ATTEST[:6] + b"\xff\xff" + ATTEST[8:], "size of the signer's name"),
    "safe": (ATTEST[:-53] + b"\x02" + ATTEST[-52:], "TPMS_ATTEST: safe"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_malformed_message_is_refused_by_its_own_check(name: str) -> None:
    """What a TPM would not sign, or not so."""
    raw, check = STRUCTURES[name]
    with pytest.raises(MalformedQuote) as caught:
        parse_attest(raw)
    assert caught.value.check == check


SIGNATURE = TPMScenario().signature(ATTEST).to_bytes()
SIGNATURES = {
    "algorithm": (b"\x00\x16" + SIGNATURE[2:], "TPMT_SIGNATURE: algorithm"),
    "hash": (SIGNATURE[:2] + b"\x00\x04" + SIGNATURE[4:], "TPMT_SIGNATURE: hash"),
    "rest": (SIGNATURE + b"\0", "end of the TPMT_SIGNATURE"),
    "half": (SIGNATURE[:4] + b"\x00\x21" + SIGNATURE[6:], "size of the ECDSA r"),
    "rsa-short": (b"\x00\x14\x00\x0b\x00\x80" + bytes(128), "TPMT_SIGNATURE: RSA signature"),
    "long": (bytes(2000), "size of TPMT_SIGNATURE"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_malformed_signature_is_refused_by_its_own_check(name: str) -> None:
    """Another algorithm, another hash, other sizes."""
    raw, check = SIGNATURES[name]
    with pytest.raises(MalformedQuote) as caught:
        parse_signature(raw)
    assert caught.value.check == check
