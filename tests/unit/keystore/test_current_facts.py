"""What the record says to a transaction and to a reader: runs and leases."""

from __future__ import annotations

from adyton.keystore.transaction import Transaction
from tests.support.owner_world import World


def release(change: Transaction, number: int, approval: str, run: str, until_ms: int) -> None:
    """A release as the key server records it."""
    item = {"approval": approval, "release": f"r-{number}", "renewed": False, "lease_until_ms": until_ms}
    change.record("release", f"g-{number}", {"grant": f"g-{number}", "run": run, "keys": [item]}, 0)


def test_usage_counts_runs_and_leases(world: World) -> None:
    """Runs count once however often they ask; leases end."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        for number, (run, until) in enumerate([("r1", 100), ("r1", 100), ("r2", 300)]):
            release(change, number, approval, run, until)
        inside = change.usage(approval, "r1", 50)
        assert (inside.runs, inside.active) == (2, 2)
        assert inside.own is not None
    with world.store.read() as view:
        later = view.usage(approval, "r1", 200)
        assert (later.runs, later.active, later.own) == (2, 1, None)
