"""The store: opened with its own key and schema, changed in transactions, whole after a process is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from adyton.errors import StoreError, VersionMismatch
from adyton.keystore import schema
from adyton.keystore.approval import APPROVED, REVOKED
from adyton.keystore.clock import now_ms
from adyton.keystore.home import Home
from adyton.keystore.store import Store
from adyton.keystore.tables.keys import KEY
from adyton.keystore.wrapping import WrappingKey
from tests.support.database import raw_sql
from tests.support.owner_world import World, make_world


def test_store_opened_with_another_master_key_is_refused(world: World) -> None:
    """Another master key is noticed at once, not at the first release."""
    with pytest.raises(StoreError, match="does not open"):
        Store.open(world.home.store_url(), WrappingKey.generate())


def test_write_that_raises_changes_nothing(world: World) -> None:
    """Half a change is none."""
    before = world.kinds()

    def half() -> None:
        with world.store.write() as change:
            change.add_key("photo", b"p" * 16, KEY, actor="test")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert world.kinds() == before
    with world.store.read() as view:
        assert not view.has_key("photo")


def test_write_from_many_threads_and_two_stores_keeps_one_chain(world: World) -> None:
    """Whoever writes, the record stays one chain without gaps."""
    other = world.home.open_store()

    def work(store: Store, name: str) -> None:
        for number in range(15):
            with store.write() as change:
                change.record("note", name, {"number": number}, now_ms())

    threads = [threading.Thread(target=work, args=(store, f"t{n}")) for n, store in enumerate([world.store, other] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert world.kinds().count("note") == 60
    world.store.verify_audit()


def test_cached_approvals_are_fresh_after_another_process_changed_them(world: World) -> None:
    """A change made elsewhere counts in the very next transaction."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        assert change.approvals("weights")[0].state == APPROVED
    other = world.home.open_store()
    with other.write() as change:
        change.change_approval(approval, actor="other", state=REVOKED)
    other.close()
    with world.store.write() as change:
        assert change.approvals("weights")[0].state == REVOKED


def test_store_of_a_newer_adyton_is_refused(world: World) -> None:
    """A schema from the future is not guessed at."""
    raw_sql(world, "UPDATE meta SET value = ? WHERE name = 'schema'", b"99")
    with pytest.raises(VersionMismatch, match="newer"):
        world.home.open_store()


def test_store_of_an_older_schema_is_migrated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration runs once, in one transaction, and the store is of the newer schema after it."""
    done: list[int] = []

    def step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE keys ADD COLUMN remark TEXT")
        done.append(2)

    newer = schema.SCHEMA_VERSION + 1
    monkeypatch.setattr(schema, "SCHEMA_VERSION", newer)
    monkeypatch.setattr(schema, "MIGRATIONS", {newer: step})
    for _ in range(2):
        store = world.home.open_store()
        with store.read() as view:
            assert view.load_key("weights").reveal() == bytes(range(16))
        store.close()
    assert done == [2]


def test_write_killed_at_any_moment_leaves_a_whole_store(tmp_path: Path) -> None:
    """kill -9 in the middle of writing: what was acknowledged is there, and the record is one chain."""
    with make_world(tmp_path) as world:
        home = world.home.path
    code = (
        "import sys\nfrom pathlib import Path\nfrom adyton.keystore.home import Home\n"
        "store = Home.open(Path(sys.argv[1])).open_store()\n"
        "for number in range(100000):\n"
        "    with store.write() as change:\n"
        "        change.record('note', '', {'number': number}, 1)\n"
        "    print(number, flush=True)\n"
    )
    for after in (1, 7, 23):
        process = subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True)
        if process.stdout is None:
            pytest.fail("no pipe")
        last = -1
        for line in process.stdout:
            last = int(line)
            if last >= after:
                process.kill()
                break
        rest = [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
        process.wait()
        acknowledged = max([last, *rest])
        store = Home.open(home).open_store()
        store.verify_audit()
        with store.read() as view:
            numbers = [json.loads(entry.body)["number"] for entry in view.entries(kind="note")]
        store.close()
        assert acknowledged in numbers
