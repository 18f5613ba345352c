"""Ten thousand mutations of each format, fewer in `make test`: each is refused, or gives the unmutated claims.

Half of the mutations hit values that are signed again afterwards, under test roots, so that later checks fire. Those
may be accepted with other claims. They are counted by the fields that differ.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from adyton.attest.assess import assess
from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral
from adyton.attest.evidence import TPMEvidence, parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.roots import TrustRoots
from adyton.attest.tpm.structures import ALL_PCRS, PCRSelection
from adyton.errors import Error
from tests.support.tpm_factory import NONCE, NOW, AzureScenario, TPMScenario, rsa_key

COUNTS = [pytest.param(400, id="short"), pytest.param(10_000, id="long", marks=pytest.mark.slow)]


def _flip(draw: random.Random, raw: bytes) -> bytes:
    """Change one to three bytes, cut some, or put some in."""
    found = bytearray(raw)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(found))
        kind = draw.randrange(8)
        if kind == 0:
            del found[at : at + draw.randint(1, 8)]
        elif kind == 1:
            found[at:at] = draw.randbytes(draw.randint(1, 8))
        else:
            found[at] ^= 1 << draw.randrange(8)
    return bytes(found) or b"\0"


def _claims(
    raw: bytes,
    log: bytes | None,
    policy: Policy,
    collateral: AMDCollateral | Collateral | NoCollateral,
    roots: TrustRoots,
) -> dict[str, Any] | str:
    """What an accepted piece of evidence says, or the name of the check that refused it."""
    try:
        evidence = parse_evidence(raw)
    except Error as error:
        return error.check or type(error).__name__
    assert isinstance(evidence, TPMEvidence)
    if log is not None:
        evidence = evidence.with_event_log(log)
    found = assess(evidence, collateral, roots, policy, NOW, report_data=NONCE)
    if found.claims is None:
        return found.failed[0].name
    report = found.claims.report
    return {
        "tee": found.claims.tee,
        "workload": found.claims.workload,
        "pcrs": report.pcrs,
        "measurement": report.measurement,
        "platform": dict(report.platform),
        "report_data": report.report_data,
        "debug": report.debug,
    }


def _resigned(draw: random.Random, machine: TPMScenario) -> None:
    """Change one value before everything is signed again."""
    kind = draw.randrange(8)
    value = draw.randbytes(32)
    if kind == 0:
        machine.more = {draw.choice([4, 7, 12, 13, 15, 0]): value}
    elif kind == 1:
        machine.started = [draw.choice([value, *machine.started]) for _ in range(draw.randint(0, 5))]
    elif kind == 2:
        machine.nonce = _flip(draw, machine.nonce)[:66]
    elif kind == 3:
        machine.selections = (PCRSelection(0x0B, draw.randbytes(draw.randint(1, 4))),)
    elif kind == 4:
        machine.selections = tuple([ALL_PCRS] * draw.choice([0, 2, 3]))
    elif kind == 5:
        machine.digest = value
    elif kind == 6:
        machine.spoil_log = _flip(draw, machine.event_log())
    else:
        machine.banks = tuple(draw.sample([0x04, 0x0B, 0x0C, 0x0D], draw.randint(1, 4)))


Make = Callable[[random.Random, bool], dict[str, Any] | str]


def _run(make: Make, good: dict[str, Any], may_differ: frozenset[str], count: int) -> Counter[str]:
    """Count the outcomes. Only evidence that was signed again may say something else, and only in these fields."""
    draw, outcomes = random.Random(7), Counter[str]()
    for number in range(count):
        resigned = number % 2 == 0
        found = make(draw, resigned)
        if isinstance(found, str):
            outcomes[found] += 1
            continue
        differing = {name for name in good if found[name] != good[name]}
        assert differing <= (may_differ if resigned else set()), (number, differing)
        outcomes[f"accepted; other: {', '.join(sorted(differing)) or 'nothing'}"] += 1
    print(dict(outcomes.most_common()))
    return outcomes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
def test_mutated_quote_document_is_refused_or_says_the_same(count: int) -> None:
    """Document, message, signature, certificates, PCRs, event log."""
    machine = TPMScenario()
    policy, document = Policy.from_dict(machine.policy()), machine.document()
    roots = TrustRoots().with_sim(policy.sim_roots)
    raw = json.dumps(document).encode()
    good = _claims(raw, None, policy, NoCollateral(), roots)
    assert isinstance(good, dict)

    def make(draw: random.Random, resigned: bool) -> dict[str, Any] | str:
        if not resigned:
            return _claims(_flip(draw, raw), None, policy, NoCollateral(), roots)
        other = TPMScenario()
        _resigned(draw, other)
        message = other.attest().to_bytes()
        changed = document | {
            "message": _b64(message),
            "signature": _b64(other.signature(message).to_bytes()),
            "pcrs": {"sha256": [value.hex() for value in other.pcrs()]},
            "event_log": _b64(other.event_log()),
        }
        return _claims(json.dumps(changed).encode(), None, policy, NoCollateral(), roots)

    # a boot with the same programs, and the notes between them elsewhere, has another PCR 4, and is as good
    outcomes = _run(make, good, frozenset({"pcrs", "measurement"}), count)
    assert outcomes["boot applications"]
    assert outcomes["TPM quote: PCR selection"]
    assert outcomes["report data"]
    assert outcomes["event log"] + outcomes["event log: PCR 4"]


def _b64(raw: bytes) -> str:
    import base64

    return base64.b64encode(raw).decode()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
def test_mutated_azure_body_is_refused_or_says_the_same(count: int) -> None:
    """Body, paravisor's report, hardware report, runtime claims, TPM quote, event log."""
    machine = AzureScenario()
    policy, built = Policy.from_dict(machine.policy()), machine.snp.built()
    raw, log = machine.body(), machine.tpm.event_log()
    good = _claims(raw, log, policy, built.collateral, built.roots)
    assert isinstance(good, dict)

    def make(draw: random.Random, resigned: bool) -> dict[str, Any] | str:
        if not resigned:
            return _claims(_flip(draw, raw), log, policy, built.collateral, built.roots)
        other = AzureScenario(tpm=TPMScenario(ak_key=rsa_key("hcl-ak")))
        if draw.randrange(4):
            _resigned(draw, other.tpm)
        else:
            name = draw.choice(["policy", "vmpl", "committed_tcb", "version"])
            other.snp.fields[name] = (
                draw.choice([0, 1, 1 << 19 | 0x30000, 0x30000])
                if name == "policy"
                else (bytes(8) if name == "committed_tcb" else draw.randrange(6))
            )
        return _claims(other.body(), other.tpm.event_log(), policy, built.collateral, built.roots)

    # the hardware's maker may sign a report with other facts of the platform that the policy leaves open
    outcomes = _run(make, good, frozenset({"pcrs", "platform"}), count)
    assert outcomes["boot applications"]
    assert outcomes["paravisor's privilege level (VMPL)"]
    assert outcomes["minimum TCB"]
