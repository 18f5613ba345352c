"""Whether everything relied on is valid at the time of verification. Both ends of a validity belong to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.errors import Stale

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from adyton.attest.certificates import Window
    from adyton.attest.checks import Checks

_REFRESH: Final = "fetch the collateral again: adyton collateral fetch"


def check_validity(checks: Checks, windows: Iterable[Window], now: datetime) -> None:
    """Step T: everything that was used is valid at `now`. The first and the last instant belong to it."""
    for what, not_before, not_after in windows:
        ok = not_before <= now <= not_after
        message, remedy = (None, None) if ok else _words(what, not_before, not_after, now)
        checks.require(
            f"{what}: valid now",
            ok,
            expected=(not_before, not_after),
            seen=now,
            error=Stale,
            message=message,
            remedy=remedy,
        )


def _words(what: str, not_before: datetime, not_after: datetime, now: datetime) -> tuple[str, str]:
    if now > not_after:
        return f"the {what} expired at {not_after:%Y-%m-%d %H:%M:%S} UTC", _REFRESH
    message = f"the {what} is valid only from {not_before:%Y-%m-%d %H:%M:%S} UTC"
    return message, "check the clock or --at; then fetch the collateral again"
