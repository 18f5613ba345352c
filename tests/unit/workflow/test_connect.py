"""What `adyton connect` makes of evidence: the program must be named, and a TPM's log comes beside its quote."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import adyton
from adyton.attest.appraise import Claims
from adyton.attest.tpm.document import parse_quote_document
from adyton.endpoint.hello import Answer
from adyton.errors import EvidenceError, Mismatch, UsageError
from adyton.values import Measurement
from adyton.workflow.connect import _judge, connect, require_program
from adyton.workflow.verify import read_policy
from tests.support.evidence_factory import MRENCLAVE, NOW, REPORT_DATA, Scenario
from tests.support.tpm_factory import TPMScenario


def claims(tee: str, *, names_workload: bool) -> Claims:
    """Accepted claims, as if they came from this TEE."""
    built = Scenario(simulated=True).built()
    root = next(iter(built.roots.sim))
    policy = {"tees": [f"sim:{root}"], "measurements": [MRENCLAVE.hex()]}
    found = adyton.verify(
        built.quote, collateral=built.collateral, at=NOW, policy=policy, report_data=REPORT_DATA
    ).require()
    return dataclasses.replace(found, tee=tee, workload=Measurement(MRENCLAVE) if names_workload else None)


@pytest.mark.parametrize("tee", ["tdx", "snp", "az-snp", "nitro", "sim-tdx:" + "00" * 32])
def test_guest_alone_is_refused(tee: str) -> None:
    """The host gives a guest any program. So the policy names it, or the manifest's hash does."""
    with pytest.raises(Mismatch) as refused:
        require_program(claims(tee, names_workload=False), knows_manifest=False)
    assert refused.value.check == "program"
    require_program(claims(tee, names_workload=False), knows_manifest=True)
    require_program(claims(tee, names_workload=True), knows_manifest=False)


def test_enclave_under_gramine_is_refused() -> None:
    """There the program itself could show such evidence."""
    with pytest.raises(Mismatch) as refused:
        require_program(claims("sgx", names_workload=True), knows_manifest=True)
    assert refused.value.check == "TEE of the ingress"


def test_simulated_enclave_is_named_by_its_measurement() -> None:
    """A simulated enclave's measurement is the program's."""
    require_program(claims("sim:" + "00" * 32, names_workload=False), knows_manifest=False)


def judged(answer: Answer, nonce: bytes, policy: dict[str, object], tmp_path: Path) -> Any:
    """What is made of an answer."""
    return asyncio.run(_judge(read_policy(policy), (), tmp_path, False, answer, nonce, bytes(32)))


def test_event_log_beside_a_tpms_quote_is_used(tmp_path: Path) -> None:
    """Without it, or with another one, the programs that the firmware started are not proved."""
    scenario = TPMScenario()
    document = scenario.document()
    log = scenario.event_log()
    document.pop("event_log")
    cpu = json.dumps(document).encode()
    nonce = parse_quote_document(cpu).report_data
    policy = scenario.policy()
    answer = Answer("api", bytes(32), cpu, log)
    assert judged(answer, nonce, policy, tmp_path).summary
    with pytest.raises(EvidenceError):
        judged(dataclasses.replace(answer, event_log=b""), nonce, policy, tmp_path)
    with pytest.raises(EvidenceError):
        judged(dataclasses.replace(answer, event_log=log[:-1]), nonce, policy, tmp_path)


def test_event_log_beside_other_evidence_is_refused(tmp_path: Path) -> None:
    """Nothing would check it."""
    built = Scenario(simulated=True).built()
    with pytest.raises(Mismatch, match="takes no event log"):
        judged(Answer("api", bytes(32), built.quote, b"log"), REPORT_DATA, {}, tmp_path)


def test_policy_is_read_before_anything_is_asked(tmp_path: Path) -> None:
    """A policy that is none is the caller's mistake, whatever the network does."""
    policy = tmp_path / "policy.toml"
    policy.write_text("nonsense = 1\n")
    with pytest.raises(UsageError):
        connect("127.0.0.1:1", policy=policy)


@pytest.mark.parametrize("digest", ["", "00", "zz" * 32, "00" * 33])
def test_hash_of_the_manifest_is_read_strictly(digest: str) -> None:
    """64 hex digits."""
    with pytest.raises(UsageError):
        connect("127.0.0.1:1", policy={}, manifest_sha256=digest)
