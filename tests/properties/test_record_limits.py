"""Whatever is sent in whatever order, the record grows by no more than its limits, and what is left out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.keyserver import record_limits
from adyton.keyserver.record_limits import Budget, LogLimit, PlatformBudget, RefusalLimits

PERIOD_MS = 1000
PLATFORMS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(st.tuples(PLATFORMS, st.integers(0, 700), st.integers(1, 12)), max_size=60)
"""Who, how long after the last, and how much."""

REFUSALS = st.lists(st.tuples(st.none() | PLATFORMS, st.integers(0, 40_000)), max_size=80)
"""Of which platform (or of none), and how long after the last."""


@pytest.fixture(scope="module", autouse=True)
def small_limits() -> Iterator[None]:
    """Limits that a short list of refusals reaches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_limits, "MAX_NOISE_PER_MINUTE", 3)
        patch.setattr(record_limits, "MAX_PER_PLATFORM", 2)
        patch.setattr(record_limits, "MAX_GENUINE_PER_MINUTE", 4)
        yield


@given(STEPS)
def test_budget_is_never_spent_twice_in_a_period(steps: list[tuple[str, int, int]]) -> None:
    """Who asks for room before spending stays within the limit of every period."""
    budget, spent, at_ms = Budget(25, period_ms=PERIOD_MS), Counter[int](), 0
    for _, after_ms, size in steps:
        at_ms += after_ms
        fits = spent[at_ms // PERIOD_MS] + size <= 25
        assert budget.has_room(at_ms, size) == fits
        if fits:
            budget.spend(size, at_ms)
            spent[at_ms // PERIOD_MS] += size


@given(STEPS)
def test_platform_has_its_share_and_no_more(steps: list[tuple[str, int, int]]) -> None:
    """No platform exceeds its share, nor all of them the whole, by more than the last entry; the rest keep theirs."""
    budget = PlatformBudget(40, 15, period_ms=PERIOD_MS)
    spent: Counter[tuple[int, str]] = Counter()
    at_ms = 0
    for platform, after_ms, size in steps:
        at_ms += after_ms
        period = at_ms // PERIOD_MS
        own = spent[period, platform]
        every = sum(size for (when, _), size in spent.items() if when == period)
        assert budget.has_room(platform, at_ms) == (own < 15 and every < 40)
        if budget.has_room(platform, at_ms):
            budget.spend(platform, size, at_ms)
            spent[period, platform] += size


@given(REFUSALS)
def test_refusals_are_recorded_whole_or_counted(refusals: list[tuple[str | None, int]]) -> None:
    """Of each minute only so many are kept, in all and of each platform; every other one stands in exactly one sum."""
    limits, at_ms = RefusalLimits(), 0
    kept: Counter[tuple[int, str | None]] = Counter()
    sums: list[dict[str, int]] = []
    for platform, after_ms in refusals:
        at_ms += after_ms
        if limits.may_keep(platform, at_ms):
            kept[at_ms // 60_000, platform] += 1
            limits.wrote(platform, 10, at_ms)
        found = limits.sums(at_ms)
        sums += found
        limits.recorded(found)
    sums += limits.sums(None)
    for minute in {when for when, _ in kept}:
        assert kept[minute, None] <= 3
        assert all(kept[minute, platform] <= 2 for platform in "abc")
        assert sum(kept[minute, platform] for platform in "abc") <= 4
    left_out = sum(value for each in sums for name, value in each.items() if name.startswith("refused"))
    assert kept.total() + left_out == len(refusals)
    assert all(value > 0 for each in sums for name, value in each.items() if name.startswith("refused"))


@given(REFUSALS)
def test_one_platform_never_costs_another_its_place(refusals: list[tuple[str | None, int]]) -> None:
    """While a platform has used nothing of a minute and the whole has room, its refusal is kept."""
    limits, at_ms = RefusalLimits(), 0
    for platform, after_ms in refusals:
        at_ms += after_ms
        limits.may_keep("a" if platform is not None else None, at_ms)
    assert limits.may_keep("z", at_ms)


@given(st.lists(st.integers(0, 30_000), max_size=300))
def test_log_lines_of_a_minute_are_bounded(gaps: list[int]) -> None:
    """So many lines a minute are written, and the first of each minute always is."""
    limit, at_ms = LogLimit(), 0
    written: Counter[int] = Counter()
    for gap in gaps:
        at_ms += gap
        minute = at_ms // 60_000
        if limit.may_write(at_ms):
            written[minute] += 1
        assert 1 <= written[minute] <= record_limits.MAX_LINES_PER_MINUTE
