"""Errors of the key server as its clients see them: it could not check. They never see the reason."""

from __future__ import annotations

import logging

from adyton.errors import Error, OutOfOrder, Unavailable, VersionMismatch

log = logging.getLogger("adyton.keyserver")


def busy(
    message: str, *, check: str, expected: object, seen: str | None, remedy: str | None = "try again in a moment"
) -> Unavailable:
    """The error for an unauthenticated client when the key server cannot answer now."""
    return Unavailable(message, check=check, expected=expected, seen=seen, remedy=remedy, public=True)


def public_error(error: Exception, doing: str) -> Error:
    """The error as an unauthenticated client may see it.

    The client sees the faults of its own message. All other errors (the database, a file, a defect) are for the owner
    and go to the log.
    """
    if isinstance(error, OutOfOrder | VersionMismatch) or (isinstance(error, Unavailable) and error.public):
        return error
    if isinstance(error, Error):
        log.error("could not %s", doing, extra={"reason": error.message, **_more(error)})
    else:
        log.error("internal error: could not %s", doing, exc_info=error)
    return busy(
        "the key server could not check this",
        check="key server",
        expected="a key server that works",
        seen="a failure inside it",
        remedy="try again in a moment; if it persists, the owner's log says why",
    )


def _more(error: Error) -> dict[str, str]:
    return {name: text for name, text in error.details().items() if name in ("error", "check", "seen", "remedy")}
