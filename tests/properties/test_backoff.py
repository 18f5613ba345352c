"""What failed lately is not tried again too early, never for ever, and the memory of it stays small."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.collateral.backoff import BUSY_S, MAX_REMEMBERED, NEGATIVE_S, Backoff, SourceBackoff
from adyton.errors import FetchFailed

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SMALL_LIMIT = 3
KEYS = st.sampled_from("abcdef")
SECONDS = st.integers(0, 100)
NOTES = st.lists(st.tuples(KEYS, SECONDS, SECONDS), max_size=40)
"""Key, how long after the last note, and for how long."""

STATUSES = st.sampled_from([None, 200, 400, 404, 410, 429, 500, 503])


@given(NOTES)
def test_backoff_agrees_with_a_plain_map(notes: list[tuple[str, int, int]]) -> None:
    """What waits, waits as it was noted last; the newest is always held, and never more than the limit."""
    backoff: Backoff[str, int] = Backoff(SMALL_LIMIT)
    now_s = 0
    model: dict[str, tuple[int, int]] = {}
    for number, (key, after_s, wait_s) in enumerate(notes):
        now_s += after_s
        backoff.note(key, now_s + wait_s, number, now_s)
        model.pop(key, None)
        model[key] = (now_s + wait_s, number)
        for each in "abcdef":
            wait = backoff.get(each, now_s)
            if wait is not None:
                assert (wait.until_s, wait.reason) == model[each]
                assert now_s < wait.until_s
        current = {each: value for each, value in model.items() if now_s < value[0]}
        held = [each for each, _ in backoff.items(now_s)]
        assert held == [each for each in current if each in held]
        assert len(held) <= SMALL_LIMIT
        assert key in held or wait_s == 0


@given(KEYS, st.integers(0, 10**6), st.integers(1, 10**6))
def test_wait_ends_when_it_says(key: str, now_s: int, wait_s: int) -> None:
    """A key waits until its end, and not at it."""
    backoff: Backoff[str, str] = Backoff()
    backoff.note(key, now_s + wait_s, "why", now_s)
    assert backoff.get(key, now_s + wait_s - 1) is not None
    assert backoff.get(key, now_s + wait_s) is None


@given(STATUSES, st.none() | st.integers(1, 86_400), st.integers(0, 90_000))
@settings(deadline=None, max_examples=50)
def test_source_that_refused_is_asked_again_in_time(
    status: int | None, retry_after_s: int | None, later_s: int
) -> None:
    """A missing document waits alone. A source that is busy or asks to wait waits whole. All else waits not."""
    with tempfile.TemporaryDirectory() as place:
        backoff = SourceBackoff(Path(place) / "store")
        error = FetchFailed("refused", status=status, retry_after_s=retry_after_s)
        backoff.note("https://a.example", "crl", error, NOW)
        later = NOW + timedelta(seconds=later_s)
        another_process = SourceBackoff(Path(place) / "store")
        asked = another_process.check("https://a.example", "crl", later)
        whole = another_process.check("https://a.example", None, later)
        assert another_process.check("https://b.example", "crl", later) is None
    busy_s = BUSY_S if retry_after_s is None else retry_after_s
    asks_to_wait = status in (429, 503) or (status not in (None, 404, 410) and retry_after_s is not None)
    is_busy = asks_to_wait and later_s < busy_s
    assert (whole is not None) == is_busy
    assert (asked is not None) == (is_busy or (status in (404, 410) and later_s < NEGATIVE_S))
    if asked is not None:
        assert asked.retry_after_s is not None
        assert 0 < asked.retry_after_s <= max(busy_s, NEGATIVE_S)


def test_file_of_refusals_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many documents are asked for, the newest refusals are remembered and the oldest forgotten."""
    backoff = SourceBackoff(tmp_path)
    error = FetchFailed("not there", status=404)
    monkeypatch.setattr("adyton.collateral.folder.os.fsync", lambda _descriptor: None)
    for number in range(MAX_REMEMBERED + 5):
        backoff.note("https://a.example", f"crl-{number}", error, NOW)
    assert backoff.check("https://a.example", "crl-4", NOW) is None
    assert backoff.check("https://a.example", "crl-5", NOW) is not None
    assert (tmp_path / "negative.json").stat().st_size < MAX_REMEMBERED * 200
