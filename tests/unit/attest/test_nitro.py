"""Nitro documents: real ones at their time, the form as other readers see it, and mutated ones."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest

from adyton.attest import explain
from adyton.attest.appraise import Policy, appraise
from adyton.attest.assess import assess
from adyton.attest.collateral import NoCollateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.forms import read_form
from adyton.attest.nitro.document import NitroDocument, parse_document
from adyton.attest.nitro.verify import Cache, verify
from adyton.attest.roots import TrustRoots
from adyton.errors import AppraisalFailed, EvidenceError, MalformedQuote
from adyton.keystore.approval import Approval
from adyton.keystore.approval_gaps import check_sound
from adyton.values import Measurement
from tests.support.nitro_factory import IMAGE, NONCE, NOW, NitroScenario, cose, key

MUTATIONS = 10_000


def document() -> NitroDocument:
    """A good document."""
    return parse_document(NitroScenario().built().raw)


@pytest.mark.shared_vectors
def test_real_document_is_genuine_under_amazons_root(shared_vectors: Path) -> None:
    """At its own time it is accepted, a year later it is genuine and too old."""
    raw = read_form((shared_vectors / "evidence/nitro/nitro-nsm-framed.bin").read_bytes()).evidence
    parsed = parse_document(raw)
    decoded = cbor2.loads(cbor2.loads(raw)[2])
    assert decoded["pcrs"] == dict(parsed.pcrs)
    assert decoded["user_data"] == parsed.user_data == parsed.report_data
    policy = Policy.from_dict({"tees": ["nitro"], "measurements": [decoded["pcrs"][0].hex()]})
    then = assess(parsed, NoCollateral(), TrustRoots(), policy, parsed.timestamp, report_data=parsed.user_data)
    assert then.claims is not None
    assert then.claims.bound
    later = datetime(2026, 11, 28, tzinfo=UTC)
    now = assess(parsed, NoCollateral(), TrustRoots(), policy, later, report_data=parsed.user_data)
    assert now.report is not None
    assert [check.name for check in now.failed] == ["age of the document"]


@pytest.mark.shared_vectors
def test_real_debug_document_is_genuine_and_refused(shared_vectors: Path) -> None:
    """Signature and chain are good. No policy accepts it."""
    raw = read_form((shared_vectors / "evidence/nitro/nitro-nsm-framed-debug.bin").read_bytes()).evidence
    parsed = parse_document(raw)
    policy = Policy.from_dict(
        {"tees": ["nitro"], "any_program": True, "allow_debug": True, "allow_missing_report_data": True}
    )
    found = assess(parsed, NoCollateral(), TrustRoots(), policy, parsed.timestamp, report_data=None)
    assert found.report is not None
    assert found.report.debug
    assert isinstance(found.error, AppraisalFailed)
    assert [check.name for check in found.failed] == ["PCR 0 to 2"]


def test_verdict_says_whom_one_trusts() -> None:
    """In the text, in the verdict, in JSON; and the registers by their bank."""
    built = NitroScenario(tpm=True).built()
    policy = Policy.from_dict({"tees": ["nitrotpm"], "measurements": [IMAGE.hex()]})
    found = assess(parse_evidence(built.raw), NoCollateral(), built.roots, policy, NOW, report_data=NONCE)
    text, told = explain.to_text(found), explain.to_dict(found)
    assert "ACCEPTED by the policy, if you trust Amazon's hypervisor, good until" in text
    assert "whom to trust?     Amazon's hypervisor" in text
    assert told["tee"] == "nitrotpm"
    assert told["trust"] == "Amazon's hypervisor"
    assert told["pcrs"]["sha384"]["4"] == told["measurement"] == IMAGE.hex()
    assert len(told["pcrs"]["sha384"]) == 24
    assert told["bound"]
    assert json.loads(json.dumps(told)) == told
    assert explain.trust_vector(found)["executables"] == 2


def test_another_program_is_a_fault_of_the_executables() -> None:
    """A PCR that differs is told as the program's."""
    built = NitroScenario().built()
    policy = Policy.from_dict({"tees": ["nitro"], "pcrs": {"0": ["00" * 48]}})
    found = assess(parse_evidence(built.raw), NoCollateral(), built.roots, policy, NOW, report_data=NONCE)
    assert "which program?     NO     PCR 0" in explain.to_text(found)
    assert explain.trust_vector(found)["configuration"] == 2


def test_enclave_cannot_be_approved_and_an_instance_only_by_its_guest_image() -> None:
    """An enclave's evidence is verified and shown, and releases nothing: nobody says which image gives which PCRs."""
    from adyton.errors import UsageError

    with pytest.raises(UsageError) as caught:
        check_sound(Approval(key="k", app="a", version="1", tees=("nitro",), measurement=Measurement(bytes(32))))
    assert caught.value.check == "guest image"
    assert "nitro" in str(caught.value.remedy)
    with pytest.raises(UsageError, match="approved by its guest image"):
        Approval(key="k", app="a", version="1", tees=("nitrotpm",), measurement=Measurement(bytes(32)))


