"""The key server under load: revocation races, kill -9, floods; nothing unaudited leaves, nothing granted is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adyton.collateral.store import CollateralStore
from adyton.errors import Denied, Error
from adyton.keyserver.record_limits import MAX_NOISE_PER_MINUTE
from adyton.keyserver.stages import Verified
from adyton.keystore.approval import REVOKED
from adyton.manifest.measure import combine
from adyton.release.client import obtain_keys
from tests.support.owner_world import RUNTIME_PARTS, World, now, running
from tests.support.release_by_hand import reason


def bodies(world: World, kind: str) -> list[dict[str, Any]]:
    """The audit entries of one kind, with their numbers."""
    with world.store.read() as view:
        return [{**json.loads(entry.body), "seq": entry.seq} for entry in view.entries(kind=kind)]


def test_revoke_while_releasing_nothing_is_released_after_it(world: World) -> None:
    """In the record every release stands before the revocation, and everybody who asked after it was refused."""
    signed = world.program()
    approval = world.approve(signed)
    granted: list[str] = []
    refused: list[str] = []

    def ask(address: str) -> None:
        while True:
            try:
                granted.append(obtain_keys(signed, world.enclave(signed), {"": address}).grants[0].grant)
            except Denied as error:
                refused.append(error.message)
                return

    with running(world) as server:
        threads = [threading.Thread(target=ask, args=(server.adyton,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(granted) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        with world.store.write() as change:
            change.change_approval(approval, actor="test", state=REVOKED)
            at = change.head().seq
        for thread in threads:
            thread.join(60)
    assert granted
    assert len(refused) == 4
    released = bodies(world, "release")
    assert all(entry["seq"] < at for entry in released)
    assert {entry["grant"] for entry in released} >= set(granted)
    world.store.verify_audit()


def test_revoke_between_the_request_and_its_decision_refuses_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was verified before the revocation and is decided after it gets nothing."""
    signed = world.program()
    approval = world.approve(signed)
    service = world.service()
    about_to_decide = threading.Event()
    decide_all = service._decide_all

    def noticed(batch: list[Verified]) -> Any:
        about_to_decide.set()
        return decide_all(batch)

    outcome: list[str] = []

    def ask(address: str) -> None:
        try:
            obtain_keys(signed, world.enclave(signed), {"": address})
        except Denied as error:
            outcome.append(error.message)

    with running(world, service=service) as server:
        assert obtain_keys(signed, world.enclave(signed), {"": server.adyton}).keys
        monkeypatch.setattr(service, "_decide_all", noticed)
        thread = threading.Thread(target=ask, args=(server.adyton,))
        with world.store.write() as change:
            thread.start()
            assert about_to_decide.wait(30)
            change.change_approval(approval, actor="test", state=REVOKED)
        thread.join(60)
    assert len(outcome) == 1
    assert "revoked" in reason(world)["message"]
    assert len(bodies(world, "release")) == 1


def start(world: World) -> tuple[subprocess.Popen[bytes], str]:
    """`adyton serve` as a process of its own."""
    ready = world.folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "adyton", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    environment = {**os.environ, "ADYTON_HOME": str(world.home.path)}
    log = (world.folder / "log").open("ab")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    log.close()
    deadline = time.monotonic() + 60
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("adyton serve did not start: " + (world.folder / "log").read_text()[-2000:])
        time.sleep(0.05)
    return process, json.loads(ready.read_text())["adyton"]


def with_collateral(world: World) -> None:
    """Put the platform's collateral into the owner's home."""
    store = CollateralStore(world.home.collateral_path)
    store.import_bundle(world.platform.collateral(now()).to_json().encode(), now())


