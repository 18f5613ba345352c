"""An approval is what the audit record says that it is: nothing older that is put back in the database counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from adyton.errors import AuditError, Denied, StoreError, Unavailable
from adyton.keystore import schema
from adyton.keystore.approval import APPROVED, REVOKED
from adyton.keystore.audit import canonical
from adyton.keystore.home import Home
from adyton.keystore.store import Store
from adyton.keystore.tables.keys import KEY
from adyton.release.client import obtain_keys
from tests.support.owner_world import World, running
from tests.support.release_by_hand import reason


@contextmanager
def reopened(world: World) -> Iterator[Store]:
    """The store as a process that starts now sees it."""
    store = Home.open(world.home.path).open_store()
    try:
        yield store
    finally:
        store.close()


def rows(world: World, table: sa.Table) -> list[dict[str, Any]]:
    """All rows of a table."""
    with world.store.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def behind_its_back(world: World, *statements: sa.Executable) -> None:
    """Change the database as something other than Adyton."""
    with world.store.engine.connect() as connection, connection.begin():
        for statement in statements:
            connection.execute(statement)


def revoke(world: World, approval: str) -> None:
    """What `adyton revoke` does."""
    with world.store.write() as change:
        change.change_approval(approval, actor="test", state=REVOKED)


def put_back(approval: str, row: Mapping[str, Any]) -> sa.Executable:
    """The statement that puts an older row back, code and all."""
    return sa.update(schema.approvals).where(schema.approvals.c.id == approval).values(**row)


def test_older_row_of_an_approval_put_back_releases_nothing(world: World) -> None:
    """A revocation cannot be undone with the row from before it, under a server that runs or one that starts."""
    signed = world.program()
    approval = world.approve(signed)
    (before,) = rows(world, schema.approvals)
    with running(world) as server:
        obtain_keys(signed, world.enclave(signed), {"": server.adyton})
        revoke(world, approval)
        with pytest.raises(Denied):
            obtain_keys(signed, world.enclave(signed), {"": server.adyton})
        assert "revoked" in reason(world)["message"]
        behind_its_back(world, put_back(approval, before))
        with pytest.raises(Denied):
            obtain_keys(signed, world.enclave(signed), {"": server.adyton})
        assert "revoked" in reason(world)["message"]
        with pytest.raises(StoreError, match="put back"), world.store.write() as change:
            change.add_key("other", b"o" * 16, KEY, actor="test")  # approvals are read anew
        with pytest.raises(Unavailable, match="could not check"):  # why is for the owner alone
            obtain_keys(signed, world.enclave(signed), {"": server.adyton})
    assert world.kinds().count("release") == 1
    with reopened(world) as store:
        with pytest.raises(StoreError, match="put back") as caught, store.read() as view:
            view.approvals("weights")
        assert "revision 2, revoked" in str(caught.value.expected)
        assert "revision 1, approved" in str(caught.value.seen)
        with pytest.raises(StoreError, match="put back"), store.read() as view:
            view.approval(approval)
        with pytest.raises(StoreError, match="put back"), store.write() as change:
            change.approvals("weights")
        with pytest.raises(StoreError, match="put back"), store.write() as change:
            change.change_approval(approval, actor="test", approval=world.approval(signed.measurement, max_runs=9))
        with pytest.raises(AuditError, match="not what the audit record says"):
            store.verify_audit()


@pytest.mark.parametrize(
    ("column", "value", "also"),
    [
        ("subject", "elsewhere", "not what the audit record says"),
        ("kind", "note", "was altered"),
        ("body", canonical({}), "was altered"),
        ("seq", 99, "does not end where"),
    ],
)
def test_revocation_hidden_in_the_record_is_found(world: World, column: str, value: object, also: str) -> None:
    """Who hides the newest entry as well breaks the chain, or hides nothing: what is looked up is hashed."""
    approval = world.approve(world.program())
    (before,) = rows(world, schema.approvals)
    revoke(world, approval)
    hide = sa.update(schema.audit).where(schema.audit.c.seq == len(world.kinds())).values(**{column: value})
    behind_its_back(world, put_back(approval, before), hide)
    with reopened(world) as store:
        with pytest.raises(AuditError, match=also):
            world.home.check_not_older(store)  # what `serve` does first
        if column in ("subject", "body"):
            with pytest.raises((StoreError, AuditError)), store.read() as view:
                view.approvals()


def test_revocation_hidden_after_the_start_does_not_count(world: World) -> None:
    """What was verified at the start is remembered: hiding it in the database later changes nothing."""
    approval = world.approve(world.program())
    (before,) = rows(world, schema.approvals)
    revoke(world, approval)
    with reopened(world) as store:
        world.home.check_not_older(store)
        hide = sa.update(schema.audit).where(schema.audit.c.seq == len(world.kinds())).values(kind="note")
        behind_its_back(world, put_back(approval, before), hide)
        with pytest.raises(StoreError, match="put back"), store.read() as view:
            view.approvals()


def test_audit_verify_finds_an_approval_that_is_gone_or_has_another_text(world: World) -> None:
    """All rows of the record are there, each as its newest entry says, each with its code."""
    approval = world.approve(world.program())
    (before,) = rows(world, schema.approvals)
    world.store.verify_audit()
    for statement, error in (
        (sa.update(schema.approvals).values(document=before["document"].replace("v1", "v2")), AuditError),
        (sa.update(schema.approvals).values(revision=7), AuditError),
        (sa.update(schema.approvals).values(mac=bytes(32)), StoreError),
        (sa.delete(schema.approvals), AuditError),
    ):
        behind_its_back(world, statement)
        with pytest.raises(error, match=approval):
            world.store.verify_audit()
        behind_its_back(world, sa.delete(schema.approvals), sa.insert(schema.approvals).values(**before))
        world.store.verify_audit()


def test_whole_database_put_back_under_an_open_store_is_refused(world: World) -> None:
    """Record, head and approvals of an earlier moment fit each other, and not what this process has seen."""
    approval = world.approve(world.program())
    before = {table: rows(world, table) for table in (schema.approvals, schema.chain)}
    revoke(world, approval)
    with world.store.write() as change:
        assert change.approvals()[0].state == REVOKED
    behind_its_back(
        world,
        put_back(approval, before[schema.approvals][0]),
        sa.delete(schema.audit).where(schema.audit.c.seq > before[schema.chain][0]["seq"]),
        sa.update(schema.chain).values(**before[schema.chain][0]),
    )
    with pytest.raises(StoreError, match="went back"), world.store.write() as change:
        change.approvals()
    with reopened(world) as store, store.write() as change:  # only a checkpoint shows it to a process that starts
        assert change.approvals()[0].state == APPROVED


def test_checkpoint_beside_the_store_is_held_against_it_as_long_as_it_is_open(world: World) -> None:
    """What `serve` compares at its start it goes on comparing."""
    before = rows(world, schema.chain)[0]
    with world.store.write() as change:
        change.record("note", "", {}, 1)
    service = world.service()
    world.home.keep_checkpoint(service.checkpoint())
    service.close()
    with reopened(world) as store:
        world.home.check_not_older(store)
        behind_its_back(
            world,
            sa.delete(schema.audit).where(schema.audit.c.seq > before["seq"]),
            sa.update(schema.chain).values(**before),
        )
        with pytest.raises(StoreError, match="went back"), store.write():
            pass


def test_view_of_an_earlier_moment_raises_no_alarm(world: World) -> None:
    """A view that began before a change sees approvals and record as they were, whoever has read on meanwhile."""
    approval = world.approve(world.program())
    with world.store.read() as view:
        view.head()
        revoke(world, approval)
        with world.store.read() as later:
            assert later.approvals()[0].state == REVOKED
        assert view.approvals()[0].state == APPROVED
        assert view.approval(approval).revision == 1


def test_change_that_is_rolled_back_leaves_no_trace(world: World) -> None:
    """What the record would have said is forgotten with the rest."""
    approval = world.approve(world.program())

    def half() -> None:
        with world.store.write() as change:
            change.change_approval(approval, actor="test", state=REVOKED)
            assert change.approval(approval).state == REVOKED
            list(change.entries())
            assert change.approvals()[0].state == REVOKED
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with world.store.write() as change:
        assert change.approvals()[0].state == APPROVED
    with world.store.read() as view:
        assert view.approval(approval).revision == 1
    world.store.verify_audit()


def test_history_is_read_from_the_record(world: World) -> None:
    """Past revisions have no table of their own that could be altered: replays judge by what the record says."""
    approval = world.approve(world.program())
    revoke(world, approval)
    with world.store.read() as view:
        assert [entry["state"] for entry in view.history()] == [APPROVED, REVOKED]
        assert view.history("a-other") == []
        first = view.revision(approval, 1)
        assert first is not None
        assert first.app == "classify"
        assert view.revision(approval, 3) is None
    assert not sa.inspect(world.store.engine).has_table("history")


def made_older(world: World, version: int) -> None:
    """Give the store the form that it had in schema 1 or 2, as far as it differs."""
    ring = world.store.keyring
    state = ring.master.wrap(ring._state_key.reveal(), b"adyton master key check 1" + ring.store_id)
    with world.store.engine.connect() as connection, connection.begin():
        if version == 1:
            connection.exec_driver_sql(
                "CREATE TABLE history (approval TEXT REFERENCES approvals (id), revision INTEGER)"
            )
            connection.exec_driver_sql("INSERT INTO history SELECT id, 1 FROM approvals")
        connection.exec_driver_sql("CREATE TABLE releases (id TEXT, approval TEXT REFERENCES approvals (id))")
        connection.exec_driver_sql("ALTER TABLE chain DROP COLUMN mac")
        connection.exec_driver_sql("ALTER TABLE chain ADD COLUMN policy_revision BIGINT NOT NULL DEFAULT 0")
        for name, value in (("schema", str(version).encode()), ("state", state)):
            connection.execute(sa.update(schema.meta).where(schema.meta.c.name == name).values(value=value))


@pytest.mark.parametrize("version", [1, 2])
def test_store_of_an_older_schema_is_migrated(world: World, version: int) -> None:
    """A store whose record carries no code gets one, loses what the record says better, and keeps everything else."""
    approval = world.approve(world.program())
    made_older(world, version)
    with reopened(world) as store:
        with store.read() as view:
            assert view.approval(approval).state == APPROVED
            assert len(view.history(approval)) == 1
        store.verify_audit()
    tables = sa.inspect(world.store.engine).get_table_names()
    assert set(tables) == set(schema.metadata.tables)
    columns = {column["name"] for column in sa.inspect(world.store.engine).get_columns("chain")}
    assert columns == {"id", "seq", "hash", "mac"}


def test_older_store_is_migrated_only_if_its_record_is_whole(world: World) -> None:
    """What gets a code is verified first, against the checkpoint beside it as well."""
    approval = world.approve(world.program())
    (before,) = rows(world, schema.approvals)
    revoke(world, approval)
    service = world.service()
    world.home.keep_checkpoint(service.checkpoint())
    service.close()
    last = len(world.kinds())
    made_older(world, 2)
    behind_its_back(world, sa.update(schema.audit).where(schema.audit.c.seq == last).values(kind="note"))
    with pytest.raises(AuditError, match="was altered"):
        world.home.open_store()
    with world.store.engine.connect() as connection, connection.begin():
        connection.execute(sa.delete(schema.audit).where(schema.audit.c.seq == last))
        shorter = "SELECT hash FROM audit WHERE seq = chain.seq - 1"
        connection.exec_driver_sql(f"UPDATE chain SET hash = ({shorter}), seq = seq - 1")
    behind_its_back(world, put_back(approval, before))
    with pytest.raises(AuditError, match="was cut"):
        world.home.open_store()


def test_store_made_to_look_older_does_not_open(world: World) -> None:
    """Whoever writes the database cannot have a record signed that he made: the state key tells."""
    with world.store.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("ALTER TABLE chain ADD COLUMN policy_revision BIGINT NOT NULL DEFAULT 0")
        connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "schema").values(value=b"2"))
    with pytest.raises(StoreError, match="does not open"):
        world.home.open_store()
