"""The plot of releases and refusals: what stands on which day, and how high."""

from __future__ import annotations

from datetime import UTC, date, datetime

from adyton.server.dashboard.pages.activity import DAYS, HEIGHT, plot


def ms(text: str) -> int:
    """A time (ISO, UTC) in ms since 1970."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOW = ms("2026-03-01T12:00")


def test_plot_counts_each_day_of_utc() -> None:
    """An entry stands on its day, the last of which is today; what is older, or of the future, is left out."""
    found = plot(
        [
            *[("release", ms("2026-03-01T00:00"))] * 4,
            ("release", ms("2026-02-28T23:59:59.999")),
            ("denial", ms("2026-02-28T12:00")),
            ("denial", ms("2026-01-30T12:00")),
            ("denial", ms("2026-01-29T23:59")),
            ("release", ms("2026-03-02T00:00")),
        ],
        NOW,
    )
    assert (found.bars[0].day, found.bars[-1].day, len(found.bars)) == (date(2026, 1, 31), date(2026, 3, 1), DAYS)
    assert [(bar.released, bar.refused) for bar in found.bars[-2:]] == [(1, 1), (4, 0)]
    assert (found.released, found.refused, found.most) == (5, 1, 4)


def test_plot_fits_and_shows_whatever_happened() -> None:
    """The tallest bar is as high as there is room; one refusal among thousands of releases is still seen."""
    found = plot([*[("release", NOW)] * 5000, ("denial", NOW)], NOW)
    assert (found.bars[-1].up, found.bars[-1].down) == (HEIGHT, 2)
    assert {(bar.up, bar.down) for bar in found.bars[:-1]} == {(0, 0)}


def test_plot_of_nothing_is_empty() -> None:
    """A new store has days without bars."""
    found = plot([], NOW)
    assert (found.most, found.released, found.refused) == (0, 0, 0)
    assert {(bar.up, bar.down) for bar in found.bars} == {(0, 0)}
