"""Pruning evidence: only what no younger entry names goes, the record stays whole, and says that it was done."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager

import pytest
import sqlalchemy as sa

from adyton.keystore import schema
from adyton.keystore.audit_facts import PRUNED
from adyton.keystore.prune import Pruned, missing, prune
from adyton.keystore.store import Store
from adyton.keystore.transaction import Transaction
from tests.support.owner_world import World


def decide(store: Store, at_ms: int, evidence: bytes, collateral: bytes) -> int:
    """A decision with its evidence, as the key server records it; returns its entry's number."""
    with store.write() as change:
        body = {
            "evidence": change.keep_artifact("evidence", evidence, at_ms).hex(),
            "collateral": change.keep_artifact("collateral", collateral, at_ms).hex(),
        }
        return change.record("release", "g", {**body, "grant": "g", "run": "r", "keys": []}, at_ms).seq


def kept(store: Store) -> set[bytes]:
    """The bytes of everything that is kept."""
    with store.read() as view:
        return {data for _, _, data in view.artifacts()}


def test_prune_removes_what_only_older_entries_name(world: World) -> None:
    """Collateral that a younger decision used too is kept, though it was stored long ago."""
    decide(world.store, 1000, b"old evidence", b"old collateral")
    decide(world.store, 2000, b"older evidence", b"shared collateral")
    decide(world.store, 5000, b"young evidence", b"shared collateral")
    decide(world.store, 5000, b"old evidence again", b"young collateral")
    entries = world.kinds()
    assert prune(world.store, 5000, actor="a" * 200) == Pruned(3, len(b"old evidenceold collateralolder evidence"))
    assert kept(world.store) == {
        b"shared collateral",
        b"young evidence",
        b"old evidence again",
        b"young collateral",
    }
    assert world.kinds() == [*entries, PRUNED]
    with world.store.read() as view:
        (entry,) = view.entries(kind=PRUNED)
    assert json.loads(entry.body) == {"actor": "a" * 128, "before_ms": 5000, "count": 3, "size_bytes": 40}
    world.store.verify_audit()


def test_prune_says_of_each_entry_what_is_gone_and_why(world: World) -> None:
    """What was pruned is told apart from what something else removed."""
    old = decide(world.store, 1000, b"old evidence", b"shared collateral")
    young = decide(world.store, 5000, b"young evidence", b"shared collateral")
    prune(world.store, 3000, actor="test")
    with world.store.engine.connect() as connection, connection.begin():
        young_sha256 = hashlib.sha256(b"young evidence").digest()
        connection.execute(sa.delete(schema.artifacts).where(schema.artifacts.c.sha256 == young_sha256))
    with world.store.read() as view:
        entries = {entry.seq: entry for entry in view.entries()}
        assert [*missing(view, entries[old])] == ["evidence"]
        assert missing(view, entries[old])["evidence"].startswith("pruned on ")
        assert "something else removed it" in missing(view, entries[young])["evidence"]


def test_prune_by_another_process_is_noticed_by_one_that_serves(world: World) -> None:
    """A process that remembers what it has stored stores it again after a pruning, and does not name what is gone."""
    other = world.home.open_store()
    for _ in range(2):
        decide(world.store, 1000, b"evidence", b"collateral")
    assert prune(other, 2000, actor="test").count == 2
    assert kept(world.store) == set()
    decide(world.store, 3000, b"evidence", b"collateral")
    assert kept(world.store) == {b"evidence", b"collateral"}
    other.close()


def test_prune_keeps_what_is_named_while_it_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision between the reading and the removal that uses old collateral again keeps it."""
    decide(world.store, 1000, b"old evidence", b"shared collateral")
    other = world.home.open_store()
    written = other.write

    def decide_then_write() -> AbstractContextManager[Transaction]:
        decide(world.store, 5000, b"young evidence", b"shared collateral")
        return written()

    monkeypatch.setattr(other, "write", decide_then_write)
    assert prune(other, 3000, actor="test").count == 1
    assert kept(world.store) == {b"shared collateral", b"young evidence"}
    other.close()


def test_prune_of_many_pieces_at_once(world: World) -> None:
    """More pieces than a statement takes."""
    with world.store.write() as change:
        for number in range(1300):
            change.keep_artifact("evidence", str(number).encode(), 1000)
    assert prune(world.store, 2000, actor="test").count == 1300
    assert kept(world.store) == set()
