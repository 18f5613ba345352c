"""Nothing is answered that is not committed: commits held up or failing, processes and databases that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from adyton.attest.bundle import EvidenceBundle
from adyton.collateral.store import CollateralStore
from adyton.errors import Denied, Error
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.keystore.approval import REVOKED
from adyton.release.client import obtain_keys
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from tests.support.owner_world import World, make_world, now, running
from tests.support.postgres import Server, postgres_server, programs
from tests.support.run_keys import RUN_KEY

DATABASES = [
    "sqlite",
    pytest.param(
        "postgresql",
        marks=pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed (apt-get install postgresql)"),
    ),
]
LIMIT_S = 60


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    """A PostgreSQL, or none for SQLite."""
    if request.param == "sqlite":
        yield None
        return
    with postgres_server() as server:
        yield server


@pytest.fixture
def world(database: Server | None, tmp_path: Path) -> Iterator[World]:
    """An owner, her store in either database, a platform with its collateral in her home."""
    with make_world(tmp_path, store_url="" if database is None else database.url) as found:
        store = CollateralStore(found.home.collateral_path)
        store.import_bundle(found.platform.collateral(now()).to_json().encode(), now())
        yield found


def ask(world: World, service: KeyService) -> Future[Answered]:
    """A request of an approved program, without sockets."""
    signed = world.program()
    key = EnclaveKey()
    nonce, _ = service.challenge()
    binding = ReleaseRequest(
        nonce, key.public_bytes, signed.manifest_sha256, ("weights",), EvidenceBundle(), run_key=RUN_KEY
    ).report_data(server_identity(world.home))
    evidence = world.enclave(signed).quote(binding)
    return service.release(
        ReleaseRequest(
            nonce, key.public_bytes, signed.manifest_sha256, ("weights",), EvidenceBundle(cpu=evidence), run_key=RUN_KEY
        ),
        "peer",
    )


@contextmanager
def at_each_commit(world: World, act: Callable[[], None]) -> Iterator[None]:
    """Do something right before the decision thread commits a change."""

    def before(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("adyton_write") and threading.current_thread().name == "decisions":
            act()

    sa.event.listen(world.store.engine, "commit", before)
    try:
        yield
    finally:
        sa.event.remove(world.store.engine, "commit", before)


@pytest.mark.parametrize("kind", ["release", "denial"])
def test_no_answer_before_the_commit(world: World, kind: str) -> None:
    """While the database has not committed, a decision is made and nobody hears of it, granted or refused."""
    approval = world.approve(world.program())
    if kind == "denial":
        with world.store.write() as change:
            change.change_approval(approval, actor="test", state=REVOKED)
    service = world.service()
    decided, go_on = threading.Event(), threading.Event()
    recorded: list[int] = []

    def hold() -> None:
        decided.set()
        assert go_on.wait(LIMIT_S)

    with at_each_commit(world, hold):
        future = ask(world, service)
        future.add_done_callback(lambda _answer: recorded.append(world.kinds().count(kind)))
        assert decided.wait(LIMIT_S)
        time.sleep(0.2)  # for whoever would answer beside the decision thread
        assert not future.done()
        assert kind not in world.kinds()
        go_on.set()
        assert (future.result(LIMIT_S).refusal is None) is (kind == "release")
    service.close()
    assert recorded == [1], "the entry was there when the answer left"


def test_commit_that_fails_is_answered_with_no_key(world: World) -> None:
    """A full disk at the last moment: no grant, no refusal, no entry; and the next request is decided."""
    world.approve(world.program())
    service = world.service()

    def fail() -> None:
        raise sa.exc.OperationalError("COMMIT", {}, Exception("disk full"))

    with at_each_commit(world, fail):
        error = ask(world, service).exception(LIMIT_S)
    assert isinstance(error, Error)
    assert not isinstance(error, Denied)
    assert "release" not in world.kinds()
    assert ask(world, service).result(LIMIT_S).refusal is None
    service.close()
    world.store.verify_audit()


# --- killed ------------------------------------------------------------------------------------------------------

CHANGES = """
import sys
from pathlib import Path
from adyton.keystore.home import Home
from tests.support.run_keys import RUN_KEY
store = Home.open(Path(sys.argv[1])).open_store()
while True:
    with store.write() as change:
        stored = change.approval(sys.argv[2])
        runs = (stored.approval.max_runs or 0) + 1
        stored = change.change_approval(stored.id, actor="test", approval=stored.approval.changed(max_runs=runs))
    print(stored.revision, flush=True)
