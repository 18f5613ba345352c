"""Keys and counts: an older version of a key, a run that was not counted, a lease that lasts longer."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from adyton.errors import OutOfOrder, StoreError, UnknownKey
from adyton.keystore import schema
from adyton.keystore.tables.keys import KEY, SECRET
from adyton.release.client import obtain_keys
from tests.faults.database.writer import Writer, denied, is_named, list_keys, opened, release, releases_nothing, verify
from tests.support.owner_world import World, running

NEWER = b"n" * 16


def rotate(world: World) -> None:
    """What `adyton key rotate` does, with a value that is known here."""
    with world.store.write() as change:
        change.add_key("weights", NEWER, KEY, actor="test", new_version=True)


def test_newest_version_of_a_key_removed(world: World, writer: Writer) -> None:
    """The version before it is not released: the record says which is the newest."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
        rotate(world)
        writer.run(sa.delete(schema.keys).where(schema.keys.c.version == 2))
        releases_nothing(world, server, signed)
    with opened(world) as store:
        is_named(lambda: list_keys(store), "'weights'", "version 2 is missing")
        with pytest.raises(StoreError, match="version 2 is missing"), store.read() as view:
            view.load_key("weights")
        with store.read() as view:
            assert view.load_key("weights", version=1).reveal() == bytes(range(16))
    is_named(lambda: verify(world), "'weights'", "version 2 is missing")


def test_newest_version_of_a_key_removed_once_it_was_released(world: World, writer: Writer) -> None:
    """A server that has read the newest goes on giving that, and never the one before."""
    signed = world.program()
    world.approve(signed)
    rotate(world)
    with running(world) as server:
        released = obtain_keys(signed, world.enclave(signed), {"": server.adyton})
        writer.run(sa.delete(schema.keys).where(schema.keys.c.version == 2))
        again = obtain_keys(signed, world.enclave(signed), {"": server.adyton})
    assert released.keys["weights"].reveal() == again.keys["weights"].reveal() == NEWER


def test_older_value_under_the_newest_version(world: World, writer: Writer) -> None:
    """A wrapped value opens only as the version that it was wrapped for."""
    signed = world.program()
    world.approve(signed)
    rotate(world)
    older = next(row["wrapped"] for row in writer.rows(schema.keys) if row["version"] == 1)
    writer.run(sa.update(schema.keys).where(schema.keys.c.version == 2).values(wrapped=older))
    with running(world) as server:
        releases_nothing(world, server, signed)
    is_named(lambda: verify(world), "does not open", "'weights'")


def test_key_that_the_record_does_not_know(world: World, writer: Writer) -> None:
    """A row that was put there is no key, and is named."""
    row = writer.rows(schema.keys)[0]
    writer.run(sa.insert(schema.keys).values(**{**row, "version": 2}))
    with opened(world) as store:
        is_named(lambda: list_keys(store), "version 2 was never made")
        with store.read() as view:
            assert view.load_key("weights").reveal() == bytes(range(16))
    writer.run(sa.update(schema.keys).where(schema.keys.c.version == 2).values(name="other", version=1))
    with opened(world) as store:
        is_named(lambda: list_keys(store), "'other'")
        with store.read() as view, pytest.raises(UnknownKey):
            view.load_key("other")
        with pytest.raises(StoreError, match="never made"), store.write() as change:
            change.rotate_data_key(actor="test")
    is_named(lambda: verify(world), "'other'")


def test_kind_of_a_key_changed(world: World, writer: Writer) -> None:
    """A secret is not handed out as a key, nor the other way round."""
    writer.run(sa.update(schema.keys).values(kind=SECRET))
    with opened(world) as store, store.read() as view, pytest.raises(StoreError, match="not as it was left"):
        view.load_key("weights")
    is_named(lambda: verify(world), "'weights'")


def test_rotation_of_the_data_key_undone(world: World, writer: Writer) -> None:
    """Keys as they were wrapped before the data key was changed are not used: that key may have leaked."""
    signed = world.program()
    world.approve(signed)
    before = writer.copy()
    with running(world) as server:
        release(world, server, signed)
        with world.store.write() as change:
            change.rotate_data_key(actor="test")
        release(world, server, signed)
    with Writer(world.home.store_url()) as other:
        other.put_back(before, "keys", "data_keys")
    with running(world) as server, opened(world) as store:
        with pytest.raises(StoreError, match="before the store's data key was rotated"), store.read() as view:
            view.load_key("weights")
        release(world, server, signed)  # this server has the key as it was wrapped since
    is_named(lambda: verify(world), "data key 2", "data key 1")


@pytest.mark.parametrize("start_again", [False, True])
def test_release_removed_from_the_record(world: World, writer: Writer, start_again: bool) -> None:
    """Runs are counted from the record: who removes one stops the server, and gets no run more."""
    signed = world.program()
    world.approve(signed, max_runs=1)
    before = writer.copy()
    with running(world) as server:
        release(world, server, signed)
        with denied(world, "number of runs"):
            release(world, server, signed)
        if not start_again:
            writer.put_back(before)
            releases_nothing(world, server, signed)
            return
    writer.run(sa.delete(schema.audit).where(schema.audit.c.kind == "release"))
    with opened(world) as store:
        is_named(lambda: world.home.check_not_older(store), "is missing")
    is_named(lambda: verify(world), "is missing")


def test_runs_are_counted_over_restarts_and_by_every_server(world: World) -> None:
    """What one process counted, the next one knows, and so does one beside it."""
    signed = world.program()
    world.approve(signed, max_runs=2)
    with running(world) as server:
        release(world, server, signed)
    with opened(world) as store:
        other = World(world.folder, world.home, store, world.platform, world.collateral)
        with running(other) as second, running(world) as server:
            release(other, second, signed)
            for address in (server, second):
                with denied(world, "number of runs"):
                    release(world, address, signed)


def test_no_table_counts_runs_nor_says_who_waits(world: World, writer: Writer) -> None:
    """What could be changed without being noticed is not there: it is read from the record."""
    assert set(writer.copy()) == {
        "approvals",
        "artifacts",
        "audit",
        "chain",
        "data_keys",
        "keys",
        "manifests",
        "meta",
        "nonces",
    }


def test_used_challenges_removed(world: World, writer: Writer) -> None:
    """A server does not answer a challenge twice, whatever the database says of it."""
    with world.store.write() as change:
        change.use_nonce(b"n" * 32, 1 << 50, 1)
    writer.run(sa.delete(schema.nonces))
    with pytest.raises(OutOfOrder, match="answered before"), world.store.write() as change:
        change.use_nonce(b"n" * 32, 1 << 50, 1)
