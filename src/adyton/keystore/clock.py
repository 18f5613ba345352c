"""Time in the store: whole milliseconds since 1970 UTC, by this machine's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """The time by this machine's clock, in ms since 1970 UTC."""
    return time.time_ns() // 1_000_000


def moment(at_ms: int) -> datetime:
    """A stored time as a datetime."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
