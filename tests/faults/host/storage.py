"""Storage that can stop answering: a file system of its own, whose server is stopped and let go on."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from adyton.vfs.storage_watchdog import ANSWER_S
from tests.mount.served import Served

END_S = ANSWER_S + 4.0
"""A run whose storage stalls has ended by then: the stall is noticed, the program told, everything taken down."""


@dataclass
class Storage:
    """A file system, at `top`, whose server can be stopped and let go on."""

    lower: Served

    @property
    def top(self) -> Path:
        """Where it is mounted."""
        return self.lower.top

    def stall(self) -> None:
        """Answer nothing any more."""
        self.lower.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        self.lower.process.send_signal(signal.SIGCONT)
