"""What was once true and is put back: the form of an older Adyton, a data key that leaked, a master key's rotation."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from adyton.errors import AuditError, StoreError
from adyton.keystore import schema
from adyton.keystore.audit import entry_hash
from adyton.keystore.audit_facts import DATA_KEY_ROTATED, KEY_ADDED, POLICY, RECORD_SIGNED
from adyton.keystore.backup.create import back_up
from adyton.keystore.backup.restore import restore
from adyton.keystore.home import Home
from adyton.keystore.master_rotation import rotate_master_file
from tests.faults.database.writer import REFUSED, Writer, is_named, opened, revoke, verify
from tests.support.owner_world import World


def made_older(world: World, writer: Writer) -> bytes:
    """Give the store the form of schema 2, as that Adyton had left it; returns its state key, wrapped as it was."""
    ring = world.store.keyring
    state = ring.master.wrap(ring._state_key.reveal(), b"adyton master key check 1" + ring.store_id)
    put_in_older_form(writer, state)
    return state


def put_in_older_form(writer: Writer, state: bytes) -> None:
    """What needs no key of Adyton's: the tables of schema 2, with a state key from then."""
    writer.sql(
        "ALTER TABLE chain DROP COLUMN mac", "ALTER TABLE chain ADD COLUMN policy_revision BIGINT NOT NULL DEFAULT 0"
    )
    for name, value in (("schema", b"2"), ("state", state)):
        writer.run(sa.update(schema.meta).where(schema.meta.c.name == name).values(value=value))


def append(writer: Writer, kind: str, body: str) -> None:
    """Append an entry as anybody can, while no code is asked for."""
    last: dict[str, Any] = max(writer.rows(schema.audit), key=lambda row: row["seq"])
    seq = last["seq"] + 1
    digest = entry_hash(last["hash"], seq, 1, kind, body)
    writer.run(
        sa.insert(schema.audit).values(seq=seq, at=1, kind=kind, subject="", body=body, hash=digest),
        sa.text("UPDATE chain SET seq = :seq, hash = :hash").bindparams(seq=seq, hash=digest),
    )


def body_of(writer: Writer, kind: str) -> str:
    """The text of the first entry of a kind."""
    return str(next(row["body"] for row in writer.rows(schema.audit) if row["kind"] == kind))


def test_older_form_put_back_with_a_revocation_undone(world: World, writer: Writer) -> None:
    """A store that was brought to this form once is not taken in the older form again, where no entry has a code."""
    approval = world.approve(world.program())
    state = made_older(world, writer)
    (before,) = writer.rows(schema.approvals)
    world.home.open_store().close()
    assert RECORD_SIGNED in [row["kind"] for row in writer.rows(schema.audit)]
    kept = world.home.kept_checkpoint()
    assert kept is not None
    assert kept.seq == len(writer.rows(schema.audit))
    revoke(world, approval)
    put_in_older_form(writer, state)
    writer.run(sa.update(schema.approvals).values(**before))
    append(writer, POLICY, body_of(writer, POLICY))
    with pytest.raises(AuditError, match="older version"):
        world.home.open_store()
    writer.run(sa.delete(schema.audit).where(schema.audit.c.kind == RECORD_SIGNED))
    with pytest.raises(AuditError):
        world.home.open_store()


