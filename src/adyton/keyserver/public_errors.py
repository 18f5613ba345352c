"""What a peer is told when the key server itself fails: that it could not check, and nothing of why."""

from __future__ import annotations

import logging

from adyton.errors import Error, OutOfOrder, Unavailable, VersionMismatch

log = logging.getLogger("adyton.keyserver")


def busy(
    message: str, *, check: str, expected: object, seen: str | None, remedy: str | None = "try again in a moment"
) -> Unavailable:
    """What a stranger is told when the key server cannot answer now."""
    return Unavailable(message, check=check, expected=expected, seen=seen, remedy=remedy, public=True)


def public_error(error: Exception, doing: str) -> Error:
    """The error as an unauthenticated client may see it.

    The client is told what is wrong with its own message. All else (the database, a file, a defect) is the owner's and
    goes to the log.
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
