"""Privacy budgets: read strictly, summed as dp-accounting does, and settled by what runs used."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from typing import Any, Final

import pytest

from adyton.agreement import budget as budget_module
from adyton.agreement.budget import Budget
from adyton.agreement.document import Agreement, parse_agreement
from adyton.errors import AuditError, Unavailable, UsageError
from adyton.keystore.audit import Entry
from adyton.keystore.audit_facts import PRIVACY_SETTLED, RELEASE, Facts
from adyton.values import Digest
from tests.support.agreement_factory import BUDGET, agreement_of

AGREEMENT = replace(agreement_of(Digest(b"h" * 32), Digest(b"v" * 32)), privacy=BUDGET)
SOME: Final = 300
MANY: Final = 10_000
MECHANISMS: Final = ((0.7, 1.0), (1.1, 1.0), (10.0, 1.0), (1.1, 0.01), (3.0, 0.01), (1.1, 0.25))


def test_budget_is_read_as_it_was_written() -> None:
    """In TOML and as plain data; whole numbers are numbers; and it changes the id."""
    assert parse_agreement(AGREEMENT.to_toml()) == AGREEMENT
    assert Agreement.from_dict(json.loads(AGREEMENT.canonical())) == AGREEMENT
    assert parse_agreement(AGREEMENT.to_toml().replace("epsilon = 3.0", "epsilon = 3")) == AGREEMENT
    assert AGREEMENT.id != replace(AGREEMENT, privacy=None).id
    assert AGREEMENT.id != replace(AGREEMENT, privacy=replace(BUDGET, epsilon=3.1)).id


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("key", "model2"),
        ("key", "results"),
        ("epsilon", 0),
        ("epsilon", 1001),
        ("epsilon", True),
        ("epsilon", "3"),
        ("delta", 0.6),
        ("delta", -1e-5),
        ("noise_multiplier", 0.0),
        ("sampling_probability", 1.01),
        ("steps", 0),
        ("steps", 1.5),
        ("steps", 10**9 + 1),
        ("accountant", "pld"),
    ],
)
def test_budget_that_is_none_is_refused(member: str, value: Any) -> None:
    """Anything unknown, ill-typed or out of range, and a key that is no input."""
    document = AGREEMENT.to_dict()
    document["privacy"] = {**document["privacy"], member: value}
    with pytest.raises(UsageError):
        Agreement.from_dict(document)


def test_without_the_accountant_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an optional package: without it the answer is *could not check*, with the command that installs it."""
    budget_module._epsilon.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert BUDGET.epsilon_of(0) == 0.0
    with pytest.raises(Unavailable) as refused:
        BUDGET.epsilon_of(1)
    assert "adyton[dp]" in (refused.value.remedy or "")


def _accounting() -> Any:
    """dp-accounting, whose curve of one mechanism is worked out once: that takes up to a third of a second."""
    dp = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'adyton[dp]'")
    from dp_accounting.rdp import rdp_privacy_accountant as module

    curve = module._compute_rdp_poisson_subsampled_gaussian
    if not hasattr(curve, "known"):
        known: dict[tuple[float, float], Any] = {}

        def remembered(q: float, noise_multiplier: float, orders: Any) -> Any:
            if (q, noise_multiplier) not in known:
                known[q, noise_multiplier] = curve(q, noise_multiplier, orders)
            return known[q, noise_multiplier]

        remembered.known = known  # type: ignore[attr-defined]
        module._compute_rdp_poisson_subsampled_gaussian = remembered
    return dp


def reference(budget: Budget, steps: list[int]) -> float:
    """Epsilon as dp-accounting has it, run by run, in their order."""
    dp = _accounting()
    from dp_accounting.rdp import RdpAccountant

    event = dp.PoissonSampledDpEvent(budget.sampling_probability, dp.GaussianDpEvent(budget.noise_multiplier))
    accountant = RdpAccountant()
    for count in filter(None, steps):
        accountant.compose(dp.SelfComposedDpEvent(event, count))
    return float(accountant.get_epsilon(budget.delta))


def _release(seq: int, steps: int) -> Entry:
    item = {
        "key": "patients",
        "approval": "a-1",
        "agreement": "ag-1",
        "release": "r-1",
        "renewed": False,
        "lease_until_ms": 1,
        "privacy_steps": steps,
    }
    body = {"grant": f"g-{seq}", "run": f"run {seq}", "keys": [item]}
    return Entry(seq, seq, RELEASE, json.dumps(body), bytes(32))


def _settled(seq: int, grant: int, reserved: int, used: int) -> Entry:
    body = {"grant": f"g-{grant}", "agreement": "ag-1", "reserved": reserved, "used": used}
    return Entry(seq, seq, PRIVACY_SETTLED, json.dumps(body), bytes(32))


def one_history(seed: int) -> None:
    """Runs reserve, and some settle with less, with nothing, or with more. The ledger and dp-accounting agree."""
    draw = random.Random(seed)
    noise, sampling = draw.choice(MECHANISMS)
    budget = Budget(
        key="patients",
        epsilon=draw.uniform(0.5, 20),
        delta=10 ** -draw.uniform(4, 8),
        noise_multiplier=noise,
        sampling_probability=sampling,
        steps=draw.randint(1, 300),
    )
    facts, there, seq = Facts(), dict[int, int](), 0
    for _ in range(draw.randint(1, 12)):
        expected = reference(budget, [*there.values(), budget.steps])
        found = budget.epsilon_of(facts.privacy_steps.get("ag-1", 0) + budget.steps)
        assert found == pytest.approx(expected, rel=1e-9)
        if expected > budget.epsilon:
            break
        seq += 1
        facts.note(_release(seq, budget.steps))
        there[seq] = budget.steps
        grant = draw.choice(sorted(there))
        if draw.random() < 0.6 and f"g-{grant}" in facts.reserved:
            seq += 1
            there[grant] = draw.choice((0, draw.randint(0, budget.steps), draw.randint(0, 3 * budget.steps)))
            facts.note(_settled(seq, grant, budget.steps, there[grant]))
        if draw.random() < 0.3:
            facts = Facts.from_dict(json.loads(json.dumps(facts.to_dict())))


def test_ledger_agrees_with_dp_accounting() -> None:
    """Over some hundred random histories, the same each time."""
    _accounting()
    for seed in range(SOME):
        one_history(seed)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_ledger_agrees_with_dp_accounting_for_long() -> None:
    """Over ten thousand random histories."""
    _accounting()
    for seed in range(MANY):
        one_history(1_000_000 + seed)


def test_record_that_settles_what_is_not_reserved_is_refused() -> None:
    """Twice for one grant, or with another reservation than there is."""
    for last in (_settled(3, 1, 10, 0), _settled(3, 2, 10, 0)):
        facts = Facts()
        facts.note(_release(1, 10))
        facts.note(_settled(2, 1, 10, 4))
        assert facts.privacy_steps == {"ag-1": 4}
        with pytest.raises(AuditError):
            facts.note(last)
