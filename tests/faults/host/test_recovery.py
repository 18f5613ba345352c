"""The file server is killed in the middle of writes, and the host does what it wants with the recovery log."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adyton.errors import Error
from adyton.pfile.recovery import MAX_RECORDS, RECORD_BYTES
from tests.faults.host.attacks import IN_TIME_S, flip, forget
from tests.mount.served import Served, serve
from tests.support import machine

pytestmark = pytest.mark.mount

FIRST, SECOND, THIRD, OTHER = (os.urandom(450_000) for _ in range(4))
WRITES = 8
"""Of one flush of such a file: the log in two, the flag in node 0, two runs of data, two tree nodes, node 0."""

IN_THE_DATA = "5 half"


def _write(path: Path, content: bytes) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Served]:
    """A server that can be killed at a given write; `a` went from FIRST to SECOND, `b` is OTHER.

    Beside the folder lie copies of two recovery logs: `log-of-b`, and `log-of-first`, which leads from SECOND to FIRST.
    """
    machine.need_fuse()
    served = serve(tmp_path, module="tests.faults.host.crashing")
    try:
        for name, before, content in (("b", FIRST, OTHER), ("a", FIRST, SECOND)):
            (served.top / name).write_bytes(before)
            with (served.top / name).open("r+b") as file:
                file.write(content)
                os.fsync(file.fileno())
                kept = "log-of-first" if name == "a" else "log-of-b"
                shutil.copy(served.store / f"{name}.gramine.recovery", tmp_path / kept)
        yield served
    finally:
        served.destroy()


def _kill(served: Served, at: str, work: Callable[[], object]) -> None:
    (served.store.parent / "arm").write_text(at)
    began = time.monotonic()
    with pytest.raises(OSError):
        work()
    assert time.monotonic() - began < IN_TIME_S
    served.process.wait(IN_TIME_S)
    served.destroy()
    (served.store.parent / "arm").unlink()


def _owner_gets(served: Served, name: str) -> bytes | str:
    try:
        return served.decrypted(name)
    except Error as error:
        return error.message


def _program_gets(served: Served, name: str) -> tuple[bytes | str, str]:
    """What a program in a new run reads, or the error that it sees; and what that run says."""
    (served.store.parent / "next").mkdir(exist_ok=True)
    following = serve(served.store.parent / "next", store=served.store)
    try:
        began = time.monotonic()
        seen: bytes | str
        try:
            seen = (following.top / name).read_bytes()
        except OSError as error:
            seen = os.strerror(error.errno or 0)
        assert time.monotonic() - began < IN_TIME_S
        return seen, following.events()
    finally:
        following.destroy()


@pytest.mark.parametrize("how", ["half", "after"])
@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_server_killed_at_any_write_leaves_the_state_before_or_after(crashing: Served, number: int, how: str) -> None:
    """With an honest host: the owner and the next run read the same whole state, and the next run can write on."""
    _kill(crashing, f"{number} {how}", lambda: _write(crashing.top / "a", THIRD))
    expected = THIRD if (number, how) == (WRITES, "after") else SECOND
    assert _owner_gets(crashing, "a") == expected
    assert _program_gets(crashing, "a") == (expected, "")
    following = serve(crashing.store.parent / "next", store=crashing.store)
    try:
        _write(following.top / "a", FIRST)
        assert following.unmount() == 0
    finally:
        following.destroy()
    assert crashing.decrypted("a") == FIRST
    assert crashing.decrypted("b") == OTHER


def _edit(path: Path, edit: Callable[[bytearray], object]) -> None:
    raw = bytearray(path.read_bytes())
    edit(raw)
    path.write_bytes(raw)


def _zeros(path: Path, size: int) -> None:
    os.truncate(path, 0)
    os.truncate(path, size)


def _aside(path: Path, make: Callable[[Path], object]) -> None:
    path.rename(path.parent.parent / "aside")
    make(path)


NO_WAY_BACK = "a flush was begun and not ended, and no recovery log leads back"

ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped-record": (lambda log: flip(log, 20 * RECORD_BYTES + 100), NO_WAY_BACK),
    "flipped-place": (lambda log: flip(log, 20 * RECORD_BYTES), "a: node 22"),
    "flipped-tree-node": (lambda log: flip(log, log.stat().st_size - RECORD_BYTES - 100), NO_WAY_BACK),
    "flipped-node-0": (lambda log: flip(log, log.stat().st_size - 3000), NO_WAY_BACK),
    "cut-by-a-byte": (lambda log: os.truncate(log, log.stat().st_size - 1), NO_WAY_BACK),
    "cut-by-node-0": (lambda log: os.truncate(log, log.stat().st_size - RECORD_BYTES), NO_WAY_BACK),
    "without-a-record": (lambda log: _edit(log, lambda raw: raw.__delitem__(slice(0, RECORD_BYTES))), "a: node"),
    "emptied": (lambda log: os.truncate(log, 0), NO_WAY_BACK),
    "zeros": (lambda log: _zeros(log, MAX_RECORDS * RECORD_BYTES), NO_WAY_BACK),
    "too-long": (lambda log: os.truncate(log, (MAX_RECORDS + 1) * RECORD_BYTES), NO_WAY_BACK),
    "deleted": (Path.unlink, NO_WAY_BACK),
    "older": (lambda log: shutil.copy(log.parent.parent / "log-of-first", log), NO_WAY_BACK),
    "of-another-file": (lambda log: shutil.copy(log.parent.parent / "log-of-b", log), NO_WAY_BACK),
    "link": (lambda log: _aside(log, lambda path: path.symlink_to("../aside")), "recovery"),
    "fifo": (lambda log: _aside(log, os.mkfifo), "a.gramine.recovery is not a regular file"),
    "folder": (lambda log: _aside(log, Path.mkdir), "a.gramine.recovery is not a regular file"),
    "flag-cleared": (lambda log: _edit(log.with_name("a"), lambda raw: raw.__setitem__(58, 0)), "a: node"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_recovery_log_altered_after_a_kill_is_refused_by_name(crashing: Served, attack: str) -> None:
    """Node by node it would not lead back to what was: the file is refused, its neighbour is not."""
    _kill(crashing, IN_THE_DATA, lambda: _write(crashing.top / "a", THIRD))
    alter, named = ATTACKS[attack]
    alter(crashing.store / "a.gramine.recovery")
    told = _owner_gets(crashing, "a")
    assert isinstance(told, str)
    assert named in told
    seen, events = _program_gets(crashing, "a")
    assert seen == "Input/output error"
    assert named in events
    assert "bug" not in events
    assert "/a" in events
    assert _program_gets(crashing, "b") == (OTHER, "")


@pytest.mark.parametrize("attack", ATTACKS)
def test_recovery_log_altered_before_the_kill_leads_to_no_other_state(crashing: Served, attack: str) -> None:
    """The host changes the log of a file while it is open, then kills the server: an honest state, or refused."""
    alter, _ = ATTACKS[attack]
    fd = os.open(crashing.top / "a", os.O_RDWR)
    try:
        os.pwrite(fd, THIRD, 0)
        os.fsync(fd)
        alter(crashing.store / "a.gramine.recovery")
        crashing.process.kill()
        crashing.process.wait(IN_TIME_S)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    crashing.destroy()
    assert _owner_gets(crashing, "a") == THIRD
    assert _program_gets(crashing, "a") == (THIRD, "")


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda log: log.symlink_to("../victim"), "the recovery log of"),
    "fifo": (os.mkfifo, "a.gramine.recovery is not a regular file"),
    "folder": (Path.mkdir, "the recovery log of"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_something_in_the_recovery_logs_place_fails_the_flush_and_leaves_the_file(crashing: Served, kind: str) -> None:
    """The program is told at fsync and at close; nothing is written where a link points; the last flush stays."""
    victim = crashing.store.parent / "victim"
    victim.write_bytes(b"victim")
    plant, named = PLANTED[kind]
    log = crashing.store / "a.gramine.recovery"
    deadline = time.monotonic() + IN_TIME_S
    while log.exists():  # the kernel lets go of a closed file when it likes
        assert time.monotonic() < deadline
        time.sleep(0.01)
    plant(log)
    began = time.monotonic()
    fd = os.open(crashing.top / "a", os.O_RDWR)
    os.pwrite(fd, THIRD, 0)
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(fd)
    with pytest.raises(OSError, match="Input/output error"):
        os.close(fd)
    assert time.monotonic() - began < IN_TIME_S
    assert named in crashing.events()
    assert "/a" in crashing.events()
    assert "bug" not in crashing.events()
    assert victim.read_bytes() == b"victim"
    assert _owner_gets(crashing, "a") == SECOND
    forget(crashing.top / "a")
    assert (crashing.top / "a").read_bytes() == SECOND


RENAMES: dict[str, tuple[Callable[[Path], object] | None, str]] = {
    "intact": (None, ""),
    "deleted": (Path.unlink, "sealed under another path"),
    "emptied": (lambda log: os.truncate(log, 0), "sealed under another path"),
    "flipped": (lambda log: flip(log, 200), "sealed under another path"),
    "older": (lambda log: shutil.copy(log.parent.parent / "log-of-first", log), "sealed under another path"),
    "of-another-file": (lambda log: shutil.copy(log.parent.parent / "log-of-b", log), "sealed under another path"),
}


@pytest.mark.parametrize("attack", RENAMES)
def test_server_killed_in_a_rename_leaves_the_old_name_or_a_refusal(crashing: Served, attack: str) -> None:
    """The new path is sealed in, the host's name is still the old one: only the true log leads back."""
    _kill(crashing, "2 after", lambda: os.rename(crashing.top / "a", crashing.top / "c"))
    assert sorted(name for name in os.listdir(crashing.store) if len(name) == 1) == ["a", "b"]
    alter, named = RENAMES[attack]
    if alter is None:
        assert _owner_gets(crashing, "a") == SECOND
        assert _program_gets(crashing, "a") == (SECOND, "")
        return
    alter(crashing.store / "a.gramine.recovery")
    told = _owner_gets(crashing, "a")
    assert isinstance(told, str)
    assert named in told
    seen, events = _program_gets(crashing, "a")
    assert seen == "Input/output error"
    assert f"/a was {named}" in events


def test_host_file_under_the_new_name_after_a_kill_in_a_rename_is_the_same_content(crashing: Served) -> None:
    """The host may finish the rename by itself: what opens under the new name is what the program meant by it."""
    _kill(crashing, "2 after", lambda: os.rename(crashing.top / "a", crashing.top / "c"))
    os.rename(crashing.store / "a", crashing.store / "c")
    assert _owner_gets(crashing, "c") == SECOND
    assert _program_gets(crashing, "c") == (SECOND, "")
