"""How the store's files and bundles write a time: RFC 3339 in UTC, in whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"


def stamp(moment: datetime) -> str:
    """A time as it is written."""
    return f"{moment.astimezone(UTC):{_FORMAT}}"


def parse_stamp(written: object) -> datetime | None:
    """The time that was written so, or None where it does not parse."""
    if not isinstance(written, str):
        return None
    try:
        return datetime.strptime(written, _FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
