"""The verdict in words, as JSON, and as a signed token."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from adyton.attest import explain
from adyton.attest.assess import Assessment, assess
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.token import sign_token
from adyton.errors import Mismatch, UsageError
from tests.support.amd_factory import LAUNCH, SNPScenario
from tests.support.evidence_factory import MRENCLAVE, NOW, REPORT_DATA, Scenario, level

GOOD = {"tees": ["sgx"], "measurements": [MRENCLAVE.hex()]}
QUESTIONS = (
    "genuine?",
    "which platform?",
    "up to date?",
    "which program?",
    "debug?",
    "bound to this key?",
    "verdict",
)


def judged(
    scenario: Scenario, policy: dict[str, Any] | None = None, report_data: bytes | None = REPORT_DATA
) -> Assessment:
    """Assess a scenario."""
    built = scenario.built()
    return assess(
        parse_evidence(built.quote),
        built.collateral,
        built.roots,
        Policy.from_dict(GOOD if policy is None else policy),
        built.now,
        report_data=report_data,
    )


def test_text_of_accepted_evidence_answers_every_question_in_a_dozen_lines() -> None:
    """Six questions and a verdict, each in a short line."""
    text = explain.to_text(judged(Scenario()))
    lines = text.splitlines()
    assert len(lines) <= 12
    assert [next(line for line in lines if line.startswith(question)) for question in QUESTIONS]
    assert "NO" not in text
    assert lines[-1].startswith("verdict")
    assert "ACCEPTED" in lines[-1]


def test_text_of_refusal_says_expected_seen_and_remedy() -> None:
    """Every failed check has what was expected, what was seen, and what to do."""
    scenario = Scenario()
    scenario.tcb_info["tcbLevels"] = [level([5] * 16, 13, "OutOfDate", advisories=("TEST-SA-9",))]
    scenario.debug()
    text = explain.to_text(judged(scenario, report_data=bytes(64)))
    for words in ("failed: TCB status", "failed: debug", "failed: report data", "update BIOS", "advisory TEST-SA-9"):
        assert words in text
    assert text.count("    do  ") == text.count("  failed: ") == 4
    assert "REFUSED: 4 checks failed" in text
    assert "bound to this key? NO" in text


def test_text_of_forged_evidence_says_which_check_failed() -> None:
    """Evidence that is not genuine has one answer, and the check that refused it."""
    scenario = Scenario(pinned=False)
    text = explain.to_text(judged(scenario))
    assert "genuine?           NO" in text
    assert "failed: root CA: pinned" in text
    assert "which program?" not in text
    assert "sim:<fingerprint>" in text


def test_text_of_simulated_evidence_says_that_it_protects_nothing() -> None:
    """A simulated TEE says so, even where the policy accepts it."""
    scenario = Scenario(simulated=True)
    root = next(iter(scenario.roots().sim))
    assessment = judged(scenario, GOOD | {"tees": [f"sim:{root}"]})
    text = explain.to_text(assessment)
    assert "ACCEPTED" in text
    assert "protects nothing" in text
    assert explain.to_dict(assessment)["warning"]
    assert explain.to_dict(assessment)["tee"] == "sim"


@pytest.mark.parametrize("size", [584, 648])
def test_json_of_tdx_has_its_registers(size: int) -> None:
    """TDX evidence shows MRTD and the run-time registers."""
    scenario = Scenario(tdx=True, version=5, td_size=size)
    mrtd = scenario.body["mrtd"]
    assert isinstance(mrtd, bytes)
    assessment = judged(scenario, {"tees": ["tdx"], "measurements": [mrtd.hex()]})
    document = explain.to_dict(assessment)
    assert document["verdict"] == "accepted"
    assert document["tee"] == "tdx"
    assert document["mrtd"] == document["measurement"] == mrtd.hex()
    assert {"rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrseam", "td_attributes"} <= set(document)
    assert "MRTD" in explain.to_text(assessment)


def test_json_has_what_the_contract_names_and_round_trips() -> None:
    """The document is plain JSON with tee, verdict, status, advisories, measurement and checks."""
    for assessment in (judged(Scenario()), judged(Scenario(pinned=False)), judged(Scenario(), {})):
        document = explain.to_dict(assessment)
        assert json.loads(json.dumps(document)) == document
        assert {"tee", "verdict", "status", "advisories", "measurement", "checks"} <= set(document)
        assert all({"name", "expected", "seen", "ok"} <= set(check) for check in document["checks"])
        assert (document["verdict"] == "accepted") == all(check["ok"] for check in document["checks"])


def test_snp_verdict_names_product_and_versions() -> None:
    """AMD's report is explained in its own terms."""
    built = SNPScenario().built()
    policy = Policy.from_dict(
        {
            "tees": ["snp"],
            "measurements": [LAUNCH.hex()],
            "min_tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}},
            "snp": {"products": {"Milan": {"accept_until": "2040-01-01", "reason": "a test"}}},
            "allow_missing_report_data": True,
        }
    )
    assessment = assess(
        parse_evidence(built.report), built.collateral, built.roots, policy, built.now, report_data=None
    )
    text = explain.to_text(assessment)
    assert "AMD SEV-SNP on Milan" in text
    assert "microcode 219" in text
    assert "not compared" in text
    assert explain.to_dict(assessment)["verdict"] == "accepted"


