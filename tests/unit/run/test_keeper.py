"""The keeper's first moments: a signal that was there before it could listen."""

from __future__ import annotations

import json
import os
import signal

from adyton.run import keeper, launch


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
        launch._become_keeper(parent, report_in, set(), lambda _tell: _Deaf())  # type: ignore[arg-type, return-value]
    os.close(report_in)
    with os.fdopen(report_out, "rb") as pipe:
        told = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert told == {"interrupted": signal.SIGTERM}
