"""A past decision, judged again from what the record kept."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adyton.keyserver.replay import replay
from adyton.keystore.approval import Approval
from adyton.values import Measurement
from tests.support.evidence_factory import MRENCLAVE, NOW, REPORT_DATA, Scenario


def judged_again(channel: str | None, *, approved: bool = True, bound: bool = True, **more: str) -> bool | None:
    """Whether a decision by an approval with the early channel is accepted again. None: it cannot be judged."""
    built = Scenario(simulated=True).built()
    tee = f"sim:{next(iter(built.roots.sim))}"
    approval = Approval(
        key="weights",
        app="classify",
        version="v1",
        tees=(tee,),
        measurement=Measurement(MRENCLAVE),
        evidence={"sgx": {"channel": "early"}},
    )
    kept = {hashlib.sha256(raw).digest(): raw for raw in (built.quote, built.collateral.to_json().encode())}
    evidence, collateral = (digest.hex() for digest in kept)
    body: dict[str, Any] = {"evidence": evidence, "collateral": collateral, "tee": tee, "platform": {}}
    body |= {"report_data": REPORT_DATA.hex()} if bound else {}
    body |= {"keys": [{"approval": "a-1", "revision": 1}]} if approved else {}
    body["platform"] |= {"tcb_channel": channel} if channel else {}
    body |= more
    view = SimpleNamespace(artifact=kept.get, revision=lambda _id, _revision: approval)
    entry = SimpleNamespace(body=json.dumps(body), at_ms=int(NOW.timestamp() * 1000))
    found = replay(cast("Any", view), cast("Any", entry))
    return None if found is None else found.verdict == "accepted"


@pytest.mark.parametrize(
    ("channel", "accepted"), [("early", True), ("standard", False), ("None", False), (None, False)]
)
def test_replay_takes_the_channel_from_the_record(channel: str | None, accepted: bool) -> None:
    """No document of the collateral says its channel; without a record of it the strict approval is not met."""
    assert judged_again(channel) is accepted


def test_replay_without_approval_looks_at_the_platform_only() -> None:
    """What asked for nothing in particular has no report data to compare, and is still looked at."""
    assert judged_again(None, approved=False, bound=False)


def test_replay_with_gpus_looks_at_the_platform_only() -> None:
    """Their collateral is not kept, so nobody can say again which workload register is right."""
    assert judged_again("standard") is False
    assert judged_again("standard", devices="00" * 32)


def test_replay_without_the_log_that_was_kept_says_nothing() -> None:
    """Whoever removed it from the database gets no verdict over a boot without a log."""
    assert judged_again("early", event_log="00" * 32) is None