def test_killed_at_random_nothing_acknowledged_is_lost_nothing_released_unaudited(world: World) -> None:
    """kill -9 under load, three times: every grant that a client holds stands in the record, which is one chain."""
    with_collateral(world)
    signed = world.program()
    world.approve(signed, max_runs=1_000_000)
    granted: list[str] = []
    for after in (3, 5, 9):
        process, address = start(world)
        stop = threading.Event()
        here: list[str] = []

        def ask(where: str, ended: threading.Event, found: list[str]) -> None:
            while not ended.is_set():
                try:
                    found.append(obtain_keys(signed, world.enclave(signed), {"": where}, timeout_s=5).grants[0].grant)
                except Error:
                    return

        threads = [threading.Thread(target=ask, args=(address, stop, here)) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(here) < after and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stop.set()
        for thread in threads:
            thread.join()
        assert len(here) >= after
        granted += here
        world.store.verify_audit()
        recorded = {entry["grant"] for entry in bodies(world, "release")}
        assert set(granted) <= recorded


def test_serve_process_stops_gracefully_and_says_where_it_listens(world: World) -> None:
    """SIGTERM ends the process with status 0, and its last checkpoint lies beside the store."""
    with_collateral(world)
    signed = world.program()
    world.approve(signed)
    process, address = start(world)
    try:
        assert obtain_keys(signed, world.enclave(signed), {"": address}).keys
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    kept = world.home.kept_checkpoint()
    assert kept is not None
    with world.store.read() as view:
        assert kept.seq == view.head().seq
    assert not (world.folder / "ready.json").exists()
    log = (world.folder / "log").read_text()
    assert bytes(range(16)).hex() not in log


def test_flood_of_worthless_requests_does_not_fill_the_record(world: World) -> None:
    """Beyond a bound in a minute, refusals without genuine evidence are counted and not kept."""
    service = world.service()
    futures = [service.provision([b"no certificate"], None, "peer") for _ in range(MAX_NOISE_PER_MINUTE + 40)]
    assert all(future.result(60).refusal is not None for future in futures)
    kept = world.kinds().count("denial")
    assert MAX_NOISE_PER_MINUTE <= kept <= MAX_NOISE_PER_MINUTE + 39
    signed = world.program()
    world.approve(signed)
    with running(world, service=service) as server:
        assert obtain_keys(signed, world.enclave(signed), {"": server.adyton}).keys
        with pytest.raises(Denied):
            obtain_keys(world.program(argument="x"), world.enclave(world.program(argument="x")), {"": server.adyton})
    assert world.kinds().count("denial") == kept + 1


def test_decision_thread_survives_a_failure_inside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error ends one request with *could not check*, never the server, and releases nothing."""
    signed = world.program()
    world.approve(signed)
    service = world.service()
    broken = {"now": True}
    verify = service.verifier.verify

    def sometimes(*args: Any) -> Any:
        if broken["now"]:
            raise RuntimeError("broken")
        return verify(*args)

    monkeypatch.setattr(service.verifier, "verify", sometimes)
    with running(world, service=service) as server:
        with pytest.raises(Error) as caught:
            obtain_keys(signed, world.enclave(signed), {"": server.adyton})
        assert not isinstance(caught.value, Denied)
        assert "broken" not in str(caught.value.details())
        broken["now"] = False
        assert obtain_keys(signed, world.enclave(signed), {"": server.adyton}).keys
    assert combine(RUNTIME_PARTS) == signed.runtime


def test_database_that_cannot_be_written_releases_nothing(world: World) -> None:
    """No audit entry, no key: with the store locked by somebody else, requests fail as *could not check*."""
    import sqlite3

    import adyton.keystore.database as module

    signed = world.program()
    world.approve(signed)
    holder = sqlite3.connect(world.home.path / "store.db", isolation_level=None)
    with running(world) as server:
        before = world.kinds()
        world.store.close()
        original = module.BUSY_TIMEOUT_S
        module.BUSY_TIMEOUT_S = 0  # type: ignore[misc]
        try:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Error) as caught:
                obtain_keys(signed, world.enclave(signed), {"": server.adyton})
            assert not isinstance(caught.value, Denied)
            holder.execute("ROLLBACK")
            assert world.kinds() == before
            assert obtain_keys(signed, world.enclave(signed), {"": server.adyton}).keys
        finally:
            module.BUSY_TIMEOUT_S = original  # type: ignore[misc]
            holder.close()


@pytest.mark.slow
def test_ten_thousand_idle_connections_harm_nobody(world: World) -> None:
    """With ten thousand connections that say nothing, a program still gets its key at once."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"this user may open {hard} files, and the test opens 12000: raise the limit (ulimit -Hn)")
    with_collateral(world)
    signed = world.program()
    world.approve(signed)
    process, address = start(world)
    held: list[socket.socket] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, hard))
        host, _, port = address.rpartition(":")
        for number in range(10_000):
            plain = socket.socket()
            plain.bind((f"127.0.0.{2 + number % 8}", 0))
            plain.connect((host, int(port)))
            if number % 2:
                plain.sendall(b"\x16\x03\x01\x02\x00\x01")
            held.append(plain)
        began = time.monotonic()
        assert obtain_keys(signed, world.enclave(signed), {"": address}).keys
        assert time.monotonic() - began < 3
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert resident < 400 * 1024
    finally:
        for plain in held:
            plain.close()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
