"""How the store's files write a time: RFC 3339 in UTC, in whole seconds. What does not parse is no time."""

from __future__ import annotations

from datetime import datetime

from adyton.rfc3339 import parse_timestamp


def parse_stamp(written: object) -> datetime | None:
    """The time that was written by `rfc3339.timestamp`, or None where it does not parse."""
    try:
        return parse_timestamp(written) if isinstance(written, str) else None
    except ValueError:
        return None
