"""The checks of a verification, in their order. The first failed check ends it."""

from __future__ import annotations

from typing import TypeVar

from adyton.check import Check, text
from adyton.errors import EvidenceError

Found = TypeVar("Found")


class Checks:
    """Collects checks in their order. The first failed check is recorded and raised."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: list[Check] = []

    def require(
        self,
        name: str,
        ok: bool,
        *,
        expected: object,
        seen: object,
        error: type[EvidenceError] = EvidenceError,
        message: str | None = None,
        remedy: str | None = None,
    ) -> None:
        """Record a check. Raise `error` where it fails."""
        check = Check(name, expected, seen, ok, remedy)
        self.done.append(check)
        if not ok:
            raise _refusal(check, error, message)

    def require_found(
        self,
        name: str,
        value: Found | None,
        *,
        expected: object,
        seen: object,
        error: type[EvidenceError] = EvidenceError,
        message: str | None = None,
        remedy: str | None = None,
    ) -> Found:
        """Record a check that there is a value, and return the value. Raise `error` where it is None."""
        check = Check(name, expected, seen, value is not None, remedy)
        self.done.append(check)
        if value is None:
            raise _refusal(check, error, message)
        return value


def _refusal(check: Check, error: type[EvidenceError], message: str | None) -> EvidenceError:
    expected, seen = text(check.expected), text(check.seen)
    shown = check._replace(expected=expected, seen=seen)
    return error(message or f"{check.name}: expected {expected}, seen {seen}", checks=[shown])
