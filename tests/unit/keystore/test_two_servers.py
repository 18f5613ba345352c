"""Two key servers, each a process with a home of its own, that share one PostgreSQL: as on two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from adyton.collateral.store import CollateralStore
from adyton.errors import Denied, StoreError, Unavailable, UsageError
from adyton.keystore import schema
from adyton.keystore.backup.create import back_up
from adyton.keystore.backup.restore import restore
from adyton.keystore.home import Home
from adyton.release.client import obtain_keys
from tests.support.owner_world import World, make_world, now
from tests.support.postgres import postgres, programs
from tests.support.release_by_hand import reason

needs_postgresql = pytest.mark.skipif(
    programs() is None, reason="PostgreSQL is not installed (apt-get install postgresql)"
)
PASSPHRASE = b"correct horse battery"
LIMIT_S = 60


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running PostgreSQL."""
    with postgres() as found:
        yield found


@pytest.fixture
def world(url: str, tmp_path: Path) -> Iterator[World]:
    """An owner whose store lives in PostgreSQL, with the platform's collateral in her home."""
    engine = sa.create_engine(url)
    with engine.connect() as connection, connection.begin():
        schema.metadata.drop_all(connection)
    engine.dispose()
    with make_world(tmp_path, store_url=url) as found:
        store = CollateralStore(found.home.collateral_path)
        store.import_bundle(found.platform.collateral(now()).to_json().encode(), now())
        yield found


def whole(home: Home) -> None:
    """What `adyton restore` verifies."""
    store = home.open_store()
    try:
        home.check_not_older(store)
    finally:
        store.close()


def second_home(world: World) -> Home:
    """The home of a second machine, as the documentation says to make it."""
    backup = world.folder / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    return restore(backup, world.folder / "second", passphrase=lambda: PASSPHRASE, join=True, verify=whole)


def adyton(home: Home, *words: str) -> str:
    """A verb in a process of its own; returns what it printed."""
    environment = {**os.environ, "ADYTON_HOME": str(home.path)}
    command = [sys.executable, "-m", "adyton", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(home: Home) -> Iterator[str]:
    """`adyton serve` with this home; yields its address."""
    ready = home.path.with_name(f"{home.path.name}.ready")
    command = [sys.executable, "-m", "adyton", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    with home.path.with_name(f"{home.path.name}.log").open("ab") as log:
        environment = {**os.environ, "ADYTON_HOME": str(home.path)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield json.loads(ready.read_text())["adyton"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


@needs_postgresql
def test_revoke_through_one_machine_while_the_other_releases(world: World) -> None:
    """Once `adyton revoke` on one machine has returned, neither releases; the record is one chain, and says so."""
    signed = world.program()
    approval = world.approve(signed)
    second = second_home(world)
    granted: list[str] = []
    refused: list[str] = []
    stop = threading.Event()

    def ask(address: str) -> None:
        while not stop.is_set():
            try:
                granted.append(obtain_keys(signed, world.enclave(signed), {"": address}).grants[0].grant)
            except Denied as error:
                refused.append(error.message)
                return

    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(home)) for home in (world.home, second)]
        threads = [threading.Thread(target=ask, args=(address,)) for address in addresses * 2]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + LIMIT_S
        while len(granted) < 12 and time.monotonic() < deadline:
            time.sleep(0.02)
        adyton(second, "revoke", approval)
        for address in addresses:
            with pytest.raises(Denied):
                obtain_keys(signed, world.enclave(signed), {"": address})
            assert "revoked" in reason(world)["message"]
        for thread in threads:
            thread.join(LIMIT_S)
        stop.set()
    assert len(granted) >= 12
    assert len(refused) == 4
    with world.store.read() as view:
        kinds = [(entry.kind, json.loads(entry.body)) for entry in view.entries()]
    revoked = next(number for number, (kind, body) in enumerate(kinds) if body.get("state") == "revoked")
    released = [(number, body["grant"]) for number, (kind, body) in enumerate(kinds) if kind == "release"]
    assert all(number < revoked for number, _ in released)
    assert {grant for _, grant in released} >= set(granted)
    for home in (world.home, second):
        assert "none altered or missing" in adyton(home, "audit", "verify")


@needs_postgresql
def test_rotation_on_one_machine_reaches_the_other_with_the_file(world: World) -> None:
    """After `rotate-store --master` the other machine releases nothing until it has the new file, and then at once."""
    signed = world.program()
    world.approve(signed)
    second = second_home(world)
    with serving(second) as address:
        obtain_keys(signed, world.enclave(signed), {"": address})
        adyton(world.home, "key", "rotate-store", "--master")
        with pytest.raises(Unavailable, match="could not check"):
            obtain_keys(signed, world.enclave(signed), {"": address})
        shutil.copy(world.home.path / "master.key", second.path / "copied")
        (second.path / "copied").replace(second.path / "master.key")
        released = obtain_keys(signed, world.enclave(signed), {"": address})
    assert released.keys["weights"].reveal() == bytes(range(16))


@needs_postgresql
def test_join_of_another_store_or_none_is_refused(world: World, url: str) -> None:
    """A second home joins the very store that its backup is of, or is not made."""
    backup = world.folder / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    with pytest.raises(StoreError, match="already") as caught:
        restore(backup, world.folder / "new", passphrase=lambda: PASSPHRASE, verify=whole)
    assert "--join" in str(caught.value.remedy)
    with world.store.engine.connect() as connection, connection.begin():
        connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "id").values(value=bytes(16)))
    with pytest.raises(StoreError, match="does not hold the store of this backup"):
        restore(backup, world.folder / "new", passphrase=lambda: PASSPHRASE, join=True, verify=whole)
    with world.store.engine.connect() as connection, connection.begin():
        schema.metadata.drop_all(connection)
    with pytest.raises(StoreError, match="does not hold the store of this backup"):
        restore(backup, world.folder / "new", passphrase=lambda: PASSPHRASE, join=True, verify=whole)
    assert not (world.folder / "new").exists()


def test_join_of_a_store_in_sqlite_is_refused(tmp_path: Path) -> None:
    """A file in a home belongs to one machine."""
    with make_world(tmp_path) as world:
        backup = tmp_path / "backup"
        back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
        with pytest.raises(UsageError, match="one machine"):
            restore(backup, tmp_path / "new", passphrase=lambda: PASSPHRASE, join=True, verify=whole)
    assert not (tmp_path / "new").exists()
