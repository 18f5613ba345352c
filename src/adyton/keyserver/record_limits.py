"""Limits on what the record keeps of unauthenticated clients: a flood is counted and does not fill the disk.

All limits of one key server together let such clients add at most 19 MiB a day to the record, which is never cut, and
keep 512 MiB of evidence and manifests beside it, the newest (docs/key-server.md has the sum).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

MAX_NOISE_PER_MINUTE: Final = 120
"""Refusals of requests without genuine evidence of their own that are recorded whole in a minute."""

MAX_PER_PLATFORM: Final = 60
"""Refusals of programs on one genuine platform that are recorded whole in a minute."""

MAX_GENUINE_PER_MINUTE: Final = 600
"""The same for all genuine platforms together."""

MAX_NOISE_BYTES_PER_DAY: Final = 512 << 10
MAX_GENUINE_BYTES_PER_DAY: Final = 16 << 20
MAX_PLATFORM_BYTES_PER_DAY: Final = 4 << 20
"""How much these refusals may add to the record in a day, and those on one genuine platform of it."""

OWNERS_BYTES: Final = 8 * 1024
"""What a refusal of genuine evidence is charged for the owner's part of it, however long that is (at most so long).

Else the number of refusals until one is not kept would say how many approvals each was compared with.
"""

MAX_SUMS_PER_DAY: Final = 60
"""Minutes whose left out refusals are summed up one by one in a day; beyond that there is one sum an hour."""

MAX_EXPLAINED_BYTES_PER_DAY: Final = 2 << 20
MAX_PLATFORM_EXPLAINED_BYTES_PER_DAY: Final = 512 << 10
"""What comparisons of refused programs with approved ones may add to the record in a day, and of it those on one
platform; evidence that was made for another request counts as one platform's."""

MAX_EVIDENCE_BYTES_PER_DAY: Final = 32 << 20
MAX_EVIDENCE_KEPT_BYTES: Final = 256 << 20
"""Genuine evidence of refused requests that is kept in a day, and in all: beyond that by its hash, the oldest first."""

MAX_SHOWN_BYTES_PER_DAY: Final = 64 << 20
MAX_SHOWN_KEPT_BYTES: Final = 256 << 20
"""Manifests of refused programs that are kept in a day, and in all; beyond that a refusal is still explained."""

MAX_LINES_PER_MINUTE: Final = 60
"""Lines of the log for messages that nothing is recorded of."""

_DAY_MS: Final = 86_400_000
_MAX_PLATFORMS: Final = 4096


class Budget:
    """A limit on a sum in each period (a day where none is given). For one thread."""

    def __init__(self, limit: int, *, period_ms: int = _DAY_MS) -> None:
        self._limit = limit
        self._period_ms = period_ms
        self._period = -1
        self._spent = 0

    def has_room(self, at_ms: int, size: int = 1) -> bool:
        """Whether `size` more fits."""
        self._turn(at_ms)
        return self._spent + size <= self._limit

    def spend(self, size: int, at_ms: int) -> None:
        """Add to the sum."""
        self._turn(at_ms)
        self._spent += size

    def _turn(self, at_ms: int) -> None:
        period = at_ms // self._period_ms
        if period != self._period:
            self._period, self._spent = period, 0


class PlatformBudget:
    """A limit on a sum in each period for all platforms together, and a share of it for each. For one thread."""

    def __init__(self, limit: int, share: int, *, period_ms: int = _DAY_MS) -> None:
        self._all = Budget(limit, period_ms=period_ms)
        self._share = share
        self._period_ms = period_ms
        self._of_platform: dict[str, Budget] = {}

    def has_room(self, platform: str, at_ms: int) -> bool:
        """Whether more fits for this platform."""
        return self._all.has_room(at_ms) and self._own(platform).has_room(at_ms)

    def spend(self, platform: str, size: int, at_ms: int) -> None:
        """Add to the sum of this platform and of all."""
        self._all.spend(size, at_ms)
        self._own(platform).spend(size, at_ms)

    def _own(self, platform: str) -> Budget:
        if platform not in self._of_platform:
            while len(self._of_platform) >= _MAX_PLATFORMS:
                del self._of_platform[next(iter(self._of_platform))]
            self._of_platform[platform] = Budget(self._share, period_ms=self._period_ms)
        return self._of_platform[platform]


class RefusalLimits:
    """Which refusals are recorded whole; the rest are counted, and the sum of a minute or an hour is recorded."""

    def __init__(self) -> None:
        self._minute = 0
        self._noise = 0
        self._platforms: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._sums: list[dict[str, int]] = []
        self._summed = Budget(MAX_SUMS_PER_DAY)
        self._noise_bytes = Budget(MAX_NOISE_BYTES_PER_DAY)
        self._genuine_bytes = PlatformBudget(MAX_GENUINE_BYTES_PER_DAY, MAX_PLATFORM_BYTES_PER_DAY)

    def may_keep(self, platform: str | None, at_ms: int) -> bool:
        """Whether one more is recorded: of this platform, whose evidence is bound to its request, or of none."""
        self._turn(at_ms // 60_000)
        if platform is None:
            self._noise += 1
            kept, kind = self._noise <= MAX_NOISE_PER_MINUTE, "refused_without_evidence"
            kept = kept and self._noise_bytes.has_room(at_ms)
        else:
            within = self._platforms.total() < MAX_GENUINE_PER_MINUTE and self._genuine_bytes.has_room(platform, at_ms)
            kept, kind = within and self._platforms[platform] < MAX_PER_PLATFORM, "refused_on_genuine_platforms"
            if kept:
                self._platforms[platform] += 1
        if not kept:
            self._left_out[kind] += 1
        return kept

    def wrote(self, platform: str | None, size_bytes: int, at_ms: int) -> None:
        """Note how long the entry of a refusal that was kept is, by what its client knows of it."""
        if platform is None:
            self._noise_bytes.spend(size_bytes, at_ms)
        else:
            self._genuine_bytes.spend(platform, size_bytes, at_ms)

    def sums(self, at_ms: int | None) -> list[dict[str, int]]:
        """What was left out in the minutes that are over (in this one, too, where no time is given), to be recorded."""
        self._turn(-1 if at_ms is None else at_ms // 60_000)
        return list(self._sums)

    def recorded(self, sums: list[dict[str, int]]) -> None:
        """Forget these sums: they stand in the record."""
        del self._sums[: len(sums)]

    def _turn(self, minute: int) -> None:
        if minute == self._minute:
            return
        before, self._minute = self._minute, minute
        self._noise = 0
        self._platforms.clear()
        if not self._left_out:
            return
        at_ms = before * 60_000
        by_hour = not self._summed.has_room(at_ms)
        if by_hour and minute >= 0 and minute // 60 == before // 60:
            return
        self._summed.spend(1, at_ms)
        when = {"hour": before // 60} if by_hour else {"minute": before}
        self._sums.append({**self._left_out, **when})
        self._left_out.clear()


class LogLimit:
    """Limits the log lines for messages that nothing is recorded of. A race between threads writes a line too many."""

    def __init__(self) -> None:
        self._budget = Budget(MAX_LINES_PER_MINUTE, period_ms=60_000)

    def may_write(self, at_ms: int) -> bool:
        """Whether one more line is written."""
        if not self._budget.has_room(at_ms):
            return False
        self._budget.spend(1, at_ms)
        return True
