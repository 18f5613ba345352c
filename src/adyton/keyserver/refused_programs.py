"""Find the changes in a refused program, in the background, for the owner's record only.

An explanation is taken only after a refusal of genuine evidence, once, a few at a time and a few of one platform. A
confined process parses it. It counts only where its measurement is that of the evidence.

The client gets its answer before any comparison begins. Whether there is a free place depends on the messages that are
being read, never on comparisons. Otherwise the time until a place is free would show what was found. An explanation
beyond the limits is dropped, and only the log says so.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.tdx import TDXQuote
from adyton.errors import Error, OutOfOrder
from adyton.keyserver.decide import PROGRAM_LINES
from adyton.keyserver.program_comparison import MAX_APPROVED, compared, unpacked
from adyton.keyserver.public_errors import busy
from adyton.keyserver.record_limits import (
    MAX_EXPLAINED_BYTES_PER_DAY,
    MAX_PLATFORM_EXPLAINED_BYTES_PER_DAY,
    MAX_SHOWN_BYTES_PER_DAY,
    MAX_SHOWN_KEPT_BYTES,
    Budget,
    PlatformBudget,
)
from adyton.keystore.approval import APPROVED
from adyton.keystore.audit_facts import EXPLANATION, WAITS, waiting
from adyton.keystore.clock import now_ms
from adyton.manifest.measure import workload_measurement
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adyton.attest.report import VerifiedReport
    from adyton.keystore.reader import Reader
    from adyton.keystore.store import Store
    from adyton.keystore.transaction import Transaction
    from adyton.release.shown_program import Explanation

log = logging.getLogger("adyton.keyserver")

MAX_EXPLAINING: Final = 4
"""Most explanations being read at a time, and most that wait for their comparison. Each has megabytes."""

MAX_OF_ONE_PLATFORM: Final = 2
"""Those of one platform."""

MAX_EXPECTED: Final = 256
EXPECTED_S: Final = 600.0
"""The number of refusals that may be explained, and the time for it."""

MAX_BUSY_S_PER_HOUR: Final = 900
MAX_PLATFORM_BUSY_S_PER_HOUR: Final = 225
"""Processor time for all explanations in an hour, and for those of one platform."""

CLOSE_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A refusal of genuine evidence that may be explained once."""

    denial: str
    platform: str
    """The platform's chip, if its evidence was made for this request. Otherwise empty."""
    report: VerifiedReport
    key: str
    approvals: tuple[str, ...]
    """The approvals by which it was judged, the closest first."""
    waits: bool
    """Whether the program may wait for the owner's approval after its explanation."""
    made_at: float
    """On the monotonic clock."""


def waits(detail: Mapping[str, Any]) -> bool:
    """Whether a refused program has no approval, by the detail of the refusal's entry."""
    approvals = detail.get("approvals")
    if approvals is None:
        return False
    return all(any(line["name"] in PROGRAM_LINES for line in judged["failed"]) for judged in approvals)


