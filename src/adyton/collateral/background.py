"""Collateral that is missing is fetched beside the decisions, never in them: only who needs it waits for it.

One fetch at a time for each platform, few at all, fewer for evidence that shows no chain to a pinned root (anybody can
make that). What could not be fetched is left alone for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.quote import CertificationType
from adyton.attest.snp import SNPReport
from adyton.errors import Error, Stale, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.attest.sgx import SGXQuote
    from adyton.attest.tdx import TDXQuote
    from adyton.collateral.store import CollateralStore

log = logging.getLogger("adyton.keyserver")

MAX_FETCHES: Final = 6
MAX_UNPROVEN_FETCHES: Final = 2
"""Of these, for evidence that carries no certificate chain."""

MAX_WHO_WAIT: Final = 64
"""Requests that wait for one fetch."""

LEFT_ALONE_S: Final = 20.0
"""How long what could not be fetched is not asked for again."""

_MAX_REMEMBERED: Final = 256


@dataclass(eq=False)
class Fetch:
    """One fetch under way, and who is to be told when it ends."""

    unproven: bool
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    ended: bool = False


class Fetching(Exception):
    """What is missing is on its way; `when_done` has somebody told when it is here, or cannot be had.

    No refusal and so no `Error`; `error` is what to say where nobody can wait.
    """

    def __init__(self, owner: FetchingCollateral, fetch: Fetch) -> None:
        super().__init__("the collateral is being fetched")
        self.error = Unavailable(
            "the collateral for this platform is being fetched",
            check="collateral",
            expected="collateral for this platform",
            seen="a fetch that has not ended",
            remedy="try again in a moment",
        )
        self._owner = owner
        self._fetch = fetch

    def when_done(self, callback: Callable[[], None]) -> bool:
        """Call back once when the fetch has ended; False where too many wait for it already."""
        return self._owner.wait_for(self._fetch, callback)


class FetchingCollateral:
    """A collateral store that answers at once: with what is here, or with `Fetching`; thread-safe."""

    def __init__(self, store: CollateralStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._running: dict[object, Fetch] = {}
        self._failed: dict[object, tuple[float, Error]] = {}

    def for_quote(self, quote: SGXQuote | TDXQuote, now: datetime) -> Collateral:
        """What is here for this quote; raises Fetching where it is being fetched, else as the store does."""
        try:
            return self._store.for_quote(quote, now, fetch=False)
        except (Unavailable, Stale) as error:
            if not self._store.online:
                raise
            origin = self._store.origin(quote)
            unproven = quote.signature.certification_type != CertificationType.PCK_CHAIN
            self._begin(origin, lambda: self._store.for_quote(quote, now), error, unproven=unproven)
            raise

    def for_report(self, report: SNPReport, now: datetime) -> AMDCollateral:
        """The same for a report of SEV-SNP."""
        try:
            return self._store.for_report(report, now, fetch=False)
        except (Unavailable, Stale) as error:
            if not self._store.online:
                raise
            chip = (report.chip_id, report.field("reported_tcb"))
            self._begin(chip, lambda: self._store.for_report(report, now), error, unproven=True)
            raise

    def _begin(self, what: object, work: Callable[[], object], missing: Error, *, unproven: bool) -> None:
        """Start a fetch unless it runs; raises Fetching, the error of one that failed lately, or returns."""
        with self._lock:
            failed = self._failed.get(what)
            if failed is not None and time.monotonic() < failed[0]:
                raise failed[1] from missing
            fetch = self._running.get(what)
            if fetch is None:
                if len(self._running) >= MAX_FETCHES or (
                    unproven and sum(each.unproven for each in self._running.values()) >= MAX_UNPROVEN_FETCHES
                ):
                    return
                fetch = self._running[what] = Fetch(unproven)
                threading.Thread(target=self._fetch, args=(what, fetch, work), name="collateral", daemon=True).start()
        raise Fetching(self, fetch)

    def _fetch(self, what: object, fetch: Fetch, work: Callable[[], object]) -> None:
        failure: Error | None = None
        try:
            work()
        except Error as error:
            failure = error
            log.warning("collateral could not be fetched", extra={"reason": error.message})
        except Exception:
            failure = Unavailable("fetching the collateral failed inside", check="collateral")
            log.exception("internal error while fetching collateral")
        with self._lock:
            del self._running[what]
            self._failed.pop(what, None)
            if failure is not None:
                while len(self._failed) >= _MAX_REMEMBERED:
                    del self._failed[next(iter(self._failed))]
                self._failed[what] = (time.monotonic() + LEFT_ALONE_S, failure)
            fetch.ended = True
        for callback in fetch.callbacks:
            callback()

    def wait_for(self, fetch: Fetch, callback: Callable[[], None]) -> bool:
        """Call back when this fetch has ended: at once where it has; False where too many wait for it."""
        with self._lock:
            if not fetch.ended:
                if len(fetch.callbacks) >= MAX_WHO_WAIT:
                    return False
                fetch.callbacks.append(callback)
                return True
        callback()
        return True
