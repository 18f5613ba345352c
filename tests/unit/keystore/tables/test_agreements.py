"""Agreements in the audit record: their states, their runs, and that what was ended stays so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.errors import AuditError, UsageError
from adyton.keystore.audit import Entry
from adyton.keystore.audit_facts import (
    AGREEMENT,
    AGREEMENT_COMPLETE,
    AGREEMENT_REVOKED,
    AGREEMENT_SIGNED,
    RELEASE,
    Facts,
)
from tests.support.agreement_factory import agreement_of, make_signer
from tests.support.owner_world import World, make_world

HOSPITAL, VENDOR = make_signer("hospital"), make_signer("vendor")
AGREEMENT_OF_TWO = agreement_of(HOSPITAL.owner, VENDOR.owner)
ID = AGREEMENT_OF_TWO.id
OWN = {"hospital": HOSPITAL.sign(AGREEMENT_OF_TWO)}
BOTH = {**OWN, "vendor": VENDOR.sign(AGREEMENT_OF_TWO)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner."""
    with make_world(tmp_path) as found:
        yield found


def sign(world: World) -> None:
    """The owner signs."""
    with world.store.write() as change:
        change.sign_agreement(AGREEMENT_OF_TWO, OWN, allowed=("output-in-clear",), actor="test")


def test_agreement_goes_from_signed_to_complete_to_revoked(world: World) -> None:
    """Each state is in the record, and what is read has the signatures."""
    sign(world)
    with world.store.read() as view:
        stored = view.agreement(ID)
        assert stored is not None
        assert (stored.agreement, stored.state) == (AGREEMENT_OF_TWO, AGREEMENT_SIGNED)
        assert view.agreement_signatures(ID) == OWN
    with world.store.write() as change:
        change.complete_agreement(AGREEMENT_OF_TWO, BOTH, actor="test")
    sign(world)  # again: what the others gave is kept
    with world.store.read() as view:
        assert [item.state for item in view.agreements()] == [AGREEMENT_COMPLETE]
        assert view.agreement_signatures(ID) == BOTH
    with world.store.write() as change:
        change.revoke_agreement(ID, actor="test")
        change.revoke_agreement(ID, actor="test")
    with world.store.read() as view:
        assert [item.state for item in view.agreements()] == [AGREEMENT_REVOKED]
        states = [json.loads(entry.body)["state"] for entry in view.entries(kind=AGREEMENT)]
    assert states == [AGREEMENT_SIGNED, AGREEMENT_COMPLETE, AGREEMENT_REVOKED]


def test_agreement_survives_a_restart_of_the_process(world: World) -> None:
    """The next process reads the same, also from the facts that were written down."""
    sign(world)
    with world.store.write() as change:
        change.revoke_agreement(ID, actor="test")
    again = world.home.open_store()
    try:
        with again.read() as view:
            found = view.agreement(ID)
    finally:
        again.close()
    assert found is not None
    assert found.state == AGREEMENT_REVOKED


def test_ended_agreement_is_never_taken_up_again(world: World) -> None:
    """Neither signed nor completed."""
    sign(world)
    with world.store.write() as change:
        change.revoke_agreement(ID, actor="test")
    with world.store.write() as change:
        with pytest.raises(UsageError, match="stays so"):
            change.sign_agreement(AGREEMENT_OF_TWO, OWN, allowed=(), actor="test")
        with pytest.raises(UsageError, match="stays so"):
            change.complete_agreement(AGREEMENT_OF_TWO, BOTH, actor="test")


def test_agreement_that_was_not_signed_is_neither_completed_nor_ended(world: World) -> None:
    """An owner completes only what she herself signed in this home."""
    with world.store.write() as change:
        with pytest.raises(UsageError) as refused:
            change.complete_agreement(AGREEMENT_OF_TWO, BOTH, actor="test")
        assert refused.value.check == "signature of the agreement"
        with pytest.raises(UsageError) as refused:
            change.revoke_agreement(ID, actor="test")
        assert refused.value.check == "agreement id"


def _entry(seq: int, kind: str, body: dict[str, object]) -> Entry:
    return Entry(seq, 1000 + seq, kind, json.dumps(body), bytes(32))


def _change(seq: int, state: str, **other: object) -> Entry:
    return _entry(seq, AGREEMENT, {"agreement": ID, "state": state, "document": AGREEMENT_OF_TWO.to_dict(), **other})


def test_record_that_takes_a_revocation_back_is_refused() -> None:
    """So is one with another text under the same id, or an unknown state."""
    other = replace(AGREEMENT_OF_TWO, runs=21).to_dict()
    for last in (_change(2, AGREEMENT_SIGNED), _change(2, AGREEMENT_REVOKED, document=other), _change(2, "paused")):
        facts = Facts()
        facts.note(_change(1, AGREEMENT_REVOKED))
        with pytest.raises(AuditError):
            facts.note(last)


def _release(seq: int, run: str, *, renewed: bool = False, keys: int = 1) -> Entry:
    item = {"key": "k", "approval": "a-1", "agreement": ID, "release": "r-1", "renewed": renewed}
    return _entry(seq, RELEASE, {"run": run, "keys": [{**item, "lease_until_ms": 10_000_000}] * keys})


def test_runs_of_an_agreement_are_counted_over_all_its_approvals() -> None:
    """A run with several keys counts once, a renewal not at all."""
    facts = Facts()
    for entry in (_release(1, "x", keys=2), _release(2, "x", renewed=True), _release(3, "y")):
        facts.note(entry)
    assert facts.agreed_runs == {ID: 2}
    assert Facts.from_dict(json.loads(json.dumps(facts.to_dict()))).agreed_runs == {ID: 2}
