"""Limits on recorded requests of unauthenticated clients: a flood is counted and does not fill the disk.

Under all limits together such clients can add at most 19 MiB a day to the record, which is never cut. Beside it the
newest 512 MiB of evidence and manifests are kept. The page docs/key-server.md has the sum.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

MAX_NOISE_PER_MINUTE: Final = 120
"""Fully recorded refusals in a minute, of requests without genuine evidence of their own."""

MAX_PER_PLATFORM: Final = 60
"""Fully recorded refusals in a minute, of programs on one genuine platform."""

MAX_GENUINE_PER_MINUTE: Final = 600
"""The same for all genuine platforms together."""

MAX_NOISE_BYTES_PER_DAY: Final = 512 << 10
MAX_GENUINE_BYTES_PER_DAY: Final = 16 << 20
MAX_PLATFORM_BYTES_PER_DAY: Final = 4 << 20
"""Bytes that these refusals may add to the record in a day, and the share of one genuine platform."""

OWNERS_BYTES: Final = 8 * 1024
"""Fixed charge for the owner's part of a refusal of genuine evidence, in bytes. It is also its maximum length.

Otherwise the number of refusals until the limit would show with how many approvals each was compared.
"""

MAX_SUMS_PER_DAY: Final = 60
"""Minutes in a day that get a sum of their own for refusals that were only counted.

Beyond that there is one sum an hour.
"""

MAX_EXPLAINED_BYTES_PER_DAY: Final = 2 << 20
MAX_PLATFORM_EXPLAINED_BYTES_PER_DAY: Final = 512 << 10
"""Bytes that comparisons of refused programs may add to the record in a day, and the share of one platform.

Evidence that was made for another request counts as that of one platform.
"""

MAX_EVIDENCE_BYTES_PER_DAY: Final = 32 << 20
MAX_EVIDENCE_KEPT_BYTES: Final = 256 << 20
"""Limits on stored evidence of refused requests, for a day and in all. Beyond the first only the hash is kept.

Beyond the second the oldest goes.
"""

MAX_SHOWN_BYTES_PER_DAY: Final = 64 << 20
MAX_SHOWN_KEPT_BYTES: Final = 256 << 20
"""Limits on stored manifests of refused programs, for a day and in all. Beyond them a refusal is still explained."""

MAX_LINES_PER_MINUTE: Final = 60
"""Log lines for messages that are not recorded."""

_DAY_MS: Final = 86_400_000
_MAX_PLATFORMS: Final = 4096


class Budget:
    """A limit on a sum in each period (by default a day). For one thread."""

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
    """Decides which refusals are fully recorded.

    The rest are counted, and the sum of a minute or an hour is recorded.
    """

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
        """Whether one more refusal is recorded.

        `platform` is the one that made its evidence for this request, or None.
        """
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
        """Note the length of a recorded refusal, as far as its client can know it."""
        if platform is None:
            self._noise_bytes.spend(size_bytes, at_ms)
        else:
            self._genuine_bytes.spend(platform, size_bytes, at_ms)

    def sums(self, at_ms: int | None) -> list[dict[str, int]]:
        """The counts of past minutes that are still to be recorded. Without a time, also of the current minute."""
        self._turn(-1 if at_ms is None else at_ms // 60_000)
        return list(self._sums)

    def recorded(self, sums: list[dict[str, int]]) -> None:
        """Remove these sums, which are recorded now."""
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
    """Limits the log lines for messages that are not recorded. A race between threads may write an extra line."""

    def __init__(self) -> None:
        self._budget = Budget(MAX_LINES_PER_MINUTE, period_ms=60_000)

    def may_write(self, at_ms: int) -> bool:
        """Whether one more line may be written."""
        if not self._budget.has_room(at_ms):
            return False
        self._budget.spend(1, at_ms)
        return True
