"""The keeper's first moments: a signal that was there before it could listen."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from adyton.errors import SandboxFailed
from adyton.runtime import host, keeper, launch


class _Deaf:
    """In the keeper's place: what it says to a signal, and nothing else."""

    take_signal = staticmethod(lambda number: keeper.Keeper.take_signal(_Deaf(), number))  # type: ignore[arg-type]
    _sandbox = None
    _starting = False

    def run(self) -> dict[str, object]:
        """Never reached."""
        return {}


def test_signal_that_waits_while_the_keeper_starts_is_an_interruption() -> None:
    """It is let in before the keeper runs, and is told as what it is and not as a bug."""
    report_out, report_in = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)
        launch._become_keeper(parent, report_in, lambda _tell, _umask: _Deaf())  # type: ignore[arg-type, return-value]
    os.close(report_in)
    with os.fdopen(report_out, "rb") as pipe:
        told = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert told == {"interrupted": signal.SIGTERM}


class _Sandbox:
    """A sandbox whose program is there from some moment on."""

    def __init__(self) -> None:
        self.is_there = False
        self.got: list[int] = []

    def signal(self, number: int) -> bool:
        """As a Sandbox."""
        if self.is_there:
            self.got.append(number)
        return self.is_there


def _keeper() -> keeper.Keeper:
    plan: Any = SimpleNamespace(log=None)
    return keeper.Keeper(plan, lambda: keeper.Delivered({}), "bwrap", None, 1, (0, 1, 2), 0o22, lambda _message: None)


def test_signals_for_a_program_that_is_not_there_yet_are_kept_for_it() -> None:
    """In their order; only those that end something end the start, and none once the program is being started."""
    waiting: Any = _keeper()
    waiting.take_signal(signal.SIGUSR1)
    with pytest.raises(keeper.Interrupted):
        waiting.take_signal(signal.SIGTERM)
    waiting._starting = True
    waiting.take_signal(signal.SIGTERM)
    waiting._sandbox = running = _Sandbox()
    waiting.take_signal(signal.SIGCONT)
    assert running.got == []
    running.is_there = True
    waiting._deliver()
    waiting._deliver()
    assert running.got == [signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT]


def test_end_that_was_asked_for_is_no_failure_of_the_sandbox() -> None:
    """bubblewrap may end by the signal before it can say how the program ended; without a request it is a failure."""
    asked: Any = _keeper()
    asked._plan.entrypoint = "program"
    ended: Any = SimpleNamespace(exit_code=None, process=SimpleNamespace(returncode=128 + signal.SIGTERM))
    with pytest.raises(SandboxFailed):
        asked._exit_code(ended)
    asked._starting = True
    asked.take_signal(signal.SIGTERM)
    assert asked._exit_code(ended) == 128 + signal.SIGTERM
    ended.process.returncode = 1
    with pytest.raises(SandboxFailed):
        asked._exit_code(ended)


def test_launch_looks_at_the_core_pattern_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it was told of the TEE; nothing was started yet."""
    seen: list[bool] = []

    def refuse(*, simulated: bool) -> None:
        seen.append(simulated)
        raise SandboxFailed("handler")

    monkeypatch.setattr(host, "check_core_pattern", refuse)
    nothing: Any = None
    with pytest.raises(SandboxFailed, match="handler"):
        launch.launch(nothing, nothing, simulated=False)
    assert seen == [False]
