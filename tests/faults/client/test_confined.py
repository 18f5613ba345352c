"""What a stranger's text may do to the process that reads it: use its bounds up, and nothing else."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from adyton import confined_process
from adyton.confined_process import Bounds
from adyton.errors import OutOfOrder, Timeout

TASKS = "tests.faults.client.tasks"


def children() -> set[int]:
    """The processes that this one has started and that still are."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(number) for number in (task / "children").read_text().split()}
    return found


@pytest.mark.parametrize(
    ("task", "bounds", "seen"),
    [
        ("spin", Bounds(cpu_s=1, wall_s=300), f"exit status {-signal.SIGKILL}|exit status {-signal.SIGXCPU}"),
        ("sleep", Bounds(wall_s=1), "no end within 1 s"),
        ("hog", Bounds(memory_bytes=1 << 28, wall_s=300), "exit status 1"),
        ("flood", Bounds(output_bytes=1 << 20, wall_s=300), "more than 1048576 bytes"),
    ],
)
def test_task_that_goes_beyond_its_bounds_is_ended(task: str, bounds: Bounds, seen: str) -> None:
    """Processor time, wall time, memory, output: each has its end, and no process is left."""
    before = children()
    with pytest.raises(Timeout) as caught:
        confined_process.run(TASKS, task, b"content", bounds)
    assert caught.value.seen in seen.split("|")
    assert children() <= before


def test_refusal_of_a_task_is_cut() -> None:
    """What the other process says of the input is a text of bounded length."""
    with pytest.raises(OutOfOrder) as caught:
        confined_process.run(TASKS, "refuse", b"no", Bounds())
    assert str(caught.value.seen).startswith("nox")
    assert len(str(caught.value.seen)) <= confined_process.MAX_REASON_CHARS


def test_process_that_is_taken_over_finds_no_secret_and_writes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor and no variable of the key server's is in it, and it leaves nothing."""
    monkeypatch.setenv("PGPASSWORD", "hush")
    with open("/proc/self/exe", "rb") as held:
        found = json.loads(confined_process.run(TASKS, "look", b"", Bounds()))
        assert held.name
    assert "hush" not in str(found)
    assert set(found["environment"]) <= {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LC_ALL", "LC_CTYPE"}
    assert not found["wrote"]
    Path("/tmp/taken-over").unlink(missing_ok=True)
    kinds = {name.split(":")[0] for name in found["open"]}
    assert kinds <= {"pipe", "/dev/null", "/memfd", "/proc/self/fd"} | {name for name in kinds if "/proc/" in name}
