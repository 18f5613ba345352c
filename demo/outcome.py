"""The results of the demo: the refused attempts, leaks if any, and whether the result is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.attacks import Refusal
    from demo.evidence import Searched
    from demo.steps import Journey


@dataclass(frozen=True)
class Told:
    """The results of the whole demo."""

    journey: Journey
    refusals: tuple[Refusal, ...]
    secrets: frozenset[str]
    seen: Searched
    control: Searched
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the decrypted result is the plain run's, byte for byte."""
        return bool(self.journey.plain_result) and self.journey.decrypted_result == self.journey.plain_result

    @property
    def good(self) -> bool:
        """Whether all went as it must: the same result, everything refused, nothing leaked, and the search works."""
        return (
            self.equal
            and not any(refusal.released for refusal in self.refusals)
            and not self.seen.found
            and self.control.secrets == self.secrets
        )
