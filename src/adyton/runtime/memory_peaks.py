"""How full the program's memory for files became, so that a run that failed for want of it says which key to change.

The kernel counts no failed write of a tmpfs. So it is looked at now and then while the program runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

LOOK_S: Final = 0.2
"""So often a peak is looked for, in seconds."""

_FULL: Final = 0.95
_NEARLY: Final = 0.5
"""A program that asks for more than is left at once, and failed, has seen no full one."""

UsedAndSize = Callable[[str], tuple[int, int]]


def used_and_size(place: str) -> tuple[int, int]:
    """The bytes that a mounted memory holds, and can hold. Raises OSError."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_blocks * found.f_frsize


class MemoryPeaks:
    """The most that each memory of the program held. `places` has each path inside, and where this process sees it."""

    def __init__(self, places: Iterable[tuple[str, str]], *, look: UsedAndSize = used_and_size) -> None:
        self._places = tuple(places)
        self._look = look
        self._peaks: dict[str, tuple[int, int]] = {}

    def look(self) -> None:
        """Look at each. One that is gone keeps its peak."""
        for path, place in self._places:
            try:
                used, size = self._look(place)
            except OSError:
                continue
            if size and used >= self._peaks.get(path, (0, 0))[0]:
                self._peaks[path] = (used, size)

    def told(self, exit_code: int) -> Iterator[str]:
        """What to say of each that was full, or that a program which failed had filled in large part."""
        for path, (used, size) in self._peaks.items():
            part = used / size
            if part >= _FULL or (exit_code != 0 and part >= _NEARLY):
                yield (
                    f"memory at {path} was {'full' if part >= _FULL else 'nearly full'}: {used / (1 << 20):.0f} MiB of"
                    f" {size / (1 << 20):.0f} MiB, which is adyton.memory_budget. If the program failed for want of it"
                    " (no space left, bus error), write a larger adyton.memory_budget into the template, build it and"
                    " approve it again"
                )