"""


def serve(world: World) -> tuple[subprocess.Popen[bytes], str]:
    """`adyton serve` in a process of its own, and its address."""
    ready = world.folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "adyton", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    with (world.folder / "log").open("ab") as log:
        environment = {**os.environ, "ADYTON_HOME": str(world.home.path)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    deadline = time.monotonic() + LIMIT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("adyton serve did not start: " + (world.folder / "log").read_text()[-2000:])
        time.sleep(0.05)
    return process, json.loads(ready.read_text())["adyton"]


class Load:
    """Clients of a key server that go on until it is gone; what they were granted."""

    def __init__(self, world: World, address: str, *, clients: int = 3, patient: bool = False) -> None:
        self.granted: list[str] = []
        self._world = world
        self._address = address
        self._patient = patient
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        signed = self._world.program()
        while not self._ended.is_set():
            try:
                released = obtain_keys(signed, self._world.enclave(signed), {"": self._address}, timeout_s=10)
            except Error:
                if not self._patient:
                    return
                time.sleep(0.05)
            else:
                self.granted.append(released.grants[0].grant)

    def wait_for(self, count: int) -> None:
        """Wait until so many were granted in all."""
        deadline = time.monotonic() + LIMIT_S
        while len(self.granted) < count:
            assert time.monotonic() < deadline, "too few grants in time"
            time.sleep(0.005)

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def recorded_grants(world: World) -> set[str]:
    """Every grant that stands in the record."""
    with world.store.read() as view:
        return {json.loads(entry.body)["grant"] for entry in view.entries(kind="release")}


def test_killed_at_random_moments_keeps_what_was_acknowledged(world: World) -> None:
    """kill -9 of the key server and of whoever changes policies, at random: every grant and every change is there."""
    approval = world.approve(world.program(), max_runs=1_000_000)
    granted: list[str] = []
    for _ in range(4):
        process, address = serve(world)
        command = [sys.executable, "-c", CHANGES, str(world.home.path), approval]
        changer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        load = Load(world, address)
        assert changer.stdout is not None
        acknowledged = [int(changer.stdout.readline())]
        load.wait_for(1)
        time.sleep(random.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        changer.send_signal(signal.SIGKILL)
        process.wait()
        load.end()
        acknowledged += [int(line) for line in changer.stdout.read().split()]
        changer.stdout.close()
        changer.wait()
        granted += load.granted
        with world.store.read() as view:
            assert view.approval(approval).revision >= acknowledged[-1]
        world.store.verify_audit()
        assert set(granted) <= recorded_grants(world)


def test_database_killed_under_load_loses_nothing_and_serving_goes_on(world: World, database: Server | None) -> None:
    """PostgreSQL is killed and started again: no grant is lost, and the same key server releases once it is back."""
    if database is None:
        pytest.skip("SQLite lives in the key server's own process")
    approval = world.approve(world.program(), max_runs=1_000_000)
    with running(world) as server:
        load = Load(world, server.adyton, clients=2, patient=True)
        for count in (3, 9):
            load.wait_for(count)
            time.sleep(random.uniform(0, 0.2))
            database.crash()
            before = len(load.granted)
            database.start()
            load.wait_for(before + 5)
        load.end()
    assert set(load.granted) <= recorded_grants(world)
    with world.store.write() as change:
        change.change_approval(approval, actor="test", state=REVOKED)
    world.store.verify_audit()


def test_write_lock_held_by_another_holds_answers_back(world: World, database: Server | None) -> None:
    """Whoever has the database's lock keeps the key server from answering, not from being asked."""
    if database is not None:
        pytest.skip("SQLite's lock; in PostgreSQL the chain's row is locked by who writes")
    world.approve(world.program())
    service = world.service()
    holder = sqlite3.connect(world.home.path / "store.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    future = ask(world, service)
    time.sleep(0.3)
    assert not future.done()
    holder.execute("ROLLBACK")
    assert future.result(LIMIT_S).refusal is None
    holder.close()
    service.close()
