"""The encrypted log in the host's hands while the program writes to it: what the owner opens, how the run ends."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adyton.errors import Error
from tests.faults.host.attacks import IN_TIME_S, NODE, flip, overwrite
from tests.faults.host.running import START_S, Running
from tests.mount import world
from tests.support import machine

pytestmark = pytest.mark.mount

TEXT = "".join(f"{number:015}\n" for number in range(8000))
VICTIM = b"what the host's link points to"


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Running]:
    """A program that puts 128 kB and `one` into its log, then `two`, then `three`, each on a word; and ends with 7."""
    (tmp_path / "out").mkdir()
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "victim").write_bytes(VICTIM)
    spec = world.shell(
        "read go; cat /text; echo one; read go; echo two; read go; echo three; echo kept > /out/kept; exit 7",
        trusted=["text"],
        mounts=[["chroot", "/text", "file:text"], ["encrypted", "/out", "file:out"]],
        stdio=False,
        log="file:app.log",
    )
    with Running(tmp_path, spec) as run:
        _wait_for(tmp_path, b"")
        yield run


def _opened(folder: Path) -> bytes | None:
    try:
        return world.decrypt(folder, "app.log")
    except Error:
        return None


def _wait_for(folder: Path, content: bytes) -> None:
    deadline = time.monotonic() + START_S
    while _opened(folder) != content:
        assert time.monotonic() < deadline, "the log was not committed in time"
        time.sleep(0.02)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("victim")


ONE = TEXT.encode() + b"one\n"
ALL = ONE + b"two\nthree\n"
CHANGED = "app.log changed on the host while it was open"

ATTACKS: dict[str, tuple[Callable[[Path], object], str | None, bytes | str | None]] = {
    "flipped-early": (lambda log: flip(log, 10 * NODE + 5), None, "node 10"),
    "flipped-end": (lambda log: flip(log, log.stat().st_size - 5), None, ALL),  # that node is written again
    "flipped-sealed": (lambda log: flip(log, 100), None, ALL),  # and so is this one
    "flipped-nonce": (lambda log: flip(log, 20), CHANGED, ONE),  # its recovery log leads back
    "cut": (lambda log: os.truncate(log, 5 * NODE), None, "node "),
    "emptied": (lambda log: os.truncate(log, 0), "app.log is not a protected file", "is not a protected file"),
    "older": (lambda log: overwrite(log, log.with_name("older").read_bytes()), CHANGED, ONE),
    # as after the end of a run, a whole older log is not noticed, nor is a deleted one: stated limits
    "older-replaced": (lambda log: log.with_name("older").rename(log), None, ONE),
    "link": (_link, None, "is not a protected file"),
    "deleted": (Path.unlink, None, None),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_log_altered_while_the_program_runs_is_whole_older_or_refused(
    tmp_path: Path, logged: Running, attack: str
) -> None:
    """The owner opens what was logged, or an honest older state, or is told what is wrong; the outputs are kept."""
    alter, failure, opened = ATTACKS[attack]
    log = tmp_path / "app.log"
    logged.say("go")
    _wait_for(tmp_path, ONE)
    shutil.copy(log, tmp_path / "older")
    logged.say("go")
    _wait_for(tmp_path, ONE + b"two\n")
    alter(log)
    logged.say("go")
    result = logged.end(IN_TIME_S)
    assert world.decrypt(tmp_path, "out/kept") == b"kept\n"
    assert b"0000" not in log.read_bytes()[:NODE] if opened is not None else not log.exists()
    if failure is None:
        assert (result.status, result.ended["exit_code"]) == (7, 7)
    else:
        assert failure in result.ended["message"]
        assert result.status == result.ended["code"] != 7
    if isinstance(opened, bytes):
        assert world.decrypt(tmp_path, "app.log") == opened
    elif opened is not None:
        with pytest.raises(Error, match=opened):
            world.decrypt(tmp_path, "app.log")
    assert (tmp_path / "victim").read_bytes() == VICTIM


def _fifo(path: Path) -> None:
    os.mkfifo(path)


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to("victim"), "opening app.log.gramine.recovery failed"),
    "fifo": (_fifo, "is not a regular file"),
    "folder": (Path.mkdir, "opening app.log.gramine.recovery failed"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_something_in_the_place_of_the_logs_recovery_log_is_refused_by_name(
    tmp_path: Path, logged: Running, kind: str
) -> None:
    """The program runs to its end, the run says why its log is cut short, nothing is written where a link points."""
    plant, named = PLANTED[kind]
    logged.say("go")
    _wait_for(tmp_path, ONE)
    plant(tmp_path / "app.log.gramine.recovery")
    for _ in range(2):
        logged.say("go")
    result = logged.end(IN_TIME_S)
    assert named in result.ended["message"]
    assert result.status == result.ended["code"] != 7
    assert world.decrypt(tmp_path, "app.log") == ONE
    assert world.decrypt(tmp_path, "out/kept") == b"kept\n"
    assert (tmp_path / "victim").read_bytes() == VICTIM


AT_THE_START: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("victim"),
    "fifo": _fifo,
    "folder": Path.mkdir,
    "device": lambda path: os.mknod(path, 0o20666, os.makedev(1, 3)),
}


@pytest.mark.parametrize("kind", AT_THE_START)
def test_something_else_in_the_place_of_the_log_stops_the_start(tmp_path: Path, kind: str) -> None:
    """A link, a pipe that nobody reads, a folder, a device: refused by name, and nothing is written to it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_bytes(VICTIM)
    try:
        AT_THE_START[kind](tmp_path / "app.log")
    except PermissionError:
        pytest.skip(machine.NO_DEVICES)
    mounts = [["encrypted", "/out", "file:out"]]
    began = time.monotonic()
    result = world.run(tmp_path, world.shell("echo x > /out/x", mounts=mounts, stdio=False, log="file:app.log"))
    assert time.monotonic() - began < IN_TIME_S
    assert result.ended["error"] == "StorageFailed", result.err
    assert "the log app.log cannot be written" in result.ended["message"]
    assert (tmp_path / "victim").read_bytes() == VICTIM
    assert os.listdir(tmp_path / "out") == []
