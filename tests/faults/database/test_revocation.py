"""A revocation is not undone by whoever writes the database, under a server that runs or for one that starts."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from adyton.errors import AuditError, Denied, StoreError, Unavailable
from adyton.keystore import schema
from adyton.keystore.audit import entry_hash
from adyton.keystore.tables.keys import KEY
from tests.faults.database.writer import (
    Writer,
    denied,
    is_named,
    list_approvals,
    opened,
    release,
    releases_nothing,
    revoke,
    verify,
)
from tests.support.owner_world import World, running


def newest(writer: Writer) -> dict[str, Any]:
    """The last entry of the record."""
    return max(writer.rows(schema.audit), key=lambda row: row["seq"])


def refused_everywhere(world: World, *words: str) -> None:
    """Listing, verifying and starting refuse, and name it."""
    with opened(world) as store:
        is_named(lambda: list_approvals(store), *words)
        is_named(lambda: world.home.check_not_older(store))
    is_named(lambda: verify(world))


def test_older_row_put_back(world: World, writer: Writer) -> None:
    """The row from before the revocation, code and all, releases nothing and is named."""
    signed = world.program()
    approval = world.approve(signed)
    before = writer.copy()
    with running(world) as server:
        release(world, server, signed)
        revoke(world, approval)
        writer.put_back(before, "approvals")
        releases_nothing(world, server, signed)
    refused_everywhere(world, approval, "revision 2, revoked", "revision 1, approved")


def test_older_row_put_back_once_the_server_has_seen_the_revocation(world: World, writer: Writer) -> None:
    """What the server has read stays revoked for it, whatever is written meanwhile."""
    signed = world.program()
    approval = world.approve(signed)
    before = writer.copy()
    with running(world) as server:
        release(world, server, signed)
        revoke(world, approval)
        with denied(world, "revoked"):
            release(world, server, signed)
        writer.put_back(before, "approvals")
        with pytest.raises((Denied, Unavailable)):
            release(world, server, signed)
    refused_everywhere(world, approval)


def test_number_of_the_policys_revision_put_back(world: World, writer: Writer) -> None:
    """No number in the database says which approvals a server still goes by: there is none, nor does one help."""
    signed = world.program()
    approval = world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        revision = writer.rows(schema.chain)[0]
        assert "policy_revision" not in revision
        writer.sql("ALTER TABLE chain ADD COLUMN policy_revision BIGINT NOT NULL DEFAULT 1")
        writer.trigger("back", "UPDATE", "chain", "NEW.seq > OLD.seq", then="UPDATE chain SET policy_revision = 1")
        revoke(world, approval)
        for _ in range(2):
            with denied(world, "revoked"):
                release(world, server, signed)


def test_trigger_that_puts_the_row_back(world: World, writer: Writer) -> None:
    """`revoke` says that it was undone, and nothing is released."""
    signed = world.program()
    approval = world.approve(signed)
    before = writer.rows(schema.approvals)[0]
    mac = bytes(before["mac"]).hex()
    literal = f"X'{mac}'" if "sqlite" in world.home.store_url() else f"'\\x{mac}'"
    then = f"UPDATE approvals SET state = 'approved', revision = 1, mac = {literal}"
    with running(world) as server:
        release(world, server, signed)
        writer.trigger("back", "UPDATE", "approvals", "NEW.state = 'revoked'", then=then)
        with pytest.raises(StoreError, match="put back"):
            revoke(world, approval)
        releases_nothing(world, server, signed)
    refused_everywhere(world, approval)


def test_trigger_that_drops_the_entry(world: World, writer: Writer) -> None:
    """A revocation whose entry the database left out is refused at once, and the record does not verify."""
    signed = world.program()
    approval = world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        when = "NEW.kind = 'policy' AND NEW.body LIKE '%revoked%'"
        writer.trigger("drop_entry", "INSERT", "audit", when, ignore=True)
        with pytest.raises(StoreError, match="did not keep"):
            revoke(world, approval)
        releases_nothing(world, server, signed)
    refused_everywhere(world, "does not end where")


def test_trigger_that_drops_all_of_it(world: World, writer: Writer) -> None:
    """Where the database keeps nothing of a revocation, the home does: the server stops, and so does who starts."""
    signed = world.program()
    approval = world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        for table, event in (("audit", "INSERT"), ("chain", "UPDATE"), ("approvals", "UPDATE")):
            writer.trigger(f"drop_{table}", event, table, "1 = 1", ignore=True)
        with pytest.raises(StoreError, match="did not keep"):
            revoke(world, approval)
        releases_nothing(world, server, signed)
    refused_everywhere(world, "went back")


def test_whole_database_put_back_before_the_server_has_seen_it(world: World, writer: Writer) -> None:
    """All tables as they were, each true once: the checkpoint that `revoke` left in the home tells."""
    signed = world.program()
    approval = world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        before = writer.copy()
        revoke(world, approval)
        writer.put_back(before)
        releases_nothing(world, server, signed)
    refused_everywhere(world, "went back")


@pytest.mark.parametrize("column", ["kind", "body", "at"])
def test_newest_entry_changed(world: World, writer: Writer, column: str) -> None:
    """The entry of the revocation renamed or rewritten, with the older row put back."""
    signed = world.program()
    approval = world.approve(signed)
    before = writer.copy()
    with running(world) as server:
        release(world, server, signed)
        revoke(world, approval)
        entry = newest(writer)
        values = {"kind": "note", "body": str(entry["body"]).replace("revoked", "approved"), "at": 5}
        change = sa.update(schema.audit).where(schema.audit.c.seq == entry["seq"]).values({column: values[column]})
        writer.put_back(before, "approvals")
        writer.run(change)
        releases_nothing(world, server, signed)
    refused_everywhere(world, f"entry {entry['seq']} was altered")


def test_newest_entry_renamed_once_the_server_has_seen_it(world: World, writer: Writer) -> None:
    """A server that has read the revocation knows it; who starts, and whoever verifies, names the entry."""
    signed = world.program()
    approval = world.approve(signed)
    before = writer.copy()
    with running(world) as server:
        revoke(world, approval)
        with denied(world, "revoked"):
            release(world, server, signed)
        (seq,) = (
            row["seq"] for row in writer.rows(schema.audit) if "revoked" in row["body"] and row["kind"] == "policy"
        )
        writer.put_back(before, "approvals")
        writer.run(sa.update(schema.audit).where(schema.audit.c.seq == seq).values(kind="note"))
        with pytest.raises((Denied, Unavailable)):
            release(world, server, signed)
    refused_everywhere(world, f"entry {seq} was altered")


def test_record_written_anew_without_the_revocation(world: World, writer: Writer) -> None:
    """Whoever makes all hashes anew cannot make the code of the head."""
    signed = world.program()
    approval = world.approve(signed)
    before = writer.copy()
    with running(world) as server:
        release(world, server, signed)
        revoke(world, approval)
        last = newest(writer)
        (previous,) = (row for row in writer.rows(schema.audit) if row["seq"] == last["seq"] - 1)
        forged = entry_hash(bytes(previous["hash"]), last["seq"], 1, "note", "{}")
        writer.put_back(before, "approvals")
        writer.run(
            sa.update(schema.audit)
            .where(schema.audit.c.seq == last["seq"])
            .values(at=1, kind="note", subject="", body="{}", hash=forged),
            sa.update(schema.chain).values(hash=forged),
        )
        releases_nothing(world, server, signed)
    refused_everywhere(world, "something other than Adyton")


@pytest.mark.parametrize("last", [True, False])
def test_entries_deleted(world: World, writer: Writer, last: bool) -> None:
    """An entry that is gone is missed, the newest as well as one in between."""
    signed = world.program()
    approval = world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        revoke(world, approval)
        seq = newest(writer)["seq"]
        writer.run(sa.delete(schema.audit).where(schema.audit.c.seq == (seq if last else 2)))
        if last:
            releases_nothing(world, server, signed)
        else:
            with denied(world, "revoked"):
                release(world, server, signed)
    with opened(world) as store:
        is_named(lambda: list_approvals(store), "does not end where" if last else "entry 2 is missing")
    is_named(lambda: verify(world))


def test_row_of_an_approval_deleted_or_added(world: World, writer: Writer) -> None:
    """Approvals that the record has and the table has not, or the other way round, are named."""
    approval = world.approve(world.program())
    row = writer.rows(schema.approvals)[0]
    writer.run(sa.delete(schema.approvals))
    refused_everywhere(world, approval, "was removed")
    writer.run(
        sa.insert(schema.approvals).values(**row), sa.insert(schema.approvals).values(**{**row, "id": "a-forged"})
    )
    refused_everywhere(world, "a-forged")


def test_order_and_time_of_approvals_come_from_the_record(world: World, writer: Writer) -> None:
    """Which approval was changed last is not what the table's column says."""
    first, second = (world.approve(world.program(), version=version) for version in ("v1", "v2"))
    writer.run(sa.update(schema.approvals).where(schema.approvals.c.id == first).values(changed_at=1 << 50))
    with opened(world) as store, store.read() as view:
        found = view.approvals()
    assert [item.id for item in found] == [second, first]
    assert found[1].changed_at.year < 3000


