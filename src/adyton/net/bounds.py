"""How much of what strangers send is kept: a flood of refusals, or of manifests, is counted and fills no disk."""

from __future__ import annotations

from collections import Counter
from typing import Final

MAX_NOISE_PER_MINUTE: Final = 120
"""Refusals of requests without genuine evidence of their own that are recorded whole in a minute."""

MAX_PER_PLATFORM: Final = 60
"""Refusals of programs on one genuine platform that are recorded whole in a minute."""

MAX_GENUINE_PER_MINUTE: Final = 600
"""The same for all genuine platforms together."""

MAX_SHOWN_BYTES_PER_DAY: Final = 128 << 20
"""Manifests of refused programs kept in a day; beyond that a refusal is still explained, but nothing is kept."""


class Refusals:
    """Which refusals are recorded whole; the rest of a minute's are counted, and the sum is recorded after it."""

    def __init__(self) -> None:
        self._minute = 0
        self._noise = 0
        self._platforms: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._sums: list[dict[str, int]] = []

    def may_keep(self, platform: str | None, at_ms: int) -> bool:
        """Whether one more is recorded: of this platform, whose evidence is bound to its request, or of none."""
        self._turn(at_ms // 60_000)
        if platform is None:
            self._noise += 1
            kept, kind = self._noise <= MAX_NOISE_PER_MINUTE, "refused_without_evidence"
        else:
            within = self._platforms.total() < MAX_GENUINE_PER_MINUTE
            kept, kind = within and self._platforms[platform] < MAX_PER_PLATFORM, "refused_on_genuine_platforms"
            if kept:
                self._platforms[platform] += 1
        if not kept:
            self._left_out[kind] += 1
        return kept

    def sums(self, at_ms: int | None) -> list[dict[str, int]]:
        """What was left out in the minutes that are over (in this one, too, where no time is given), to be recorded."""
        self._turn(-1 if at_ms is None else at_ms // 60_000)
        return list(self._sums)

    def recorded(self, sums: list[dict[str, int]]) -> None:
        """These sums stand in the record."""
        del self._sums[: len(sums)]

    def _turn(self, minute: int) -> None:
        if minute == self._minute:
            return
        if self._left_out:
            self._sums.append({**self._left_out, "minute": self._minute})
        self._minute, self._noise = minute, 0
        self._platforms.clear()
        self._left_out.clear()


class Shown:
    """Bounds what refused programs may leave in the store: a host can make as many of them as it likes."""

    def __init__(self) -> None:
        self._day = 0
        self._kept_bytes = 0

    def may_keep(self, size_bytes: int, at_ms: int) -> bool:
        """Whether so much more may be kept today."""
        day = at_ms // 86_400_000
        if day != self._day:
            self._day, self._kept_bytes = day, 0
        if self._kept_bytes + size_bytes > MAX_SHOWN_BYTES_PER_DAY:
            return False
        self._kept_bytes += size_bytes
        return True
