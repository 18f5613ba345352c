"""Dates and times: a date is the whole day in UTC wherever it stands, and a time has a zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from adyton.dates import is_over, parse_end, parse_start, parse_timestamp, timestamp
from adyton.errors import StoreError, UsageError


@pytest.mark.parametrize("day", ["2027-01-31", date(2027, 1, 31)])
def test_date_is_the_whole_day_in_utc(day: object) -> None:
    """As an end it is the last second, as a start the first; TOML's own dates mean the same."""
    assert parse_end(day, "until") == datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC)
    assert parse_start(day, "--before") == datetime(2027, 1, 31, tzinfo=UTC)


def test_end_holds_through_its_last_second() -> None:
    """What ends with a day ends at the next midnight, and no part of a second is lost."""
    end, midnight = parse_end("2027-01-31", "until"), datetime(2027, 2, 1, tzinfo=UTC)
    assert not is_over(end, end)
    assert not is_over(end, midnight - timedelta(microseconds=1))
    assert is_over(end, midnight)
    assert not is_over(datetime.max.replace(tzinfo=UTC), midnight)


@pytest.mark.parametrize(
    ("text", "hour"),
    [("T12:00:00Z", 12), ("T12:00Z", 12), (" 12:00:00.5Z", 12), ("T12:00:00+02:00", 10), ("T12:00:00-02:00", 14)],
)
def test_time_with_a_zone_is_that_moment(text: str, hour: int) -> None:
    """Start and end are the same for a time."""
    assert parse_end("2027-01-31" + text, "x").hour == parse_start("2027-01-31" + text, "x").hour == hour


@pytest.mark.parametrize("value", ["2027-01-31T12:00:00", "2027-01-31 12:00", datetime(2027, 1, 31, 12)])  # noqa: DTZ001
def test_time_without_a_zone_is_refused_with_a_remedy(value: object) -> None:
    """The remedy shows the very time with its zone."""
    for parse in (parse_end, parse_start):
        with pytest.raises(UsageError, match="without a zone") as caught:
            parse(value, "--expires")
        assert "2027-01-31T12:00:00Z" in str(caught.value.remedy)
        assert caught.value.check == "--expires"


@pytest.mark.parametrize(
    "value",
    ["", "soon", "2027-02-30", "20270131", "2027-W04-7", "2027-01-31Z", "2027-01-31T25:00:00Z", "٢٠٢٧-01-31", 7, None],
)
def test_anything_else_is_no_time(value: object) -> None:
    """Only the one form is read, and the caller's kind of error says so."""
    with pytest.raises(StoreError, match="not a time"):
        parse_end(value, "until", refuse=StoreError)


def test_moment_outside_the_calendar_is_refused() -> None:
    """A zone may push a time out of the years that there are."""
    with pytest.raises(UsageError, match="out of range"):
        parse_end("0001-01-01T00:00:00+14:00", "until")


def test_timestamp_is_read_back() -> None:
    """Documents of programs have one form, to the second, in every year: an approval that is not read back is lost."""
    for text in ("2027-01-31T12:00:00Z", "0999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        assert timestamp(parse_timestamp(text)) == timestamp(parse_end(text, "x")) == text
    assert timestamp(parse_timestamp("2027-01-31T12:00:00Z") + timedelta(milliseconds=999)) == "2027-01-31T12:00:00Z"
    for text in ("2027-01-31T12:00:00", "2027-01-31", "2027-1-31T12:00:00Z", "2027-13-31T12:00:00Z"):
        with pytest.raises(ValueError, match=r"."):
            parse_timestamp(text)
