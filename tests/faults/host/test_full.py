"""The disk fills up at an awkward moment: the program is told, what was flushed stays whole, the run ends cleanly."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adyton.errors import Error
from tests.faults.host.attacks import IN_TIME_S, fails, forget
from tests.faults.host.running import START_S, Running
from tests.mount import world
from tests.mount.served import Served, serve
from tests.support import machine

pytestmark = pytest.mark.mount

CONTENT = os.urandom(450_000)
OTHER = os.urandom(450_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB at `store`."""
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(store)], check=False).returncode:
        pytest.skip(machine.NO_MOUNTS)
    try:
        yield store
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


@pytest.fixture
def small(tmp_path: Path, disk: Path) -> Iterator[Served]:
    """An encrypted folder on that disk, with `a` in it."""
    served = serve(tmp_path)
    try:
        (served.top / "a").write_bytes(CONTENT)
        forget(served.top / "a")
        yield served
    finally:
        served.destroy()


def _fill(disk: Path) -> None:
    """The host takes all the room there is."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    room = os.statvfs(disk)
    assert room.f_bavail == 0


def _write_over(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(OTHER)
        os.fsync(file.fileno())


def _create(path: Path) -> None:
    with path.open("xb", buffering=0) as file:
        file.write(b"something")
        os.fsync(file.fileno())


WORK: dict[str, Callable[[Path], object]] = {
    "create": lambda top: _create(top / "new"),
    "rename": lambda top: os.rename(top / "a", top / "c"),
    "rename a folder": lambda top: os.rename(top / "d", top / "e"),
    "write over": lambda top: _write_over(top / "a"),
    "extend": lambda top: os.truncate(top / "a", 2_000_000),
}


@pytest.mark.parametrize("what", WORK)
def test_full_disk_is_told_and_what_was_flushed_stays_whole(small: Served, what: str) -> None:
    """ENOSPC, under the old names the old content; with room again the same work succeeds, and the end is clean."""
    (small.top / "d").mkdir()
    for name in ("d/1", "d/2"):
        (small.top / name).write_bytes(CONTENT)
    _fill(small.store)
    fails(lambda: WORK[what](small.top), errno.ENOSPC)
    names = ["1", "2", "a", "d", "filler"]
    assert sorted(os.listdir(small.top) + os.listdir(small.top / "d")) == names
    for name in ("a", "d/1", "d/2"):
        forget(small.top / name)
        assert (small.top / name).read_bytes() == CONTENT
        assert small.decrypted(name) == CONTENT
    assert "No space left on device" in small.events()
    assert "bug" not in small.events()
    (small.store / "filler").unlink()
    WORK[what](small.top)
    assert small.unmount() == 0
    moved = {"rename": {"a": "c"}, "rename a folder": {"d/1": "e/1", "d/2": "e/2"}}.get(what, {})
    expected = {"write over": OTHER, "extend": CONTENT.ljust(2_000_000, b"\0")}
    assert small.decrypted(moved.get("a", "a")) == expected.get(what, CONTENT)
    assert small.decrypted(moved.get("d/1", "d/1")) == CONTENT
    assert small.decrypted(moved.get("d/2", "d/2")) == CONTENT
    if what == "create":
        assert small.decrypted("new") == b"something"


def _append(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(OTHER)
        os.fsync(file.fileno())


def test_append_that_found_no_room_leaves_no_zeros_behind_the_end(small: Served) -> None:
    """The program was told at fsync and at close; what is missing is an error until it cuts the file, never zeros."""
    _fill(small.store)
    fails(lambda: _append(small.top / "a"), errno.ENOSPC)
    forget(small.top / "a")  # which is answered after the file was closed
    (small.store / "filler").unlink()
    with (small.top / "a").open("rb", buffering=0) as file:
        assert file.read(400_000) == CONTENT[:400_000]
        assert CONTENT[400_000:].startswith(os.pread(file.fileno(), 100_000, 400_000))
        for offset in (len(CONTENT) - 10, len(CONTENT), 600_000):
            fails(lambda at=offset: os.pread(file.fileno(), 100_000, at))  # type: ignore[misc]
    fails(lambda: _append(small.top / "a"))
    os.truncate(small.top / "a", len(CONTENT))
    assert (small.top / "a").read_bytes() == CONTENT
    _append(small.top / "a")
    assert (small.top / "a").read_bytes() == CONTENT + OTHER
    assert small.unmount() == 0
    assert small.decrypted("a") == CONTENT + OTHER


def test_disk_that_stays_full_ends_cleanly_with_the_last_flush(small: Served) -> None:
    """A file left open with what found no room: the end says so, and the file is as of its last flush."""
    with (small.top / "a").open("r+b", buffering=0) as file:
        _fill(small.store)
        file.write(OTHER)
        fails(lambda: os.fsync(file.fileno()), errno.ENOSPC)
        fails(file.close, errno.ENOSPC)
    began = time.monotonic()
    small.unmount()
    assert time.monotonic() - began < IN_TIME_S
    assert small.decrypted("a") == CONTENT


def _opened(folder: Path, name: str) -> bytes | None:
    try:
        return world.decrypt(folder, name)
    except Error:
        return None


def _wait_for(folder: Path, name: str, content: bytes) -> None:
    deadline = time.monotonic() + START_S
    while not ((folder / name).exists() and (folder / name).stat().st_size and _opened(folder, name) == content):
        assert time.monotonic() < deadline, "the log was not committed in time"
        time.sleep(0.05)


@pytest.mark.parametrize("again", [False, True])
def test_full_disk_below_the_log_is_said_at_the_end(tmp_path: Path, disk: Path, again: bool) -> None:
    """The program runs on to its end and its outputs are kept; the log is as of its last flush, and the run says so."""
    (tmp_path / "out").mkdir()
    (tmp_path / "text").write_text("line\n" * 40_000)
    spec = world.shell(
        "echo first; read go; cat /text; echo kept > /out/kept; read go; exit 7",
        trusted=["text"],
        mounts=[["encrypted", "/out", "file:out"], ["chroot", "/text", "file:text"]],
        stdio=False,
        log="file:store/app.log",
    )
    with Running(tmp_path, spec) as run:
        _wait_for(tmp_path, "store/app.log", b"first\n")
        _fill(disk)
        run.say("go")
        _wait_for(tmp_path, "out/kept", b"kept\n")
        if again:
            time.sleep(1.5)  # the log was to be committed in the meantime, and there was no room
            (disk / "filler").unlink()
        run.say("go")
        result = run.end(IN_TIME_S)
    assert result.ended["error"] == "StorageFailed", result.err
    assert "app.log" in result.ended["message"]
    assert "No space left on device" in result.ended["message"]
    assert result.status == result.ended["code"] != 7
    assert world.decrypt(tmp_path, "out/kept") == b"kept\n"
    assert world.decrypt(tmp_path, "store/app.log").startswith(b"first\n")
    assert ("first\n" + "line\n" * 40_000).encode().startswith(world.decrypt(tmp_path, "store/app.log"))


def test_disk_that_is_full_before_the_start_is_said_by_name(tmp_path: Path, disk: Path) -> None:
    """No room for the log: nothing starts."""
    (tmp_path / "out").mkdir()
    _fill(disk)
    mounts = [["encrypted", "/out", "file:out"]]
    spec = world.shell("echo x > /out/x", mounts=mounts, stdio=False, log="file:store/app.log")
    result = world.run(tmp_path, spec)
    assert result.ended["error"] == "StorageFailed", result.err
    assert "store/app.log" in result.ended["message"]
    assert "No space left on device" in result.ended["message"]
    assert os.listdir(tmp_path / "out") == []


def test_full_disk_within_a_run_is_told_to_the_program_and_the_run_ends(tmp_path: Path, disk: Path) -> None:
    """Through the sandbox: the shell sees it, goes on, and its exit code is the run's."""
    spec = world.shell(
        "echo kept > /out/kept; echo ready; read go; echo x > /out/new || echo refused; "
        "mv /out/kept /out/moved || echo refused; cat /out/kept; exit 7",
        mounts=[["encrypted", "/out", "file:store"]],
    )
    with Running(tmp_path, spec) as run:
        assert run.line() == "ready"
        _fill(disk)
        run.say("go")
        assert [run.line(IN_TIME_S) for _ in range(3)] == ["refused", "refused", "kept"]
        result = run.end(IN_TIME_S)
    assert result.status == 7, result.err
    assert result.err.count("No space left on device") >= 2
    assert world.decrypt(tmp_path, "store/kept") == b"kept\n"
    assert not (disk / "moved").exists()
