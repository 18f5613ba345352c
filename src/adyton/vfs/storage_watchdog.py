"""Notices when the host's storage does not answer: a clock over the one operation that the file server is in.

A host that stalls its storage must not hang the program for ever. If storage takes longer than `ANSWER_S` for one
operation, the file server ends. The kernel then fails every operation on its mounts at once. Syncing to disk may take
`SYNC_S`, since an honest slow disk takes that long for what was written before.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

ANSWER_S: Final = 4.0
SYNC_S: Final = 60.0
START_S: Final = 10.0
"""Before the program runs nobody but a person waits, and cold storage may have to wake up."""

STALLED_STATUS: Final = 3


def _let_go() -> None:
    """Close the FUSE device and all pipes first.

    A process cannot even end while a file of a stalled file system must be closed. Whatever depends on this process
    must not wait for that. With the device closed the kernel fails every operation on the mount.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.endswith("/dev/fuse") or target.startswith("pipe:"):
                os.close(int(name))


class StorageWatchdog:
    """The adapter starts and stops it around every operation. Long operations report progress; syncs get more time."""

    def __init__(self, *, answer_s: float = ANSWER_S, sync_s: float = SYNC_S) -> None:
        self._answer_s = answer_s
        self._sync_s = sync_s
        self._limit_s = answer_s
        self._doing = ""
        self._watched = False
        self.clock: Final = (ctypes.c_double * 2)()
        """When the operation began (0: there is none), and whether it is a read of the C part, which writes both."""

    def start(self, doing: str) -> None:
        """An operation begins."""
        self._doing = doing
        self.clock[1] = 0
        self.clock[0] = time.monotonic()

    def stop(self) -> None:
        """It has ended."""
        self.clock[0] = 0

    def progress(self) -> None:
        """It goes on, and the host has answered just now."""
        if self.clock[0]:
            self.clock[0] = time.monotonic()

    def syncing(self) -> AbstractContextManager[None]:
        """The host is asked to make something durable."""
        return self.lasting(self._sync_s)

    @contextmanager
    def lasting(self, limit_s: float) -> Iterator[None]:
        """The operations inside may take `limit_s` seconds."""
        self._limit_s = limit_s
        self.progress()
        try:
            yield
        finally:
            self.progress()
            self._limit_s = self._answer_s

    def overdue(self) -> str | None:
        """The operation that takes too long, in words. None where none does."""
        began = self.clock[0]
        if not began or time.monotonic() - began <= self._limit_s:
            return None
        doing = "read" if self.clock[1] else self._doing
        return f"the host's storage did not answer for {self._limit_s:.0f} s (operation: {doing})"

    def watch(self, event: Callable[[str], None]) -> None:
        """Start a thread that ends this process when something is overdue. A second call does nothing."""
        if self._watched:
            return
        self._watched = True

        def run() -> None:
            while True:
                time.sleep(self._answer_s / 32)
                late = self.overdue()
                if late is not None:
                    event(late)
                    _let_go()
                    os._exit(STALLED_STATUS)

        threading.Thread(target=run, daemon=True).start()
