"""The storage below a run stops answering in the middle of something: an error in time, never a hang."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.vfs.storage_watchdog import ANSWER_S
from tests.faults.host.attacks import IN_TIME_S
from tests.faults.host.running import Running
from tests.faults.host.storage import END_S, Storage
from tests.mount import world
from tests.mount.served import Served, serve

pytestmark = pytest.mark.mount

CONTENT = os.urandom(450_000)


def _sync(upper: Served) -> Callable[[], object]:
    fd = os.open(upper.top / "a", os.O_RDWR)
    os.pwrite(fd, CONTENT, 0)
    os.close(os.dup(fd))  # written to the host's memory; what is left is to make it durable

    def work() -> None:
        try:
            os.fsync(fd)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    return work


def _write_and_sync(upper: Served) -> Callable[[], object]:
    fd = os.open(upper.top / "a", os.O_RDWR)
    os.pwrite(fd, CONTENT, 0)

    def work() -> None:
        try:
            os.fsync(fd)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    return work


OPERATIONS: dict[str, tuple[Callable[[Served], Callable[[], object]], str]] = {
    "fsync": (_sync, "operation: fsync"),
    "write and fsync": (_write_and_sync, "operation: fsync"),
    "rename": (lambda upper: lambda: os.rename(upper.top / "a", upper.top / "b"), "operation: rename"),
    "create": (lambda upper: lambda: (upper.top / "d/new").open("xb"), "operation: create"),
    "mkdir": (lambda upper: lambda: (upper.top / "d/new").mkdir(), "operation: mkdir"),
    "readdir": (lambda upper: lambda: os.listdir(upper.top / "d"), "operation: readdir"),
    "unlink": (lambda upper: lambda: (upper.top / "a").unlink(), "operation: unlink"),
    "rmdir": (lambda upper: lambda: (upper.top / "d").rmdir(), "operation: rmdir"),
    "open": (lambda upper: lambda: (upper.top / "a").open("rb"), "operation: open"),
    "truncate": (lambda upper: lambda: os.truncate(upper.top / "a", 5), "operation: "),
    "chmod": (lambda upper: lambda: (upper.top / "a").chmod(0o700), "operation: chmod"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_stall_during_an_operation_is_an_error_in_time_and_loses_no_file(
    tmp_path: Path, storage: Storage, operation: str
) -> None:
    """The program is told, the event names the operation, and the file is there once the storage answers again."""
    prepare, named = OPERATIONS[operation]
    upper = serve(tmp_path, store=storage.top, sync_s=ANSWER_S)
    try:
        (upper.top / "a").write_bytes(CONTENT)
        (upper.top / "b").write_bytes(b"b")
        (upper.top / "d").mkdir()
        work = prepare(upper)
        storage.stall()
        began = time.monotonic()
        with pytest.raises(OSError):
            work()
        assert time.monotonic() - began < IN_TIME_S
        assert f"the host's storage did not answer for {ANSWER_S:.0f} s" in upper.events()
        assert named in upper.events()
    finally:
        storage.go_on()
        upper.destroy()
    if operation != "unlink" or (storage.top / "a").exists():
        # what was under way may be done once the storage answers: one whole state or the other
        assert upper.decrypted("a") in (CONTENT, CONTENT[:5] if operation == "truncate" else CONTENT)


def test_slow_sync_is_waited_for(tmp_path: Path, storage: Storage) -> None:
    """An honest slow disk takes longer for a sync than for anything else: no error."""
    upper = serve(tmp_path, store=storage.top)
    try:
        (upper.top / "a").write_bytes(b"before")
        work = _sync(upper)
        storage.stall()
        slow = threading.Timer(ANSWER_S + 1.5, storage.go_on)
        slow.start()
        began = time.monotonic()
        work()
        assert time.monotonic() - began > ANSWER_S
        slow.join()
        assert upper.events() == ""
    finally:
        storage.go_on()
        upper.destroy()


def test_stall_while_the_program_writes_ends_the_run(tmp_path: Path, storage: Storage) -> None:
    """The program is not left waiting: it and the run end, and the message says what did not answer."""
    spec = world.shell(
        "echo kept > /out/kept; echo ready; read go; echo more > /out/more || echo refused; sleep 60",
        mounts=[["encrypted", "/out", "file:below/top"]],
    )
    with Running(tmp_path, spec) as run:
        assert run.line() == "ready"
        storage.stall()
        run.say("go")
        began = time.monotonic()
        try:
            result = run.end(END_S)
        finally:
            storage.go_on()
        assert time.monotonic() - began < END_S
    assert "the process that serves the program's files ended" in result.ended["message"]
    assert "storage did not answer" in result.ended["seen"]
    assert world.decrypt(tmp_path, "below/top/kept") == b"kept\n"
