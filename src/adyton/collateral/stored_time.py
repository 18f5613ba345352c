"""Times in the store's files: RFC 3339 in UTC, in whole seconds."""

from __future__ import annotations

from datetime import datetime

from adyton.dates import parse_timestamp


def parse_stamp(written: object) -> datetime | None:
    """Parse a time that `dates.timestamp` wrote. None where it does not parse."""
    try:
        return parse_timestamp(written) if isinstance(written, str) else None
    except ValueError:
        return None
