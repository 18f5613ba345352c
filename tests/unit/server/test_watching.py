"""Metrics, logs, checkpoints, and what the record says of the server itself."""

from __future__ import annotations

import io
import json
import logging
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import NoReturn

import pytest

from adyton.collateral.store import CollateralStore
from adyton.errors import Denied, StorageFailed, StoreError
from adyton.keystore.home import Home
from adyton.release.client import obtain_keys
from adyton.server.checkpoints import Checkpoints
from adyton.server.metrics import Metrics, Watched
from adyton.server.process import certificate_end, set_up_logging
from tests.support.owner_world import World, now, running
from tests.support.release_by_hand import Logged, entries, wait_until


def values(address: tuple[str, int]) -> dict[str, float]:
    """What Prometheus would read."""
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_show_decisions_readiness_and_what_will_end(world: World) -> None:
    """Each number is there, and moves with what it counts."""
    signed, other = world.program(), world.program(argument="other.py")
    world.approve(signed)
    collateral = CollateralStore(world.home.collateral_path)
    metrics = Metrics()
    service = world.service(on_decision=metrics.observe)
    with running(world, service=service) as server:
        checkpoints = Checkpoints(world.home, service)
        metrics.watch(Watched(server.server, certificate_end(world.home), checkpoints, collateral))
        address = metrics.listen("127.0.0.1", 0)
        try:
            before = values(address)
            for absent in (
                "adyton_backup_time_seconds",
                "adyton_checkpoint_time_seconds",
                "adyton_collateral_end_seconds",
            ):
                assert absent not in before
            assert before["adyton_ready"] == 1
            assert before["adyton_requests_waiting"] == 0
            assert before["adyton_server_certificate_end_seconds"] == certificate_end(world.home).timestamp()
            assert obtain_keys(signed, world.enclave(signed), {"": server.adyton}).keys
            with pytest.raises(Denied):
                obtain_keys(other, world.enclave(other), {"": server.adyton})
            collateral.import_bundle(world.platform.collateral(now()).to_json().encode(), now())
            checkpoints.keep()
            with world.store.write() as change:
                change.record("backup", "b-1", {"backup": "b-1", "actor": "test"}, 12_000)
            after = values(address)
            for outcome in ("granted", "denied"):
                assert after[f'adyton_decision_seconds_count{{outcome="{outcome}"}}'] == 1
            assert after['adyton_requests_total{kind="release"}'] == 2
            assert after["adyton_audit_entries_total"] > before["adyton_audit_entries_total"]
            assert after["adyton_backup_time_seconds"] == 12
            assert abs(after["adyton_checkpoint_time_seconds"] - now().timestamp()) < 60
            assert after["adyton_collateral_end_seconds"] > now().timestamp()
            with pytest.MonkeyPatch.context() as patch, Logged():
                patch.setattr(world.store, "read", _broken)
                service._readiness._looked_at = None
                troubled = values(address)
            assert troubled["adyton_ready"] == 0
            assert "adyton_audit_entries_total" not in troubled
        finally:
            metrics.stop()


def _broken() -> NoReturn:
    raise StoreError("broken")


def test_checkpoint_that_cannot_be_kept_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure is logged, once, and does not leave the checkpoint stale until a restart."""

    def full(*_args: object) -> NoReturn:
        raise StorageFailed("no space left")

    service = world.service()
    try:
        checkpoints = Checkpoints(world.home, service)
        with Logged() as logged:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Home, "keep_checkpoint", full)
                checkpoints.keep()
                checkpoints.keep()
            assert [record["reason"] for record in logged.records] == ["no space left"]
            kept_at = [checkpoints.kept_at]
            checkpoints.keep()
            kept_at.append(checkpoints.kept_at)
            assert kept_at[0] is None
            assert kept_at[1] is not None
        kept = world.home.kept_checkpoint()
        assert kept is not None
        with world.store.read() as view:
            assert kept.seq == view.head().seq
    finally:
        service.close()


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Loggers as they were."""
    names = ("adyton", "uvicorn", "asyncio")
    kept = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in names}
    yield
    for name, (handlers, level) in kept.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, True
        logger.setLevel(level)


@pytest.mark.parametrize("name", ["adyton.keyserver", "uvicorn.error", "asyncio"])
def test_log_lines_are_json_whoever_writes_them(
    name: str, restored_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --log-format json the libraries' lines are JSON, too."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    set_up_logging(json_logs=True)
    logging.getLogger(name).error("Invalid HTTP request received.")
    assert json.loads(written.getvalue())["event"] == "Invalid HTTP request received."


def test_start_and_stop_stand_in_the_record(world: World) -> None:
    """When the server ran, and where it listened, can be read there."""
    ready = world.folder / "ready.json"
    command = [sys.executable, "-m", "adyton", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    process = subprocess.Popen(
        [*command, "--home", str(world.home.path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: bool(entries(world, "server")), within_s=60)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    started, stopped = entries(world, "server")
    assert (started["what"], stopped["what"]) == ("started", "stopped")
    assert started["listening"]["adyton"].startswith("127.0.0.1:")
