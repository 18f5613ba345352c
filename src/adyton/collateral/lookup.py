"""Look up the collateral for one piece of evidence in a store, and put it together."""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from adyton.attest.roots import TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.collateral.documents import last_certificate
from adyton.collateral.needs import (
    assemble,
    assemble_amd,
    origin_of_chain,
    pck_chain,
    unverified_chips,
    unverified_origin,
)
from adyton.collateral.requests import certificate_request, request_for
from adyton.collateral.store import IMMUTABLE
from adyton.errors import Error, FetchFailed, Stale, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.attest.snp import SNPReport
    from adyton.attest.tdx import TDXQuote
    from adyton.collateral.documents import Kind, VerifiedDocument
    from adyton.collateral.downloads import Downloads
    from adyton.collateral.needs import ChipOrigin, Origin
    from adyton.collateral.pcs import PCSClient
    from adyton.collateral.requests import Request
    from adyton.collateral.store import CollateralStore, Outcome
    from adyton.values import Digest

MAX_REMEMBERED: Final = 1024
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


Kept = TypeVar("Kept", bound="Collateral | AMDCollateral")


@dataclass(frozen=True, slots=True)
class Found(Generic[Kept]):
    """The collateral for one piece of evidence, and the time when the first of its documents is due."""

    collateral: Kept
    due_at: datetime


@dataclass
class Lookup:
    """Collateral for evidence, each document verified and valid. Thread-safe.

    Without `downloads` only the store is used. With them, missing and expired documents are fetched first, and the
    caller waits.
    """

    store: CollateralStore
    downloads: Downloads | None = None
    _found: dict[Origin, tuple[tuple[VerifiedDocument, ...], Found[Collateral]]] = field(
        default_factory=dict, repr=False
    )
    _origins: dict[tuple[bool, int, bytes], Origin] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    # --- quotes

    def for_quote(self, quote: SGXQuote | TDXQuote, now: datetime) -> Collateral:
        """The collateral for one quote. Raises as `find` does."""
        return self.find(quote, now).collateral

    def find(self, quote: SGXQuote | TDXQuote, now: datetime) -> Found[Collateral]:
        """The collateral for one quote, each document verified and valid at `now`.

        Raises FetchFailed where a document is missing, Stale where one has expired, StorageFailed where one on disk was
        altered, and MalformedQuote where the quote does not name its origin. The same object is returned as long as no
        document changes, so a cache of verified collateral can use it as its key.
        """
        origin = self.origin(quote)
        found: dict[tuple[Kind, str], VerifiedDocument] = {}
        wanted = list(origin.names)
        while wanted:
            kind, subject = wanted.pop(0)
            verified = found[kind, subject] = self._get(quote, origin, kind, subject, now)
            if kind == "pck-certificate":
                origin = origin_of_chain(pck_chain(verified.document), origin.tee, origin.request)
                wanted = [name for name in origin.names if name not in found]
        return self._assembled(found, origin)

    def origin(self, quote: SGXQuote | TDXQuote) -> Origin:
        """The origin of a quote, unverified. It is cached, since parsing the certificates is most of the work."""
        signature = quote.signature
        digest = hashlib.sha256(signature.certification_data).digest()
        key = (isinstance(quote, SGXQuote), int(signature.certification_type), digest)
        with self._lock:
            known = self._origins.get(key)
        if known is not None:
            return known
        origin = unverified_origin(quote)
        if origin.request is not None:
            return unverified_origin(quote, root=self.store.root_of_request(origin.request))
        with self._lock:
            if len(self._origins) >= MAX_REMEMBERED:
                self._origins.clear()
            self._origins[key] = origin
        return origin

    def _get(
        self, quote: SGXQuote | TDXQuote, origin: Origin, kind: Kind, subject: str, now: datetime
    ) -> VerifiedDocument:
        try:
            return self.store.get(origin.root, kind, subject, now)
        except (Unavailable, Stale):
            if self.downloads is None:
                raise
            if kind == "pck-certificate":
                return _taken(self.downloads.fetch_one(certificate_request(quote, origin), now))
            return _fetched(self.downloads, origin, kind, subject, now)

    def _assembled(self, found: Mapping[tuple[Kind, str], VerifiedDocument], origin: Origin) -> Found[Collateral]:
        parts = tuple(found[key] for key in sorted(found))
        with self._lock:
            known = self._found.get(origin)
            if known is not None and len(known[0]) == len(parts) and all(map(operator.is_, known[0], parts)):
                return known[1]
        made = Found(assemble(found, origin), self._due_at(parts))
        with self._lock:
            if len(self._found) >= MAX_REMEMBERED:
                self._found.clear()
            self._found[origin] = (parts, made)
        return made

    def _due_at(self, parts: Iterable[VerifiedDocument]) -> datetime:
        due = [self.store.due_at(part) for part in parts if part.document.kind not in IMMUTABLE]
        return min(due, default=_NEVER)

    # --- SEV-SNP reports

    def for_report(self, report: SNPReport, now: datetime, *, roots: TrustRoots | None = None) -> AMDCollateral:
        """The certificates and CRL for one SEV-SNP report. Raises as `find_for_report` does."""
        return self.find_for_report(report, now, roots=roots).collateral

    def find_for_report(
        self, report: SNPReport, now: datetime, *, roots: TrustRoots | None = None
    ) -> Found[AMDCollateral]:
        """The certificates and CRL for one SEV-SNP report, under the pinned ARK of its product.

        The product comes from the report. A report of version 2 does not name it, so it comes from the stored
        documents. Raises FetchFailed where a document is missing, Stale where one has expired, and StorageFailed where
        one was altered on disk.
        """
        pinned = (roots or TrustRoots()).amd
        last: Error | None = None
        for chip in unverified_chips(report):
            ark = pinned.get(chip.product)
            if ark is None:
                continue
            try:
                return self._for_chip(chip, ark, now)
            except (Unavailable, Stale) as error:
                last = error
            if self.downloads is None:
                continue
            errors = [outcome.error for outcome in self.downloads.fetch_chip(chip, now) if outcome.error is not None]
            if not errors:
                return self._for_chip(chip, ark, now)
            last = errors[0]
        raise last or FetchFailed("the report names no product that AMD's roots are known for", check="AMD product")

    def _for_chip(self, chip: ChipOrigin, ark: Digest, now: datetime) -> Found[AMDCollateral]:
        certificate, crl = (self.store.get(ark, *each, now) for each in (chip.certificate, chip.crl))
        return Found(assemble_amd(certificate.document, crl.document), self._due_at((certificate, crl)))


def _fetched(downloads: Downloads, origin: Origin, kind: Kind, subject: str, now: datetime) -> VerifiedDocument:
    """Fetch one document while evidence waits for it. For the root's CRL another document names the root."""

    def fetch(request: Request[PCSClient]) -> VerifiedDocument:
        return _taken(downloads.fetch_one(request, now, root=origin.root, respect_negative_cache=True))

    if kind != "root-crl":
        return fetch(request_for(kind, subject))
    pck_crl = fetch(request_for("pck-crl", origin.ca or "platform"))
    return fetch(request_for(kind, subject, last_certificate(pck_crl.document.chain)))


def _taken(outcome: Outcome) -> VerifiedDocument:
    """The fetched document. Raises the error of the fetch."""
    if outcome.verified is None:
        raise outcome.error or FetchFailed(f"{outcome.name} could not be fetched")
    return outcome.verified
