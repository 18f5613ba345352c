"""How `adyton connect` judges the answer of an ingress: by the verification of `adyton verify`, and nothing less."""

from __future__ import annotations

import asyncio
import json

import pytest

from adyton.attest.evidence_policy import Policy
from adyton.endpoint.dial import Proved
from adyton.endpoint.hello import Answer
from adyton.errors import EvidenceError, MalformedQuote, Mismatch
from adyton.workflow.connect import _judge
from tests.support.amd_factory import SNPScenario
from tests.support.tpm_factory import TPMScenario

WANTED = bytes(range(64))


def judged(machine: TPMScenario, cpu: bytes, event_log: bytes, wanted: bytes = WANTED) -> Proved:
    """What the client makes of an answer."""
    policy = Policy.from_dict(machine.policy(tees=["tpm"], tpm_roots=[machine.root_pin.hex()]))
    return asyncio.run(_judge(policy, (), None, False, Answer("api", bytes(32), cpu, event_log), wanted, bytes(32)))


def evidence(machine: TPMScenario) -> bytes:
    """A quote over what is wanted, as an ingress gives it: without the log."""
    machine.nonce = WANTED
    document = {name: value for name, value in machine.document().items() if name != "event_log"}
    return json.dumps(document).encode()


def test_machine_with_a_tpm_is_judged_with_the_log_beside_its_quote() -> None:
    """The quote alone says nothing of what was started."""
    machine = TPMScenario()
    assert judged(machine, evidence(machine), machine.event_log()).summary
    for log in (b"", b"log"):
        with pytest.raises(EvidenceError):
            judged(machine, evidence(machine), log)
    with pytest.raises(EvidenceError):
        judged(machine, evidence(machine), machine.event_log(), bytes(64))


def test_log_beside_evidence_that_takes_none_is_refused() -> None:
    """It would be an unread field that both ends believe to be read."""
    with pytest.raises(Mismatch) as caught:
        judged(TPMScenario(), SNPScenario().report(), b"log")
    assert caught.value.check == "event log in the evidence"


@pytest.mark.parametrize("cpu", [b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", b"0\x82\x01\x00"])
def test_certificate_is_no_evidence_of_an_ingress(cpu: bytes) -> None:
    """What a certificate is bound to, the certificate says itself. So the refusal is that of bad evidence."""
    with pytest.raises(MalformedQuote):
        judged(TPMScenario(), cpu, b"")
