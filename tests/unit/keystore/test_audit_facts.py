"""What the record says of leases, counted one by one and as it is kept."""

from __future__ import annotations

import json
import random

from adyton.keystore import audit_facts as facts_module
from adyton.keystore.audit import Entry
from adyton.keystore.audit_facts import RELEASE, Facts


def test_leases_that_last_are_those_that_one_counts_by_hand() -> None:
    """Over renewals, leases of every length, those that were forgotten, and facts that were written down."""
    drawn = random.Random(7)
    found = Facts(forget_above=50)
    at_ms = 0
    for seq in range(1, 1000):
        at_ms += drawn.randrange(5)
        run, until = f"{drawn.randrange(300):032x}", at_ms + drawn.randrange(1, 900)
        item = {"approval": "a", "lease_until_ms": until, "release": f"r-{seq}", "renewed": False}
        found.note(Entry(seq, at_ms, RELEASE, json.dumps({"run": run, "keys": [item]}), b""))
        for facts in (found, Facts.from_dict(json.loads(json.dumps(found.to_dict())))):
            lasting = [lease for lease in facts.leases["a"].values() if lease.until_ms > at_ms]
            assert facts.active("a", at_ms) == len(lasting)
    assert found.leases_kept < 300 < facts_module._LEASES_KEPT
    assert found.active("a", at_ms + 1000) == found.active("other", at_ms) == 0