def test_issuing_chain_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache the second document of a machine costs two signatures: the leaf's and its own."""
    from adyton.attest import certificates

    built, cache = NitroScenario().built(), Cache()
    made = Counter[str]()
    original = certificates._is_signed

    def counted(*arguments: Any) -> bool:
        made["s"] += 1
        return original(*arguments)

    monkeypatch.setattr(certificates, "_is_signed", counted)
    for expected in (3, 4, 5):
        verify(parse_document(built.raw), built.roots, built.now, cache=cache)
        assert made["s"] == expected
    others = TrustRoots()
    with pytest.raises(EvidenceError):
        verify(parse_document(built.raw), others, built.now, cache=cache)


def _spoilt(name: str) -> bytes:
    """A document whose form is wrong in one place, validly signed."""
    scenario = NitroScenario()
    members = scenario.members
    payload = scenario.payload()
    signer = key("leaf")
    if name == "member twice":
        return cose(payload[:-1] + cbor2.dumps("digest") + cbor2.dumps("SHA384") + b"\xff", signer)
    if name == "unknown member":
        return cose(payload[:-1] + cbor2.dumps("more") + cbor2.dumps(1) + b"\xff", signer)
    if name == "bytes behind":
        return cose(payload + b"\xf6", signer)
    if name == "no break":
        return cose(payload[:-1], signer)
    if name == "long head":
        return cose(payload.replace(b"\x66digest", b"\x78\x06digest"), signer)
    if name == "open list of PCRs":
        at = payload.index(b"dpcrs") + 5
        return cose(payload[:at] + b"\xbf" + payload[at + 1 :], signer)
    if name == "tag":
        return b"\xd2" + cose(payload, signer)
    if name == "PCR twice":
        at = payload.index(b"dpcrs") + 6
        return cose(payload[:at] + payload[at : at + 51] * 2 + payload[at + 102 :], signer)
    changed: dict[str, dict[str, Any]] = {
        "short PCR": {"pcrs": {0: bytes(32)}},
        "PCR 32": {"pcrs": {32: bytes(48)}},
        "digest": {"digest": "SHA256"},
        "no time": {"timestamp": 0},
        "negative time": {"timestamp": -1},
        "far time": {"timestamp": 1 << 62},
        "float time": {"timestamp": 1.5},
        "text nonce": {"nonce": "nonce"},
        "long nonce": {"nonce": bytes(513)},
        "empty module": {"module_id": ""},
    }
    members.update(changed[name])
    return scenario.built().raw


@pytest.mark.parametrize(
    "name",
    [
        "member twice",
        "unknown member",
        "bytes behind",
        "no break",
        "long head",
        "open list of PCRs",
        "tag",
        "PCR twice",
        "short PCR",
        "PCR 32",
        "digest",
        "no time",
        "negative time",
        "far time",
        "float time",
        "text nonce",
        "long nonce",
        "empty module",
    ],
)
def test_document_in_another_form_is_refused(name: str) -> None:
    """Whatever a lenient reader would take in two ways is refused, although it is signed."""
    with pytest.raises(MalformedQuote) as caught:
        parse_document(_spoilt(name))
    assert caught.value.seen


def test_mutated_documents_are_refused_or_say_the_same() -> None:
    """Half of the mutations are in the payload and signed again, so that later checks fire.

    What is taken must give exactly the claims of the signed bytes, as another reader of CBOR sees them.
    """
    built, chance, taken = NitroScenario().built(), random.Random(7), Counter[str]()
    genuine = parse_document(built.raw)
    payload, cache, signer = genuine.payload, Cache(), key("leaf")
    policy = Policy.from_dict(
        {"tees": ["nitro"], "pcrs": {str(number): [value.hex()] for number, value in genuine.pcrs.items()}}
    )
    for number in range(MUTATIONS):
        resigned = number % 2 == 0
        raw = bytearray(payload if resigned else built.raw)
        at = chance.randrange(len(raw))
        kind = chance.randrange(4)
        if kind == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[at] = chance.randrange(256)
        elif kind == 2:
            del raw[at : at + chance.randrange(1, 9)]
        else:
            raw[at:at] = chance.randbytes(chance.randrange(1, 9))
        spoilt = bytes(raw)
        if spoilt in (payload, built.raw):
            continue
        try:
            parsed = parse_document(cose(spoilt, signer) if resigned else spoilt)
        except MalformedQuote:
            taken["refused: form"] += 1
            continue
        try:
            appraise(verify(parsed, built.roots, NOW, cache=cache), policy, NOW, report_data=NONCE)
        except EvidenceError as error:
            taken[f"refused: {error.check}"] += 1
            continue
        assert resigned, f"mutation {number} at {at}: accepted under the old signature"
        told = cbor2.loads(spoilt)
        assert dict(parsed.pcrs) == told["pcrs"] == dict(genuine.pcrs)
        assert parsed.nonce == told["nonce"] == genuine.nonce
        changed = [name for name, value in told.items() if value != cbor2.loads(payload)[name]]
        taken["taken: " + ", ".join(changed)] += 1
    assert {name for name in taken if name.startswith("taken")} <= {
        "taken: module_id",
        "taken: timestamp",
        "taken: user_data",
        "taken: public_key",
    }, taken
    assert taken["refused: form"] > 100
    assert sum(count for name, count in taken.items() if name.startswith("refused: ") and "form" not in name) > 1000
