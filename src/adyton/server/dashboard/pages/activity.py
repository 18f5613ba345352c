"""Releases and refusals day by day, as the bars of a plot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

from adyton.keystore.audit_facts import DENIAL, RELEASE
from adyton.keystore.clock import moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.keystore.audit import Entry
    from adyton.keystore.reader import Reader

DAYS: Final = 30
"""Days that the plot shows, today among them (UTC)."""

MAX_ENTRIES: Final = 1000
"""The newest releases and refusals that are counted: each is verified when it is read."""

HEIGHT: Final = 50
"""Units between the line and the top of the tallest bar, or the bottom of the lowest."""

STEP: Final = 10
"""Units from one day to the next."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One day: where it stands, and how high its two bars are (in units of the plot)."""

    day: date
    x: int
    released: int
    refused: int
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Activity:
    """Releases above a line and refusals below it, one bar a day, the oldest first."""

    bars: tuple[Bar, ...]
    most: int
    """The most of one kind on one day."""
    cut: bool
    """Whether there were more entries than are counted; the oldest days then show too few."""

    @property
    def released(self) -> int:
        """Releases on all these days."""
        return sum(bar.released for bar in self.bars)

    @property
    def refused(self) -> int:
        """Refusals on all these days."""
        return sum(bar.refused for bar in self.bars)


def activity(reader: Reader, at_ms: int) -> Activity:
    """What the record says of the days up to this time."""
    entries = reader.newest_entries(MAX_ENTRIES, kinds=(RELEASE, DENIAL))
    return plot(((entry.kind, entry.at_ms) for entry in entries), at_ms, cut=_reaches_back(entries, at_ms))


def _reaches_back(entries: list[Entry], at_ms: int) -> bool:
    """Whether the entries that were read end within the days that are shown, because there are too many."""
    first = moment(at_ms).date() - timedelta(days=DAYS - 1)
    return len(entries) == MAX_ENTRIES and moment(entries[-1].at_ms).date() >= first


def plot(events: Iterable[tuple[str, int]], at_ms: int, *, cut: bool = False) -> Activity:
    """The bars for some entries (kind, ms since 1970), for the days up to the one of `at_ms`."""
    counted: Counter[tuple[str, date]] = Counter((kind, moment(when_ms).date()) for kind, when_ms in events)
    last = moment(at_ms).date()
    days = [last - timedelta(days=back) for back in reversed(range(DAYS))]
    most = max(counted[kind, day] for kind in (RELEASE, DENIAL) for day in days)
    bars = [
        Bar(
            day,
            number * STEP,
            counted[RELEASE, day],
            counted[DENIAL, day],
            _height(counted[RELEASE, day], most),
            _height(counted[DENIAL, day], most),
        )
        for number, day in enumerate(days)
    ]
    return Activity(tuple(bars), most, cut)


def _height(count: int, most: int) -> int:
    """A bar's height: what happened at all can be seen."""
    return max(2, round(HEIGHT * count / most)) if count else 0
