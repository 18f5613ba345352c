"""The judgement of one report by one policy: every requirement, whether it is met, and what only warns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adyton.check import Check, text
from adyton.dates import is_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from adyton.attest.policy.rules import Exemption, Tracked


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that the policy accepts and that its owner should see."""

    name: str
    expected: object
    seen: object
    at: datetime
    """When it was seen."""
    remedy: str
    until: datetime | None = None
    """The last instant at which it only warns. None: the policy names none."""

    def to_dict(self) -> dict[str, str | None]:
        """As JSON data."""
        return {
            "name": self.name,
            "expected": text(self.expected),
            "seen": text(self.seen),
            "at": text(self.at),
            "until": None if self.until is None else text(self.until),
            "remedy": self.remedy,
        }


class Judgement:
    """Collects every requirement and whether it is met."""

    def __init__(self, now: datetime, tracked: Iterable[Tracked] = ()) -> None:
        self.now = now
        self.checks: list[Check] = []
        self.used: list[Exemption] = []
        self.warned: list[Warned] = []
        self.ends: list[datetime] = []
        """When what was accepted ends: entries of lists, and warnings that become refusals."""
        self._tracked: Mapping[str, Tracked] = {item.name: item for item in tracked}

    @property
    def failed(self) -> list[Check]:
        """The requirements that are not met."""
        return [check for check in self.checks if not check.ok]

    def require(self, name: str, ok: bool, *, expected: object, seen: object, remedy: str) -> None:
        """Record a requirement."""
        self.checks.append(Check(name, expected, seen, ok, remedy))

    def one_of(self, name: str, allowed: Iterable[object], seen: object, *, remedy: str) -> None:
        """Record that a value is one of those allowed. Without any there is no requirement."""
        found = frozenset(allowed)
        if found:
            self.require(name, seen in found, expected=found, seen=seen, remedy=remedy)

    def warn(self, name: str, *, expected: object, seen: object, remedy: str, until: datetime | None = None) -> None:
        """Record what is accepted, but should be seen."""
        self.warned.append(Warned(name, expected, seen, self.now, remedy, until))

    def track(self, rule: str, name: str, ok: bool, *, expected: object, seen: object, remedy: str) -> None:
        """Record a requirement of a rule that the policy may have turned into a warning."""
        tracked = self._tracked.get(rule)
        if ok or tracked is None or (tracked.until is not None and is_over(tracked.until, self.now)):
            self.require(name, ok, expected=expected, seen=seen, remedy=remedy)
        else:
            self.warn(name, expected=expected, seen=seen, remedy=remedy, until=tracked.until)
            self.ends += [tracked.until] if tracked.until is not None else []