@pytest.mark.parametrize("kind", [POLICY, KEY_ADDED, DATA_KEY_ROTATED])
def test_older_store_with_a_change_written_once_more(world: World, writer: Writer, kind: str) -> None:
    """What is brought to this form for the first time counts only where each change follows the one before it."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        change.rotate_data_key(actor="test")
    (before,) = writer.rows(schema.approvals)
    revoke(world, approval)
    made_older(world, writer)
    world.home.checkpoint_path.unlink()
    writer.run(sa.update(schema.approvals).values(**before))
    append(writer, kind, body_of(writer, kind))
    with pytest.raises(AuditError, match="does not say what an entry of its kind says"):
        world.home.open_store()


@pytest.mark.parametrize("body", ['{"version": 1e999}', '{"key": ' + "[" * 100_000 + "}", '{"approval": []}', "[]"])
@pytest.mark.parametrize("kind", [POLICY, KEY_ADDED, DATA_KEY_ROTATED])
def test_text_of_an_entry_that_no_entry_has(world: World, writer: Writer, kind: str, body: str) -> None:
    """It is refused in words, before anything shows who wrote it."""
    made_older(world, writer)
    append(writer, kind, body)
    with pytest.raises(AuditError):
        world.home.open_store()


def test_leaked_data_key_put_back_before_the_next_rotation(world: World, writer: Writer) -> None:
    """What a data key of before wraps, which others may know, does not become a key of the store by a rotation."""
    (older,) = writer.rows(schema.data_keys)
    ring = world.store.keyring
    leaked = ring.open_data_key(1, older["wrapped"])
    with world.store.write() as change:
        change.rotate_data_key(actor="test")
    forged = leaked.wrap(b"E" * 16, ring.key_binding("weights", 1, "key"))
    writer.run(sa.insert(schema.data_keys).values(**older), sa.update(schema.keys).values(wrapped=forged, data_key=1))

    def rotate() -> None:
        with opened(world) as store, store.write() as change:
            change.rotate_data_key(actor="test")

    is_named(rotate, "before the store's data key was rotated")
    with pytest.raises(StoreError):
        rotate_master_file(world.home, world.store, actor="test")
    assert {row["data_key"] for row in writer.rows(schema.keys)} == {1}


def test_rotation_of_the_master_key_that_the_database_undoes(world: World, writer: Writer) -> None:
    """The old master key stays where the store still needs it: nothing is lost."""
    state = next(row["value"] for row in writer.rows(schema.meta) if row["name"] == "state").hex()
    literal = f"X'{state}'" if "sqlite" in world.home.store_url() else f"'\\x{state}'"
    then = f"UPDATE meta SET value = {literal} WHERE name = 'state'"
    writer.trigger("back", "UPDATE", "meta", f"NEW.name = 'state' AND NEW.value <> {literal}", then=then)
    with pytest.raises(StoreError), opened(world) as store:
        rotate_master_file(world.home, store, actor="test")
    with opened(world) as store, store.read() as view:
        assert view.head().seq


def test_backup_of_a_store_that_does_not_verify_is_not_made(world: World, writer: Writer) -> None:
    """Else every backup from then on would be one that restore refuses, and nobody knew before it is needed."""
    world.approve(world.program())
    target = world.folder / "backup"
    for change in ("UPDATE audit SET body = '{}' WHERE seq = 2", "DELETE FROM approvals"):
        before = writer.copy()
        writer.sql(change)
        with opened(world) as store, pytest.raises(REFUSED):
            back_up(world.home, store, target, passphrase=b"a passphrase", split=None, actor="test")
        assert not target.exists()
        writer.put_back(before)
        world.home.checkpoint_path.unlink(missing_ok=True)
    verify(world)


def test_store_that_is_refused_leaves_nothing_in_the_database(world: World, writer: Writer) -> None:
    """A restore into PostgreSQL whose verification fails can be done again."""
    if "sqlite" in world.home.store_url():
        pytest.skip("a store in the home goes with the home")
    with opened(world) as store:
        back_up(world.home, store, world.folder / "backup", passphrase=b"a passphrase", split=None, actor="test")
    world.store.engine.dispose()
    writer.drop_all()

    def refuse(_: Home) -> None:
        raise StoreError("not this one")

    with pytest.raises(StoreError, match="not this one"):
        restore(world.folder / "backup", world.folder / "new", passphrase=lambda: b"a passphrase", verify=refuse)
    made = restore(
        world.folder / "backup", world.folder / "new", passphrase=lambda: b"a passphrase", verify=lambda _: None
    )
    made.open_store().close()
