"""Fetch documents into a store: which requests go to which sources, in which order, and when none is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from adyton.attest.amd import parse_chip_certificate
from adyton.attest.certificates import parse_certificate
from adyton.attest.snp import SNPReport
from adyton.collateral.backoff import SourceBackoff
from adyton.collateral.documents import last_certificate, stored_name
from adyton.collateral.kds import AMD_KDS
from adyton.collateral.needs import origin_of_chain, pck_chain, unverified_chips, unverified_origin
from adyton.collateral.requests import (
    AMDCRLRequest,
    PCKCRLRequest,
    QEIdentityRequest,
    RootCRLRequest,
    TCBInfoRequest,
    VCEKRequest,
    certificate_request,
    request_for,
    tee_of,
)
from adyton.collateral.sources import Source, SourceList
from adyton.collateral.store import IMMUTABLE, CollateralStore, Outcome
from adyton.errors import Error, EvidenceError, FetchFailed, Mismatch, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from adyton.attest.sgx import SGXQuote
    from adyton.attest.tdx import TDXQuote
    from adyton.collateral.documents import Channel, Document, VerifiedDocument
    from adyton.collateral.kds import KDSClient
    from adyton.collateral.needs import ChipOrigin
    from adyton.collateral.pcs import PCSClient
    from adyton.collateral.requests import Request
    from adyton.values import Digest


@dataclass
class Downloads:
    """Fetches documents into a store, each from the first source that has it. Thread-safe.

    A failure does not stop the other documents. A source in back-off is not asked.
    """

    store: CollateralStore
    client_of: Callable[[Source, Channel], PCSClient] = lambda source, channel: source.client(channel)
    kds: Sequence[Source] = (Source(AMD_KDS),)
    kds_of: Callable[[Source], KDSClient] = lambda source: source.kds_client()
    _amd_lock: Lock = field(default_factory=Lock, repr=False)
    """One request at a time for AMD's service, which limits the rate of requests."""

    @property
    def sources(self) -> SourceList:
        """The sources of Intel's documents that the store remembers."""
        return SourceList(self.store.directory)

    # --- many documents

    def fetch(
        self,
        *,
        fmspcs: Sequence[bytes] = (),
        tees: Sequence[str] = ("sgx", "tdx"),
        sources: Sequence[Source] | None = None,
        root: Digest | None = None,
        now: datetime,
    ) -> list[Outcome]:
        """Fetch everything for these FMSPCs: both PCK CRLs, the root's CRL, QE identities, TCB info."""
        found: list[Outcome] = []
        root_pem: str | None = None
        for ca in ("platform", "processor"):
            outcome = self.fetch_one(PCKCRLRequest(ca), now, root=root, sources=sources)
            found.append(outcome)
            if outcome.verified is not None and root_pem is None:
                root_pem = last_certificate(outcome.verified.document.chain)
                root = outcome.verified.root if root is None else root
        if root_pem is not None:
            found.append(self.fetch_one(RootCRLRequest(root_pem), now, root=root, sources=sources))
        for tee in map(tee_of, tees):
            found.append(self.fetch_one(QEIdentityRequest(tee), now, root=root, sources=sources))
            found += [self.fetch_one(TCBInfoRequest(tee, each), now, root=root, sources=sources) for each in fmspcs]
        return found

    def fetch_for(
        self, evidence: SGXQuote | TDXQuote | SNPReport, now: datetime, *, sources: Sequence[Source] | None = None
    ) -> list[Outcome]:
        """Fetch every document that this evidence needs, also those that are stored already.

        For a SEV-SNP report the sources are AMD's (`kds`), unless others are given.
        """
        found: list[Outcome] = []
        if isinstance(evidence, SNPReport):
            for chip in unverified_chips(evidence):
                found = self.fetch_chip(chip, now, sources=sources)
                if all(outcome.error is None for outcome in found):
                    break
            return found
        origin = unverified_origin(evidence)
        if origin.request is not None:
            outcome = self.fetch_one(certificate_request(evidence, origin), now, sources=sources)
            found.append(outcome)
            if outcome.verified is None:
                return found
            origin = origin_of_chain(pck_chain(outcome.verified.document), origin.tee, origin.request)
        fmspcs = [origin.fmspc] if origin.fmspc is not None else []
        return found + self.fetch(fmspcs=fmspcs, tees=(origin.tee,), sources=sources, root=origin.root, now=now)

    def fetch_chip(self, chip: ChipOrigin, now: datetime, *, sources: Sequence[Source] | None = None) -> list[Outcome]:
        """Fetch a chip's VCEK, unless it is stored (it never changes), and the CRL.

        A VLEK cannot be fetched: only its guest has it. Where it came with the report, its chain is fetched.
        """
        found: list[Outcome] = []
        held = self.store.find(*chip.certificate, now)
        if held is not None:
            found.append(Outcome(held.name, held))
        elif chip.chip_id is not None:
            request = VCEKRequest(chip.product, chip.chip_id, chip.tcb)
            found.append(self.fetch_amd(request, now, sources=sources))
        elif chip.vlek is not None:
            found.append(self._put_given_vlek(chip, chip.vlek, now, sources=sources))
        if all(outcome.error is None for outcome in found):
            found.append(self.fetch_amd(AMDCRLRequest(chip.product), now, sources=sources))
        return found

    def refresh(self, now: datetime) -> list[Outcome]:
        """Fetch anew every document past half of its validity. After a failure the stored document stays.

        Those about GPUs and of Google are not among them: `GPUDownloads` and `GoogleDownloads` know their services.
        """
        return [
            self._fetch_anew(held.verified, now)
            for held in self.store.held()
            if held.verified is not None
            and held.verified.document.kind not in IMMUTABLE
            and not held.verified.document.kind.startswith(("nvidia-", "google-"))
            and now >= self.store.due_at(held.verified)
        ]

    def _fetch_anew(self, verified: VerifiedDocument, now: datetime) -> Outcome:
        if verified.document.kind == "amd-crl":
            return self.fetch_amd(AMDCRLRequest(verified.subject.capitalize()), now)
        request = request_for(verified.document.kind, verified.subject, verified.document.chain)
        return self.fetch_one(request, now, root=verified.root)

    def _put_given_vlek(
        self, chip: ChipOrigin, leaf: bytes, now: datetime, *, sources: Sequence[Source] | None
    ) -> Outcome:
        """Keep the VLEK that came with a report. One for another product or TCB is refused before AMD is asked."""
        name = stored_name(*chip.certificate)
        try:
            found = parse_chip_certificate(parse_certificate(leaf, "VLEK"))
            if found.tcb != chip.tcb or found.product.partition("-")[0] != chip.product:
                raise Mismatch(
                    "the VLEK beside the report is for another product or TCB",
                    check="VLEK: is for this report",
                    expected=f"{chip.product}: {chip.tcb}",
                    seen=f"{found.product}: {found.tcb}",
                    remedy="take report and certificates from the guest anew",
                )
            return Outcome(name, self.put_vlek(leaf, chip.product, now, source=(sources or self.kds)[0]))
        except (EvidenceError, Unavailable) as error:
            return Outcome(name, None, error)

    def put_vlek(self, leaf: bytes, product: str, now: datetime, *, source: Source | None = None) -> VerifiedDocument:
        """Keep a VLEK certificate (DER) that a guest has from its host, with its chain from AMD."""
        asked = source or self.kds[0]
        backoff = SourceBackoff(self.store.directory)
        with self._amd_lock:
            wait = backoff.check(asked.url, None, now)
            if wait is not None:
                raise wait
            try:
                document = self.kds_of(asked).vlek(leaf, product)
            except FetchFailed as error:
                backoff.note(asked.url, f"vlek-chain-{product}", error, now)
                raise
        return self.store.put(document, now)

    def fmspcs(self, source: Source, now: datetime) -> tuple[bytes, ...]:
        """Every kind of platform that a service knows; raises FetchFailed, also where it asked to be left alone."""
        backoff = SourceBackoff(self.store.directory)
        wait = backoff.check(source.url, None, now)
        if wait is not None:
            raise wait
        try:
            return self.client_of(source, self.store.channel).fmspcs()
        except FetchFailed as error:
            backoff.note(source.url, "fmspcs", error, now)
            raise

    # --- one document

    def fetch_one(
        self,
        request: Request[PCSClient],
        now: datetime,
        *,
        root: Digest | None = None,
        sources: Sequence[Source] | None = None,
        respect_negative_cache: bool = False,
    ) -> Outcome:
        """Fetch one of Intel's documents, which must lead to `root`.

        A busy source is never asked. With `respect_negative_cache`, a source that lacked this document a few minutes
        ago is not asked either.
        """
        no_source = FetchFailed(
            "no source of collateral is known",
            check="sources of collateral",
            expected="at least one",
            seen="none",
            remedy="name one: adyton collateral fetch --pcs URL",
        )
        return self._first_answer(
            stored_name(request.kind, request.subject, self.store.channel),
            self.sources.known() if sources is None else sources,
            lambda source: request.send(self.client_of(source, self.store.channel)),
            now,
            root=root,
            respect_negative_cache=respect_negative_cache,
            no_source=no_source,
        )

    def fetch_amd(
        self, request: Request[KDSClient], now: datetime, *, sources: Sequence[Source] | None = None
    ) -> Outcome:
        """Fetch one of AMD's documents, unless the source is busy or lacked it a few minutes ago."""
        with self._amd_lock:
            return self._first_answer(
                stored_name(request.kind, request.subject, self.store.channel),
                self.kds if sources is None else sources,
                lambda source: request.send(self.kds_of(source)),
                now,
                root=None,
                respect_negative_cache=True,
                no_source=FetchFailed("no source of AMD certificates is known"),
            )

    def fetch_document(
        self, name: str, sources: Sequence[Source], ask: Callable[[Source], Document], now: datetime
    ) -> Outcome:
        """Fetch one document by its stored name, unless the source is busy or lacked it a few minutes ago."""
        return self._first_answer(
            name,
            sources,
            ask,
            now,
            root=None,
            respect_negative_cache=True,
            no_source=FetchFailed("no source of this document is known", check="sources of collateral"),
        )

    def _first_answer(
        self,
        name: str,
        sources: Sequence[Source],
        ask: Callable[[Source], Document],
        now: datetime,
        *,
        root: Digest | None,
        respect_negative_cache: bool,
        no_source: FetchFailed,
    ) -> Outcome:
        """Ask the sources in turn until one has a document that the store takes."""
        backoff = SourceBackoff(self.store.directory)
        last: Error = no_source
        for source in sources:
            wait = backoff.check(source.url, name if respect_negative_cache else None, now)
            if wait is not None:
                last = wait
                continue
            try:
                return Outcome(name, self.store.put(ask(source), now, root=root))
            except (EvidenceError, Unavailable) as error:
                last = error
                if isinstance(error, FetchFailed):
                    backoff.note(source.url, name, error, now)
        return Outcome(name, None, last)