def test_cache_is_not_brought_back(world: World, writer: Writer) -> None:
    """Approvals kept from before a revocation are not used after it, whatever the tables say then."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        change.approvals()
    before = writer.copy()
    revoke(world, approval)
    with world.store.write() as change:
        assert change.approvals()[0].state == "revoked"
    writer.put_back(before, "approvals")
    with world.store.write() as change:
        assert change.approvals()[0].state == "revoked"
    with pytest.raises(StoreError, match="put back"), world.store.write() as change:
        change.add_key("other", b"k" * 16, KEY, actor="test")
    with pytest.raises(StoreError, match="put back"), world.store.write() as change:
        change.approvals()


def test_head_put_back_alone(world: World, writer: Writer) -> None:
    """An older head with its code, and all entries left: a server that has seen more refuses."""
    before = writer.copy()
    signed = world.program()
    world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        writer.put_back(before, "chain")
        releases_nothing(world, server, signed)


def test_what_was_written_down_of_the_record_is_authenticated(
    world: World, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts that a process starts from: altered they are refused, older ones only cost time."""
    monkeypatch.setattr("adyton.keystore.tables.record.FACTS_EVERY", 3)
    approval = world.approve(world.program())
    for number in range(5):
        with world.store.write() as change:
            change.record("note", "", {"number": number}, 1)
    where = schema.meta.c.name == "facts"
    (older,) = (row["value"] for row in writer.rows(schema.meta) if row["name"] == "facts")
    revoke(world, approval)
    for number in range(5):
        with world.store.write() as change:
            change.record("note", "", {"number": number}, 1)
    (newer,) = (row["value"] for row in writer.rows(schema.meta) if row["name"] == "facts")
    assert newer != older
    for value in (older, newer):
        writer.run(sa.update(schema.meta).where(where).values(value=value))
        with opened(world) as store, store.read() as view:
            assert view.approvals()[0].state == "revoked"
            assert len(list(view.entries())) == view.head().seq
    writer.run(sa.update(schema.meta).where(where).values(value=newer[:-9] + b"x" + newer[-8:]))
    with opened(world) as store:
        is_named(lambda: list_approvals(store), "something other than Adyton")
    with pytest.raises(AuditError):
        verify(world)
