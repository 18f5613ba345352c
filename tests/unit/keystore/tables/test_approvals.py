"""Approvals in the store: every revision is kept, and a changed row is refused."""

from __future__ import annotations

import pytest

from adyton.errors import StoreError, UnknownKey, UsageError
from adyton.keystore.approval import APPROVED, PENDING, REVOKED
from adyton.values import Measurement
from tests.support.database import raw_sql
from tests.support.owner_world import World

M = Measurement(b"m" * 32)


def test_change_approval_keeps_every_revision(world: World) -> None:
    """Who changed what and when is kept, and the record says so too."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        before = change.approval(approval).approval
        change.change_approval(approval, actor="bob", approval=before.changed(max_runs=5))
        change.change_approval(approval, actor="carol", state=REVOKED)
    with world.store.read() as view:
        history = view.history(approval)
        assert view.approval(approval).state == REVOKED
    assert [(entry["revision"], entry["actor"], entry["state"]) for entry in history] == [
        (1, "test", APPROVED),
        (2, "bob", APPROVED),
        (3, "carol", REVOKED),
    ]
    assert "max_runs" not in history[0]["policy"]
    assert history[1]["policy"]["max_runs"] == 5
    assert world.kinds().count("policy") == 3


def test_change_approval_revoked_stays_revoked(world: World) -> None:
    """What was taken back is not quietly given again."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        change.change_approval(approval, actor="test", state=REVOKED)
    for state in (APPROVED, PENDING):
        with pytest.raises(UsageError, match="revoked"), world.store.write() as change:
            change.change_approval(approval, actor="test", state=state)


def test_add_approval_for_a_key_that_does_not_exist_is_refused(world: World) -> None:
    """A misspelt key is noticed when it is approved."""
    with pytest.raises(UnknownKey), world.store.write() as change:
        change.add_approval(world.approval(M, key="nosuch"), actor="test")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE approvals SET state = 'approved'",
        "UPDATE approvals SET document = replace(document, '6d6d', '6e6e')",
        "UPDATE approvals SET revision = 9",
        "UPDATE approvals SET mac = zeroblob(32)",
    ],
)
def test_approval_changed_behind_adytons_back_releases_nothing(world: World, statement: str) -> None:
    """An approval is authenticated: a changed row is refused, not believed."""
    with world.store.write() as change:
        change.add_approval(world.approval(M), actor="test", state=PENDING)
    raw_sql(world, statement)
    with pytest.raises(StoreError, match="something other than Adyton"), world.store.read() as view:
        view.approvals("weights")
