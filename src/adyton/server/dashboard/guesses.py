"""How often a password may be tried. Each source has its own budget, so that others cannot use up the owner's.

A source is an address (of IPv6 the /64, which one customer has), or a browser that logged in before. After some wrong
passwords each further one doubles the wait. A password that comes before the end of the wait is not checked. Time is an
argument.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

FREE: Final = 5
"""Wrong passwords without a wait."""

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 300.0
FORGET_S: Final = 3600.0
"""After so long without a wrong password a source begins anew."""

MAX_SOURCES: Final = 4096


@dataclass(slots=True)
class _Tries:
    wrong: int
    last: float
    free_at: float


class Guesses:
    """The budgets of all sources; for one thread."""

    def __init__(self) -> None:
        self._tries: dict[str, _Tries] = {}

    def wait_s(self, source: str, now: float) -> float:
        """How long this source has to wait before its next password is looked at, in seconds; 0 where it need not."""
        found = self._tries.get(source)
        return 0.0 if found is None else max(0.0, found.free_at - now)

    def wrong(self, source: str, now: float) -> None:
        """Count a wrong password."""
        found = self._tries.get(source)
        count = 1 if found is None or now - found.last > FORGET_S else found.wrong + 1
        doublings = min(count - FREE, 30)
        wait_s = 0.0 if doublings < 0 else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**doublings)
        if found is None and len(self._tries) >= MAX_SOURCES:
            del self._tries[min(self._tries, key=lambda name: self._tries[name].last)]
        self._tries[source] = _Tries(count, now, now + wait_s)

    def right(self, source: str) -> None:
        """Forget what this source guessed wrong: it knows the password."""
        self._tries.pop(source, None)


def source_of(address: str) -> str:
    """The source that an address belongs to: itself in IPv4, its /64 in IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "elsewhere"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
