"""Storage that does not answer where the keeper itself asks it: at the start, and below the log. Never a hang."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from adyton.vfs.storage_watchdog import START_S as BEFORE_S
from tests.faults.host.running import START_S, Running
from tests.faults.host.storage import END_S, Storage
from tests.mount import world

pytestmark = pytest.mark.mount

CONTENT = os.urandom(450_000)


def _stalled_start(folder: Path, storage: Storage, spec: dict[str, object]) -> world.Result:
    storage.stall()
    try:
        with Running(folder, spec) as run:
            return run.end(BEFORE_S + END_S)
    finally:
        storage.go_on()


def test_stall_while_a_trusted_file_is_staged_ends_the_start(tmp_path: Path, storage: Storage) -> None:
    """Named, in time; nothing has started."""
    (storage.top / "file").write_bytes(CONTENT)
    spec = world.shell("echo started", trusted=["below/top/file"], mounts=[["chroot", "/file", "file:below/top/file"]])
    spec["digests"] = {"below/top/file": hashlib.sha256(CONTENT).hexdigest()}
    result = _stalled_start(tmp_path, storage, spec)
    assert "started" not in result.out
    assert result.ended["error"] == "MountFailed"
    assert "did not answer" in result.ended["message"]


def test_stall_while_an_input_is_staged_ends_the_start(tmp_path: Path, storage: Storage) -> None:
    """Named, in time; nothing has started."""
    world.encrypt(tmp_path, "below/top/data", CONTENT)
    mounts = [["encrypted", "/in", "file:below/top"]]
    result = _stalled_start(tmp_path, storage, world.shell("echo started", mounts=mounts, read_only=["/in"]))
    assert "started" not in result.out
    assert result.ended["error"] == "MountFailed"
    assert "did not answer" in result.ended["message"]


def test_stall_below_an_output_before_the_start_ends_the_start(tmp_path: Path, storage: Storage) -> None:
    """Named, in time; nothing has started."""
    mounts = [["encrypted", "/out", "file:below/top"]]
    result = _stalled_start(tmp_path, storage, world.shell("echo started", mounts=mounts))
    assert "started" not in result.out
    assert result.ended["error"] == "MountFailed"
    assert "did not answer" in result.ended["message"]


def test_stall_below_the_log_ends_the_run(tmp_path: Path, storage: Storage) -> None:
    """A run whose log cannot be committed any more is not left waiting; the message names the log."""
    (tmp_path / "out").mkdir()
    script = "echo first; read go; echo more"
    mounts = [["encrypted", "/out", "file:out"]]
    with Running(tmp_path, world.shell(script, mounts=mounts, stdio=False, log="file:below/top/app.log")) as run:
        deadline = time.monotonic() + START_S
        log = storage.top / "app.log"
        while not (log.exists() and log.stat().st_size and world.decrypt(tmp_path, "below/top/app.log") == b"first\n"):
            assert time.monotonic() < deadline
            assert run.process.poll() is None, run.end()
            time.sleep(0.05)
        storage.stall()
        run.say("go")
        try:
            result = run.end(END_S)
        finally:
            storage.go_on()
    assert "the log below/top/app.log" in result.ended["message"]
    assert result.status != 0
