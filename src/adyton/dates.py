"""Dates and times in RFC 3339. A time must have a zone, and the result is in UTC.

A date without a time is the whole day, in UTC, everywhere:

- As an end (`parse_end`: `until`, `--expires`, `--at`) it is the day's last second. `is_over` lets that second count.
- As a start (`parse_start`: `--before`) it is the day's first second.

A time without a zone is refused: a reader elsewhere would take it for another moment.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from adyton.errors import Error, UsageError

EXPECTED: Final = "a date, as 2027-01-31, or a time with its zone, as 2027-01-31T12:00:00Z"
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?", re.ASCII)
_TIMESTAMP: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)
_DAY_START: Final = time(0, 0, 0)
_DAY_END: Final = time(23, 59, 59)
_ONE_SECOND: Final = timedelta(seconds=1)


def parse_end(value: object, what: str, *, refuse: type[Error] = UsageError) -> datetime:
    """Parse an end from a text or a TOML value. A date means its last second, in UTC.

    Raises `refuse` for everything else, naming `what`.
    """
    return _parse(value, what, _DAY_END, refuse)


def parse_start(value: object, what: str, *, refuse: type[Error] = UsageError) -> datetime:
    """Parse a start, as `parse_end` does. A date means its first second, in UTC."""
    return _parse(value, what, _DAY_START, refuse)


def is_over(end: datetime, now: datetime) -> bool:
    """Whether an end has passed: the second that it names still counts."""
    return now - end >= _ONE_SECOND


def over_at(end: datetime) -> datetime:
    """The first moment at which an end has passed; raises OverflowError for the last second of the year 9999."""
    return end + _ONE_SECOND


def parse_timestamp(text: str) -> datetime:
    """Parse the one form that documents for programs use, YYYY-MM-DDThh:mm:ssZ. Raises ValueError."""
    if _TIMESTAMP.fullmatch(text) is None:
        raise ValueError("not of the form YYYY-MM-DDThh:mm:ssZ")
    return datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)


def timestamp(moment: datetime) -> str:
    """The text that `parse_timestamp` parses, to the second."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="seconds") + "Z"  # strftime writes the year 999 in three digits


def _parse(value: object, what: str, of_day: time, refuse: type[Error]) -> datetime:
    found = _read(value)
    if found is None:
        raise refuse(
            f"{what} is not a time: {str(value)[:40]!r}",
            check=what,
            expected=EXPECTED,
            seen=str(value)[:40],
            remedy="write it as 2027-01-31 (the whole day, in UTC) or as 2027-01-31T12:00:00Z",
        )
    if not isinstance(found, datetime):
        return datetime.combine(found, of_day, UTC)
    if found.tzinfo is None:
        raise refuse(
            f"{what} is a time without a zone: {str(value)[:40]!r}",
            check=what,
            expected=EXPECTED,
            seen=str(value)[:40],
            remedy=f"write its zone: {found.isoformat()}Z is UTC, {found.isoformat()}+02:00 is two hours east of it",
        )
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise refuse(f"{what} is out of range: {str(value)[:40]!r}", check=what, expected=EXPECTED) from None


def _read(value: object) -> date | None:
    """A date or a time (which is a date too, in Python). None where the value is neither."""
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        return None
    try:
        if _DATE.fullmatch(value) is not None:
            return date.fromisoformat(value)
        return datetime.fromisoformat(value) if _TIME.fullmatch(value) is not None else None
    except ValueError:
        return None
