"""Fetch collateral in the background. Only evidence whose collateral is missing waits.

There is one fetch at a time for each platform, and few in all. Evidence without a chain to a pinned root gets fewer,
since anybody can make it. After a failed fetch there is a pause.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from adyton.attest.quote import CertificationType
from adyton.collateral.backoff import Backoff
from adyton.collateral.lookup import Lookup
from adyton.errors import Error, Stale, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from datetime import datetime

    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.attest.sgx import SGXQuote
    from adyton.attest.snp import SNPReport
    from adyton.attest.tdx import TDXQuote
    from adyton.collateral.downloads import Downloads

log = logging.getLogger("adyton.keyserver")

MAX_FETCHES: Final = 6
MAX_UNPROVEN_FETCHES: Final = 2
"""Those of them for evidence that carries no certificate chain."""

MAX_WHO_WAIT: Final = 64
"""Most requests that wait for one fetch."""

FAILED_S: Final = 20.0
"""Pause after a failed fetch for evidence."""

REFRESH_PAUSE_S: Final = 600.0
"""Pause after a refresh of due documents."""

_REFRESH: Final = "refresh"

Purpose = Literal["proven", "unproven", "refresh"]
"""The reason of a fetch: evidence with a chain to a pinned root, evidence without one, or due documents."""


def has_place(running: Iterable[Purpose], purpose: Purpose) -> bool:
    """Whether one more fetch may begin beside these. Evidence never blocks the fetch of due documents."""
    if purpose == "refresh":
        return True
    evidence = [each for each in running if each != "refresh"]
    if len(evidence) >= MAX_FETCHES:
        return False
    return purpose == "proven" or evidence.count("unproven") < MAX_UNPROVEN_FETCHES


class Fetch:
    """A running fetch, and its callbacks. Thread-safe."""

    def __init__(self, purpose: Purpose) -> None:
        self.purpose: Final = purpose
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._ended

    def when_done(self, callback: Callable[[], None]) -> bool:
        """Call back once when the fetch has ended, or now where it has. False where too many wait."""
        with self._lock:
            if not self._ended:
                if len(self._callbacks) >= MAX_WHO_WAIT:
                    return False
                self._callbacks.append(callback)
                return True
        callback()
        return True

    def end(self) -> None:
        """Call all callbacks."""
        with self._lock:
            self._ended = True
        for callback in self._callbacks:
            callback()


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="collateral", daemon=True).start()


class BackgroundFetches:
    """Fetches in background threads, one at a time for each key, with a pause after a failure. Thread-safe.

    Each purpose has its own memory of pauses, so that a flood of bad evidence cannot make another pause forgotten.
    """

    def __init__(
        self,
        *,
        start: Callable[[Callable[[], None]], object] = _in_a_thread,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._running: dict[Hashable, Fetch] = {}
        self._backoff: dict[Purpose, Backoff[Hashable, Error | None]] = defaultdict(Backoff)

    def begin(
        self, key: Hashable, work: Callable[[], object], purpose: Purpose, *, pause_s: float = 0.0
    ) -> Fetch | Error | None:
        """Begin a fetch unless it runs already.

        Returns the running fetch, or the error of one that failed lately. Returns None where the fetch cannot begin:
        there are too many, or it pauses. `pause_s` is the pause after success.
        """
        with self._lock:
            wait = self._backoff[purpose].get(key, self._clock_s())
            if wait is not None:
                return wait.reason
            running = self._running.get(key)
            if running is not None:
                return running
            if not has_place([each.purpose for each in self._running.values()], purpose):
                return None
            fetch = self._running[key] = Fetch(purpose)
        try:
            self._start(lambda: self._run(key, fetch, work, pause_s))
        except BaseException:
            self._end(key, fetch)
            raise
        return fetch

    def _run(self, key: Hashable, fetch: Fetch, work: Callable[[], object], pause_s: float) -> None:
        failure: Error | None = None
        try:
            work()
        except Error as error:
            failure = error
            log.warning("collateral could not be fetched", extra={"reason": error.message})
        except Exception:
            failure = Unavailable("fetching the collateral failed inside", check="collateral")
            log.exception("internal error while fetching collateral")
        self._end(key, fetch, pause_s if failure is None else max(pause_s, FAILED_S), failure)

    def _end(self, key: Hashable, fetch: Fetch, wait_s: float = 0.0, failure: Error | None = None) -> None:
        with self._lock:
            del self._running[key]
            now_s = self._clock_s()
            self._backoff[fetch.purpose].note(key, now_s + wait_s, failure, now_s)
        fetch.end()


@dataclass(frozen=True, slots=True)
class Pending:
    """Result of a lookup whose collateral is being fetched."""

    fetch: Fetch

    def when_done(self, callback: Callable[[], None]) -> bool:
        """Call back once when the fetch has ended. False where too many wait."""
        return self.fetch.when_done(callback)

    def error(self) -> Unavailable:
        """The error for a caller that cannot wait."""
        return Unavailable(
            "the collateral for this platform is being fetched",
            check="collateral",
            expected="collateral for this platform",
            seen="a fetch that has not ended",
            remedy="try again in a moment",
        )


class BackgroundLookup:
    """A lookup that never blocks: collateral from a store, or `Pending` while it is fetched. Thread-safe.

    A document past half of its validity is served, and fetched anew in the background.
    """

    def __init__(
        self,
        here: Lookup,
        fetching: Lookup,
        refresh: Callable[[datetime], object],
        fetches: BackgroundFetches | None = None,
    ) -> None:
        self._here = here
        self._fetching = fetching
        self._refresh = refresh
        self._fetches = fetches or BackgroundFetches()

    @classmethod
    def create(cls, downloads: Downloads, fetches: BackgroundFetches | None = None) -> BackgroundLookup:
        """Make a lookup in the store of these downloads."""
        here, fetching = Lookup(downloads.store), Lookup(downloads.store, downloads)
        return cls(here, fetching, downloads.refresh, fetches)

    def for_quote(self, quote: SGXQuote | TDXQuote, now: datetime) -> Collateral | Pending:
        """The collateral for this quote. Raises as `Lookup` does where it is missing and cannot be fetched now."""
        try:
            found = self._here.find(quote, now)
        except (Unavailable, Stale) as missing:
            carries_chain = quote.signature.certification_type == CertificationType.PCK_CHAIN
            purpose: Purpose = "proven" if carries_chain else "unproven"
            return self._begin(self._here.origin(quote), lambda: self._fetching.for_quote(quote, now), purpose, missing)
        self._refresh_if_due(found.due_at, now)
        return found.collateral

    def for_report(self, report: SNPReport, now: datetime) -> AMDCollateral | Pending:
        """The collateral for a SEV-SNP report, which carries no chain."""
        try:
            found = self._here.find_for_report(report, now)
        except (Unavailable, Stale) as missing:
            chip = (report.chip_id, report.field("reported_tcb"), report.vlek)
            return self._begin(chip, lambda: self._fetching.for_report(report, now), "unproven", missing)
        self._refresh_if_due(found.due_at, now)
        return found.collateral

    def _refresh_if_due(self, due_at: datetime, now: datetime) -> None:
        if now >= due_at:
            self._fetches.begin(_REFRESH, lambda: self._refresh(now), "refresh", pause_s=REFRESH_PAUSE_S)

    def _begin(self, key: Hashable, work: Callable[[], object], purpose: Purpose, missing: Error) -> Pending:
        begun = self._fetches.begin(key, work, purpose)
        if isinstance(begun, Fetch):
            return Pending(begun)
        if begun is None:
            raise missing
        raise begun.with_traceback(None) from missing