def test_collateral_of_the_other_vendor_is_refused() -> None:
    """Intel's collateral does not judge AMD's report, nor the other way round."""
    snp, quote = SNPScenario().built(), Scenario().built()
    for raw, collateral in ((snp.report, quote.collateral), (quote.quote, snp.collateral)):
        assessment = assess(parse_evidence(raw), collateral, quote.roots, Policy.from_dict(GOOD), NOW, report_data=None)
        assert isinstance(assessment.error, Mismatch)
        assert assessment.failed[-1].name == "collateral: vendor"


def test_ear_status_is_the_worst_of_its_vector() -> None:
    """Affirming for good hardware, warning for a platform that needs exemptions, contraindicated for a refusal."""

    def submodule(assessment: Assessment) -> dict[str, Any]:
        (found,) = explain.ear_claims(assessment, verifier="adyton test")["submods"].values()
        assert isinstance(found, dict)
        return found

    good = submodule(judged(Scenario()))
    assert good["ear.status"] == "affirming"
    assert set(good["ear.trustworthiness-vector"].values()) == {2}
    scenario = Scenario()
    scenario.tcb_info["tcbLevels"] = [level([5] * 16, 13, "SWHardeningNeeded")]
    hardened = submodule(judged(scenario, GOOD | {"statuses": ["SWHardeningNeeded"]}))
    assert hardened["ear.status"] == "warning"
    other = submodule(judged(Scenario(), GOOD | {"measurements": ["11" * 32]}))
    assert other["ear.status"] == "contraindicated"
    assert other["ear.trustworthiness-vector"]["executables"] == 96
    forged = submodule(judged(Scenario(pinned=False)))
    assert forged["ear.trustworthiness-vector"]["hardware"] == 97
    unbound = submodule(judged(Scenario(), report_data=bytes(64)))
    assert unbound["ear.trustworthiness-vector"]["configuration"] == 96
    debug = Scenario()
    debug.debug()
    assert submodule(judged(debug))["ear.trustworthiness-vector"]["runtime-opaque"] == 96


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("ES256", ec.derive_private_key(5, ec.SECP256R1())),
        ("ES384", ec.derive_private_key(5, ec.SECP384R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
    ],
)
def test_token_is_verified_by_its_key_only(algorithm: str, key: Any) -> None:
    """PyJWT reads a token with the right key; another key and a changed byte are refused."""
    claims = explain.ear_claims(judged(Scenario()), verifier="adyton test")
    token = sign_token(claims, key)
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "typ": "JWT"}
    assert jwt.decode(token, key.public_key(), algorithms=[algorithm]) == claims
    another = ec.derive_private_key(6, ec.SECP256R1()).public_key()
    with pytest.raises((jwt.InvalidSignatureError, jwt.InvalidKeyError, TypeError)):
        jwt.decode(token, another, algorithms=[algorithm])
    head, body, signature = token.split(".")
    with pytest.raises(jwt.InvalidTokenError):
        jwt.decode(f"{head}.{body[:-2]}AA.{signature}", key.public_key(), algorithms=[algorithm])


def test_token_with_a_key_of_another_kind_is_refused() -> None:
    """Only the three algorithms that are named are used."""
    with pytest.raises(UsageError):
        sign_token({}, ec.derive_private_key(5, ec.SECP521R1()))
