"""The record of a verification: every check by name, what was expected, what was seen, and whether it held."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import NamedTuple

from adyton.errors import EvidenceError


def text(value: object) -> str:
    """A value as a person reads it: bytes in hex, times in UTC, collections by comma."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (tuple, list)):
        return ", ".join(text(item) for item in value) or "none"
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(text(item) for item in value)) or "none"
    return str(value)


class Check(NamedTuple):
    """One check and its outcome."""

    name: str
    expected: object
    seen: object
    ok: bool
    remedy: str | None = None

    def to_dict(self) -> dict[str, str | bool]:
        """As JSON: name, expected, seen, ok, and the remedy where it failed."""
        found: dict[str, str | bool] = {
            "name": self.name,
            "expected": text(self.expected),
            "seen": text(self.seen),
            "ok": self.ok,
        }
        if self.remedy is not None and not self.ok:
            found["remedy"] = self.remedy
        return found


class Checks:
    """Collects checks in their order; the first that fails is recorded and raised."""

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
        """Record a check; where it does not hold, raise `error`."""
        self.done.append(Check(name, expected, seen, ok, remedy))
        if not ok:
            shown = text(seen)
            raise error(
                message or f"{name}: expected {text(expected)}, seen {shown}",
                check=name,
                expected=text(expected),
                seen=shown,
                remedy=remedy,
            )

    def note(self, check: Check) -> None:
        """Record a check that was judged elsewhere."""
        self.done.append(check)
