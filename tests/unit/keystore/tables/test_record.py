"""The audit record in the database: what tampering does to it, and checkpoints."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

import pytest

from adyton.errors import AuditError, StoreError
from adyton.keystore.audit import Checkpoint, Head, entry_hash, sign_checkpoint, verify_checkpoint
from adyton.keystore.audit_key import audit_private_key, audit_public_key
from adyton.keystore.clock import now_ms
from tests.support.database import raw_sql
from tests.support.owner_world import World


@pytest.fixture
def record(world: World) -> World:
    """A record of a dozen entries."""
    with world.store.write() as change:
        for number in range(12):
            change.record("note", f"n{number}", {"number": number}, 1000 + number)
    return world


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE audit SET body = body || ' ' WHERE seq = 5", "entry 5 was altered"),
        ("UPDATE audit SET at = at + 1 WHERE seq = 6", "entry 6 was altered"),
        ("UPDATE audit SET kind = 'other' WHERE seq = 7", "entry 7 was altered"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 8", "entry 8 was altered"),
        ("DELETE FROM audit WHERE seq = 4", "entry 4 is missing"),
        ("DELETE FROM audit WHERE seq = 1", "entry 1 is missing"),
        ("UPDATE audit SET seq = 99 WHERE seq = 9", "entry 9 is missing"),
        ("DELETE FROM audit WHERE seq > 10", "does not end where"),
    ],
)
def test_audit_tampering_is_detected(record: World, statement: str, message: str) -> None:
    """Altered, removed and moved entries are found, and named."""
    record.store.verify_audit()
    raw_sql(record, statement)
    with pytest.raises(AuditError, match=message):
        record.store.verify_audit()


def test_audit_cut_tail_shows_against_a_checkpoint(record: World) -> None:
    """A tail that was cut with care, head and its code and all, shows against a checkpoint that somebody else holds."""
    with sqlite3.connect(record.home.path / "store.db") as connection:
        before = connection.execute("SELECT seq, hash, mac FROM chain").fetchone()
    with record.store.write() as change:
        for number in range(3):
            change.record("note", "", {"further": number}, 1)
        head = change.head()
    checkpoint = sign_checkpoint(audit_private_key(record.home.path), record.store.id, head, now_ms())
    raw_sql(record, "DELETE FROM audit WHERE seq > ?", before[0])
    raw_sql(record, "UPDATE chain SET seq = ?, hash = ?, mac = ?", *before)
    other = record.home.open_store()
    other.verify_audit()
    with pytest.raises(AuditError, match="was cut"):
        other.verify_audit([checkpoint])
    with pytest.raises(StoreError, match="went back"), record.store.write() as change:
        change.record("forged", "", {}, 1)
    with pytest.raises(StoreError, match="went back"), record.store.read():
        pass
    with other.write() as change:
        for _ in range(5):
            change.record("forged", "", {}, 1)
    with pytest.raises(AuditError, match="not the one that the checkpoint"):
        other.verify_audit([checkpoint])
    with pytest.raises(AuditError, match="not the one that the checkpoint"):
        record.store.verify_audit([checkpoint])
    other.close()


def test_record_that_is_whole_but_not_ours_is_refused(record: World) -> None:
    """Hashes can be made anew by anybody; the code of the head cannot."""
    with record.store.read() as view:
        entries = list(view.entries())
    previous = record.store.head().hash
    with sqlite3.connect(record.home.path / "store.db") as connection:
        last, before = entries[-1], entries[-2]
        forged = entry_hash(before.hash, last.seq, last.at_ms, "other", last.body)
        connection.execute("UPDATE audit SET kind = 'other', hash = ? WHERE seq = ?", (forged, last.seq))
        connection.execute("UPDATE chain SET hash = ?", (forged,))
    assert forged != previous
    other = record.home.open_store()
    for store in (record.store, other):
        with pytest.raises(AuditError, match="something other than Adyton"), store.read():
            pass
        with pytest.raises(AuditError, match="something other than Adyton"), store.write():
            pass
        with pytest.raises(AuditError, match="something other than Adyton"):
            store.verify_audit()
    other.close()


def test_checkpoint_round_trips_and_forged_ones_are_refused(record: World) -> None:
    """A checkpoint is believed only with the owner's signature."""
    key, public = audit_private_key(record.home.path), audit_public_key(record.home.path)
    checkpoint = sign_checkpoint(key, record.store.id, Head(3, b"h" * 32), 7)
    assert Checkpoint.from_dict(json.loads(json.dumps(checkpoint.to_dict()))) == checkpoint
    verify_checkpoint(checkpoint, public)
    for forged in (
        replace(checkpoint, seq=4),
        replace(checkpoint, hash=bytes(32)),
        replace(checkpoint, at_ms=8),
        replace(checkpoint, store_id=bytes(16)),
    ):
        with pytest.raises(AuditError, match="not signed"):
            verify_checkpoint(forged, public)
    with pytest.raises(AuditError, match="another store"):
        record.store.verify_audit([replace(checkpoint, store_id=bytes(16))])
    for wrong in ({}, {**checkpoint.to_dict(), "seq": "1"}, {**checkpoint.to_dict(), "x": 1}, {"seq": True}):
        with pytest.raises(AuditError, match="not a checkpoint"):
            Checkpoint.from_dict(wrong)


def test_check_not_older_refuses_an_older_copy_of_the_store(record: World) -> None:
    """A database that was put back to an earlier state does not serve: a revocation since would be undone."""
    record.store.close()
    older = (record.home.path / "store.db").read_bytes()
    store = record.home.open_store()
    with store.write() as change:
        change.record("note", "", {}, 1)
        head = change.head()
    record.home.keep_checkpoint(sign_checkpoint(audit_private_key(record.home.path), store.id, head, now_ms()))
    record.home.check_not_older(store)
    store.close()
    for name in ("store.db-wal", "store.db-shm"):
        (record.home.path / name).unlink(missing_ok=True)
    (record.home.path / "store.db").write_bytes(older)
    store = record.home.open_store()
    with pytest.raises(StoreError, match="older"):
        record.home.check_not_older(store)
    store.close()
