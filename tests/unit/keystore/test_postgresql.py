"""The same store in PostgreSQL: two key servers behind one database, and backup from and to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from adyton.errors import AuditError, Denied, StoreError
from adyton.keystore import schema
from adyton.keystore.approval import REVOKED
from adyton.keystore.backup.create import back_up
from adyton.keystore.backup.restore import restore
from adyton.keystore.clock import now_ms
from adyton.release.client import obtain_keys
from tests.support.owner_world import World, make_world, running
from tests.support.postgres import postgres, programs
from tests.support.release_by_hand import reason

pytestmark = pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed (apt-get install postgresql)")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running PostgreSQL."""
    with postgres() as found:
        yield found


@pytest.fixture
def world(url: str, tmp_path: Path) -> Iterator[World]:
    """An owner whose store lives in PostgreSQL."""
    _empty(url)
    with make_world(tmp_path, store_url=url) as found:
        yield found


def _empty(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as connection, connection.begin():
        schema.metadata.drop_all(connection)
    engine.dispose()


def test_two_servers_one_database_release_and_revoke(world: World) -> None:
    """What one server approves, counts or revokes holds at the other, and the record stays one chain."""
    signed = world.program()
    approval = world.approve(signed, max_runs=2)
    other = world.home.open_store()
    second = World(world.folder, world.home, other, world.platform, world.collateral)
    with running(world) as first_server, running(second) as second_server:
        for server in (first_server, second_server):
            released = obtain_keys(signed, world.enclave(signed), {"": server.adyton})
            assert released.keys["weights"].reveal() == bytes(range(16))
        for server in (first_server, second_server):
            with pytest.raises(Denied):
                obtain_keys(signed, world.enclave(signed), {"": server.adyton})
            assert reason(world)["check"] == "number of runs"
        with other.write() as change:
            change.change_approval(approval, actor="test", state=REVOKED)
        with pytest.raises(Denied):
            obtain_keys(signed, world.enclave(signed), {"": first_server.adyton})
        assert "revoked" in reason(world)["message"]
    other.close()
    world.store.verify_audit()


def test_limit_of_runs_holds_when_two_servers_race(world: World) -> None:
    """With one run allowed, exactly one of many simultaneous requests at two servers gets the key."""
    signed = world.program()
    world.approve(signed, max_runs=1)
    other = world.home.open_store()
    second = World(world.folder, world.home, other, world.platform, world.collateral)
    outcomes: list[bool] = []

    def ask(address: str) -> None:
        try:
            obtain_keys(signed, world.enclave(signed), {"": address})
            outcomes.append(True)
        except Denied:
            outcomes.append(False)

    with running(world) as first_server, running(second) as second_server:
        threads = [threading.Thread(target=ask, args=(server.adyton,)) for server in (first_server, second_server) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    other.close()
    assert sorted(outcomes) == [False] * 7 + [True]
    world.store.verify_audit()


def test_writers_in_two_stores_keep_one_chain(world: World) -> None:
    """Simultaneous writers in different processes' stores never fork the record."""
    other = world.home.open_store()

    def work(store: object, name: str) -> None:
        from adyton.keystore.store import Store

        assert isinstance(store, Store)
        for number in range(20):
            with store.write() as change:
                change.record("note", name, {"number": number}, now_ms())

    threads = [threading.Thread(target=work, args=(store, f"t{n}")) for n, store in enumerate([world.store, other] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert world.kinds().count("note") == 80
    world.store.verify_audit()


def test_audit_verify_while_another_writes_raises_no_alarm(world: World) -> None:
    """The record is read as of one moment: what is appended between two of its statements is not seen."""
    other = world.home.open_store()
    with world.store.read() as view:
        head = view.head()
        with other.write() as change:
            change.record("note", "", {}, now_ms())
        assert view.head() == head
        assert [entry.seq for entry in view.entries()][-1] == head.seq
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with other.write() as change:
                change.record("note", "", {}, now_ms())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        heads = [world.store.verify_audit().seq for _ in range(10)]
    finally:
        stop.set()
        writer.join()
        other.close()
    assert heads == sorted(heads)


def test_tampering_in_postgresql_is_detected(world: World) -> None:
    """The chain and the policies' authentication hold whatever the database."""
    world.approve(world.program())
    with world.store.engine.connect() as connection, connection.begin():
        connection.execute(sa.update(schema.approvals).values(state="pending"))
    with pytest.raises(StoreError, match="something other"), world.store.read() as view:
        view.approvals()
    with world.store.engine.connect() as connection, connection.begin():
        connection.execute(sa.delete(schema.audit).where(schema.audit.c.seq == 2))
    with pytest.raises(AuditError, match="missing"):
        world.store.verify_audit()


def test_backup_from_postgresql_restores_to_sqlite_and_back(world: World, url: str, tmp_path: Path) -> None:
    """A backup does not care which database it came from or goes to."""
    world.approve(world.program())
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=b"correct horse", split=None, actor="test")

    def whole(home: object) -> None:
        from adyton.keystore.home import Home

        assert isinstance(home, Home)
        store = home.open_store()
        store.verify_audit()
        with store.read() as view:
            assert view.load_key("weights").reveal() == bytes(range(16))
            assert len(view.approvals()) == 1
        store.close()

    as_sqlite = restore(backup, tmp_path / "sqlite", passphrase=lambda: b"correct horse", store_url="", verify=whole)
    assert (as_sqlite.path / "store.db").exists()
    with pytest.raises(StoreError, match="already"):
        restore(backup, tmp_path / "again", passphrase=lambda: b"correct horse", verify=whole)
    world.store.close()
    _empty(url)
    again = restore(backup, tmp_path / "again", passphrase=lambda: b"correct horse", verify=whole)
    assert again.store_url() == url
