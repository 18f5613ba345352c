"""Which signals of the person's process reach the program, and how long they do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

PASSED_ON: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip
"""Signals that the program receives when `adyton run` does."""


@contextlib.contextmanager
def pass_on(take: Callable[[int], None]) -> Iterator[None]:
    """Give every signal of PASSED_ON to `take` for as long as this lasts."""

    def handler(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            take(number)

    before = {number: signal.signal(number, handler) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