class Explainer:
    """Compares refused programs with approved ones, in one thread. Thread-safe."""

    def __init__(self, store: Store, combine: Callable[[Mapping[str, Digest]], Digest]) -> None:
        self._store = store
        self._combine = combine
        self._shown = Budget(MAX_SHOWN_BYTES_PER_DAY)
        self._written = PlatformBudget(MAX_EXPLAINED_BYTES_PER_DAY, MAX_PLATFORM_EXPLAINED_BYTES_PER_DAY)
        self._busy_s = PlatformBudget(MAX_BUSY_S_PER_HOUR, MAX_PLATFORM_BUSY_S_PER_HOUR, period_ms=3_600_000)
        self._lock = threading.Lock()
        self._expected: OrderedDict[str, Ticket] = OrderedDict()
        self._reading: Counter[str] = Counter()
        self._working: Counter[str] = Counter()
        self._waiting: queue.SimpleQueue[tuple[Ticket, bytes] | None] = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="explanations", daemon=True)
        self._thread.start()

    def expect(self, ticket: Ticket) -> None:
        """Allow an explanation of this refusal. At the limit the oldest ticket is dropped."""
        with self._lock:
            self._expected[ticket.denial] = ticket
            while len(self._expected) > MAX_EXPECTED:
                self._expected.popitem(last=False)

    def claim(self, denial: str) -> Ticket | None:
        """Take a place for an explanation, before it is read. None where the refusal cannot be explained.

        Raises Unavailable where no place is free. The caller must pass the ticket to `take` or `drop`.
        """
        with self._lock:
            ticket = self._expected.get(denial)
            if ticket is None or time.monotonic() - ticket.made_at > EXPECTED_S:
                return None
            if _is_full(self._reading, ticket.platform):
                raise busy(
                    "too many programs are being explained",
                    check="explanations at a time",
                    expected=f"at most {MAX_EXPLAINING}, of one platform {MAX_OF_ONE_PLATFORM}",
                    seen="more",
                    remedy="the refusal stands as it is; start the program again to have it explained",
                )
            del self._expected[denial]
            self._reading[ticket.platform] += 1
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Give a place back, because the message did not come."""
        with self._lock:
            _leave(self._reading, ticket.platform)

    def take(self, ticket: Ticket, message: bytes) -> None:
        """Queue a message for its comparison. It is dropped silently where too many wait."""
        at_ms = now_ms()
        with self._lock:
            _leave(self._reading, ticket.platform)
            fits = not _is_full(self._working, ticket.platform) and self._busy_s.has_room(ticket.platform, at_ms)
            if fits:
                self._working[ticket.platform] += 1
        if fits:
            self._waiting.put((ticket, message))
        else:
            log.info("not explained", extra={"denial": ticket.denial, "reason": "too many are worked out already"})

    @property
    def held(self) -> int:
        """The number of explanations being read, waiting, or being compared."""
        with self._lock:
            return self._reading.total() + self._working.total()

    def close(self) -> None:
        """Start no further comparison. Wait a while for the running one."""
        self._closing = True
        self._waiting.put(None)
        self._thread.join(CLOSE_S)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            ticket, message = item
            began = time.monotonic()
            try:
                if not self._closing:
                    self._work(ticket, message)
            except Error as error:
                log.info("not explained", extra={"denial": ticket.denial, "reason": error.message, "seen": error.seen})
            except Exception:
                log.exception("internal error: could not explain", extra={"denial": ticket.denial})
            finally:
                with self._lock:
                    self._busy_s.spend(ticket.platform, max(1, round(time.monotonic() - began)), now_ms())
                    _leave(self._working, ticket.platform)

    def _work(self, ticket: Ticket, message: bytes) -> None:
        shown = unpacked(ticket.denial, message)
        workload = self._shown_workload(shown, ticket)
        with self._store.read() as view:
            approved = _approved(view, ticket)
        found = compared(shown, approved) if approved else {"against": "", "changed": [], "more": 0}
        at_ms = now_ms()
        with self._store.write() as change:
            self._keep(change, workload, shown, at_ms)
            if not self._written.has_room(ticket.platform, at_ms):
                return
            body: dict[str, Any] = {"denial": ticket.denial, **found}
            if ticket.waits and isinstance(ticket.report.evidence, TDXQuote) and change.has_key(ticket.key):
                # a quote of TDX names its workload by a hash: only now is it known what waits
                body[WAITS] = waiting(workload, ticket.report.tee_with_root, ticket.key)
            entry = change.record(EXPLANATION, ticket.denial, body, at_ms)
            self._written.spend(ticket.platform, len(entry.body), at_ms)

    def _keep(self, change: Transaction, workload: Measurement, shown: Explanation, at_ms: int) -> None:
        size_bytes = len(shown.manifest)
        if self._shown.has_room(at_ms, size_bytes):
            self._shown.spend(size_bytes, at_ms)
            change.remember(workload, shown.manifest, shown.runtime_parts)
            change.forget_shown(MAX_SHOWN_KEPT_BYTES)

    def _shown_workload(self, shown: Explanation, ticket: Ticket) -> Measurement:
        parts = {name: Digest.from_hex(value) for name, value in shown.runtime_parts.items()}
        workload = workload_measurement(shown.manifest, self._combine(parts))
        if not ticket.report.carries_workload(workload):
            raise OutOfOrder(
                "this is not the program whose evidence was refused",
                check="measurement of what was shown",
                expected="manifest and runtime parts that give the measurement in the evidence",
                seen=workload.hex(),
            )
        return workload


def _is_full(places: Counter[str], platform: str) -> bool:
    return places.total() >= MAX_EXPLAINING or places[platform] >= MAX_OF_ONE_PLATFORM


def _leave(places: Counter[str], platform: str) -> None:
    places[platform] -= 1
    if not places[platform]:
        del places[platform]


def _approved(view: Reader, ticket: Ticket) -> list[tuple[str, bytes, dict[str, str]]]:
    """The closest approved programs: name, manifest, runtime parts."""
    by_id = {stored.id: stored for stored in view.approvals() if stored.state == APPROVED}
    found: list[tuple[str, bytes, dict[str, str]]] = []
    for approval_id in ticket.approvals:
        stored = by_id.get(approval_id)
        if stored is None or stored.approval.measurement is None or len(found) == MAX_APPROVED:
            continue
        behind = view.behind(stored.approval.measurement)
        if behind is not None:
            found.append((f"{stored.approval.app} {stored.approval.version}", *behind))
    return found
