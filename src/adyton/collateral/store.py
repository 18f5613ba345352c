"""Collateral on disk: verified before it is written and again when it is read, refreshed early, never going back.

::

    DIR/
      sources.json                 where collateral comes from, in the order in which it is asked
      negative.json                what a source refused lately, and until when it is left alone
      <SHA-256 of a root>/         everything that leads to that root
        marks.json                 the highest number and newest issue date seen of each document
        <kind>-<subject>.json      one document as it was served, with its chain, its address and the time

A document is served while it is valid. From half of its validity on (spread by a tenth, so that many stores do not ask
at once) `refresh` fetches it anew; if that fails, the old one serves until it expires, and then evidence is refused.
Marks stop a proxy that answers with older collateral that is still valid. Several processes may share a store.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from adyton.atomic_file import write_file
from adyton.attest.certificates import split_pem
from adyton.attest.collateral import AMDCollateral
from adyton.attest.quote import CertificationType
from adyton.attest.roots import INTEL_SGX_ROOT, TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import KEY_VLEK, SNPReport, TCBVersion
from adyton.capped_read import read_capped, read_prefix
from adyton.collateral.documents import (
    MAX_BUNDLE_BYTES,
    Channel,
    Document,
    Kind,
    Origin,
    Verified,
    assemble,
    build_bundle,
    check_current,
    chip_subject,
    last_certificate,
    missing,
    origin_of_chain,
    parse_bundle,
    unverified_origin,
    verify_document,
)
from adyton.collateral.fetcher import HTTPFetcher
from adyton.collateral.kds import AMD_KDS, KDSClient
from adyton.collateral.pcs import INTEL_PCS, PCSClient, root_of
from adyton.errors import (
    Error,
    EvidenceError,
    FetchFailed,
    MalformedQuote,
    Stale,
    StorageFailed,
    Unavailable,
    UsageError,
)
from adyton.file_lock import file_lock
from adyton.rfc3339 import parse_timestamp
from adyton.untrusted import parse_json
from adyton.values import Digest

if TYPE_CHECKING:
    from adyton.attest.collateral import Collateral
    from adyton.attest.tdx import TDXQuote

NEGATIVE_S: Final = 300.0
BUSY_S: Final = 60.0
REFRESH_PAUSE: Final = timedelta(minutes=10)
EXPIRY_NOTICE: Final = timedelta(days=7)
MAX_DOCUMENT_BYTES: Final = 8 << 20
MAX_DOCUMENTS_PER_ROOT: Final = 4096
_STATE_BYTES: Final = 4 << 20
_MAX_REMEMBERED: Final = 1024
_LASTING: Final = frozenset({"pck-certificate", "amd-vcek", "amd-vlek"})
"""What never changes for its subject, and so is not fetched anew."""


_Identity: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A service to ask: its address, and the CA file that its TLS certificate needs, if any."""

    url: str
    ca_file: str | None = None

    def client(self, channel: Channel, api_key: str | None = None) -> PCSClient:
        """A client of it."""
        fetcher = HTTPFetcher(ca_file=Path(self.ca_file) if self.ca_file else None)
        return PCSClient(self.url, fetcher, channel, api_key)

    def kds_client(self) -> KDSClient:
        """A client of it, where it is AMD's key distribution service."""
        return KDSClient(self.url, HTTPFetcher(ca_file=Path(self.ca_file) if self.ca_file else None))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one document when it was fetched or imported."""

    name: str
    verified: Verified | None
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """One document of the store as it lies there now: verified, or refused with the reason."""

    root: Digest
    name: str
    verified: Verified | None
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class _Mark:
    number: int | None
    issued_at: datetime


@dataclass
class CollateralStore:
    """A folder of verified collateral; `for_quote` is what a key server asks.

    Without `online` nothing is fetched when evidence is judged: what is missing is refused with the command that
    fetches it. With it, what is missing or expired is fetched from the sources first, and what has passed half of its
    validity is fetched anew in the background.
    """

    directory: Path
    online: bool = False
    channel: Channel = "standard"
    client_of: Callable[[Source, Channel], PCSClient] = lambda source, channel: source.client(channel)
    in_background: Callable[[Callable[[], object]], object] = lambda work: Thread(target=work, daemon=True).start()
    kds: Sequence[Source] = (Source(AMD_KDS),)
    kds_of: Callable[[Source], KDSClient] = lambda source: source.kds_client()
    _loaded: dict[str, tuple[_Identity, Verified]] = field(default_factory=dict, repr=False)
    _put_together: dict[Origin, tuple[tuple[Verified, ...], Collateral]] = field(default_factory=dict, repr=False)
    _origins: dict[tuple[bool, int, bytes], Origin] = field(default_factory=dict, repr=False)
    _known_marks: dict[str, tuple[_Identity, dict[str, _Mark]]] = field(default_factory=dict, repr=False)
    _tried_at: datetime | None = field(default=None, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)
    _amd_lock: Lock = field(default_factory=Lock, repr=False)
    """One question at a time for AMD's service, which counts them."""

    # --- what evidence needs

    def for_quote(self, quote: SGXQuote | TDXQuote, now: datetime, *, fetch: bool = True) -> Collateral:
        """The collateral for one quote, each document verified and valid at `now`.

        Without `fetch` nobody waits for a source, also where the store is `online`.

        Raises FetchFailed where a document is missing, Stale where one has expired (and could not be fetched anew),
        and what `verify_document` raises where one on disk was altered. The same object is returned as long as no
        document changes, so that whoever caches verified collateral by it does.
        """
        origin = self.origin(quote)
        found: dict[tuple[Kind, str], Verified] = {}
        wanted = list(origin.names)
        while wanted:
            kind, subject = wanted.pop(0)
            try:
                verified = self.get(origin.root, kind, subject, now)
            except (Unavailable, Stale) as error:
                if not (self.online and fetch):
                    raise
                verified = self._fetch_missing(origin, kind, subject, now, error, quote)
            found[kind, subject] = verified
            if self.online and verified.document.kind not in _LASTING and now >= self.due_at(verified):
                self._refresh_in_background(now)
            if kind == "pck-certificate":
                chain = verified.document.body.decode("ascii", "replace") + verified.document.chain
                origin = origin_of_chain(chain, origin.tee, origin.request)
                wanted = [name for name in origin.names if name not in found]
        return self._assembled(found, origin)

    def origin(self, quote: SGXQuote | TDXQuote) -> Origin:
        """Where a quote says it comes from; remembered, since reading the certificates is most of the work."""
        signature = quote.signature
        digest = hashlib.sha256(signature.certification_data).digest()
        key = (isinstance(quote, SGXQuote), int(signature.certification_type), digest)
        with self._lock:
            known = self._origins.get(key)
        if known is not None:
            return known
        origin = unverified_origin(quote)
        if origin.request is not None:
            return unverified_origin(quote, root=self._root_of_request(origin.request))
        with self._lock:
            if len(self._origins) >= _MAX_REMEMBERED:
                self._origins.clear()
            self._origins[key] = origin
        return origin

    def _refresh_in_background(self, now: datetime) -> None:
        """Fetch anew what is due while evidence is served with what is here; at most every ten minutes."""
        with self._lock:
            if self._tried_at is not None and now - self._tried_at < REFRESH_PAUSE:
                return
            self._tried_at = now
        self.in_background(lambda: self.refresh(now))

    def _root_of_request(self, request: str) -> Digest:
        """Under which root the PCK certificate lies that answers this request; Intel's where it lies nowhere."""
        for path in sorted(self.directory.glob(f"{'?' * 64}/pck-certificate-{request}.json")):
            return Digest.from_hex(path.parent.name)
        return INTEL_SGX_ROOT

    def _assembled(self, found: Mapping[tuple[Kind, str], Verified], origin: Origin) -> Collateral:
        parts = tuple(found[key] for key in sorted(found))
        with self._lock:
            known = self._put_together.get(origin)
            if known is not None and len(known[0]) == len(parts) and all(map(operator.is_, known[0], parts)):
                return known[1]
        made = assemble(found, origin)
        with self._lock:
            if len(self._put_together) >= _MAX_REMEMBERED:
                self._put_together.clear()
            self._put_together[origin] = (parts, made)
        return made

    def get(self, root: Digest, kind: Kind, subject: str, now: datetime) -> Verified:
        """One document, verified and valid at `now`; raises FetchFailed where there is none."""
        name = _name(kind, subject, self.channel)
        verified = self._load(f"{self.directory}/{root.hex()}/{name}.json")
        if verified is None:
            raise missing(Origin(root, "sgx", None, None, None), kind, subject)
        _check_not_older(verified, self._marks(root).get(name))
        check_current(verified, now)
        return verified

    def for_report(
        self, report: SNPReport, now: datetime, *, roots: TrustRoots | None = None, fetch: bool = True
    ) -> AMDCollateral:
        """The certificates and CRL for one SEV-SNP report, under the pinned ARK of its product.

        The product comes from the report, or (in version 2, which does not say) from what is here. Raises FetchFailed
        where something is missing and Stale where it has expired, as `for_quote` does.
        """
        pinned = (roots or TrustRoots()).amd
        vlek = report.signing_key == KEY_VLEK
        last: Error | None = None
        for product in _products(report):
            try:
                return self._for_product(report, product, pinned[product], now, vlek=vlek)
            except (Unavailable, Stale, KeyError) as error:
                last = error if isinstance(error, Error) else last
                if not (self.online and fetch):
                    continue
                outcomes = self._fetch_chip(report, product, now, None)
                if all(outcome.error is None for outcome in outcomes):
                    return self._for_product(report, product, pinned[product], now, vlek=vlek)
                last = next(outcome.error for outcome in outcomes if outcome.error is not None)
        raise last or FetchFailed("the report names no product that AMD's roots are known for", check="AMD product")

    def _for_product(self, report: SNPReport, product: str, ark: Digest, now: datetime, *, vlek: bool) -> AMDCollateral:
        tcb = TCBVersion.parse(report.field("reported_tcb"), turin=product == "Turin")
        subject = chip_subject(product, tcb, None if vlek else report.chip_id)
        leaf = self.get(ark, "amd-vlek" if vlek else "amd-vcek", subject, now).document
        crl = self.get(ark, "amd-crl", product.lower(), now).document
        ask, root = split_pem(leaf.chain, "AMD chain")
        return AMDCollateral(leaf=leaf.body, ask=ask, ark=root, crl=crl.body)

    # --- what comes in

    def put(self, document: Document, now: datetime, *, root: Digest | None = None) -> Verified:
        """Verify a document, refuse what is expired, goes back, or leads to another root than `root`; then keep it."""
        verified = verify_document(document)
        if root is not None and verified.root != root:
            raise FetchFailed(
                f"{document.url or document.kind} leads to another root: {verified.root}",
                check="root of the collateral",
                expected=root,
                seen=verified.root,
                remedy="ask the service that belongs to this root",
            )
        check_current(verified, now)
        with self._locked(verified.root) as folder:
            marks = self._marks(verified.root)
            mark = marks.get(verified.name)
            _check_not_older(verified, mark)
            if mark is None and len(marks) >= MAX_DOCUMENTS_PER_ROOT:
                raise StorageFailed(f"{folder} holds {len(marks)} documents already", check="size of the store")
            _write_json(folder / f"{verified.name}.json", document.to_dict())
            marks[verified.name] = _Mark(verified.number, verified.issued_at)
            rows = {name: {"number": kept.number, "issued_at": _stamp(kept.issued_at)} for name, kept in marks.items()}
            _write_json(folder / "marks.json", rows)
        return verified

    def import_bundle(self, raw: bytes, now: datetime, *, root: Digest | None = None) -> list[Outcome]:
        """Take over the documents of a bundle, each judged by itself."""
        outcomes: list[Outcome] = []
        for document in parse_bundle(raw):
            try:
                verified = self.put(document, now, root=root)
                outcomes.append(Outcome(verified.name, verified))
            except (EvidenceError, Unavailable) as error:
                outcomes.append(Outcome(document.kind, None, error))
        return outcomes

    def export_bundle(self, root: Digest | None = None) -> bytes:
        """A bundle of every document that still verifies, of one root or of all."""
        return build_bundle(
            held.verified.document
            for held in self.held()
            if held.verified is not None and (root is None or held.root == root)
        )

    # --- fetching

    def fetch(
        self,
        *,
        fmspcs: Iterable[bytes] = (),
        tees: Sequence[str] = ("sgx", "tdx"),
        sources: Sequence[Source] | None = None,
        root: Digest | None = None,
        now: datetime,
    ) -> list[Outcome]:
        """Fetch everything for these FMSPCs: both PCK CRLs, the root's CRL, QE identities, TCB info.

        Each document comes from the first source that has it. What fails does not stop the others; a source that
        asked to be left alone is.
        """
        found: list[Outcome] = []
        root_pem: str | None = None
        for ca in ("platform", "processor"):
            outcome = self._fetch_one(f"pck-crl-{ca}", operator.methodcaller("pck_crl", ca), sources, root, now)
            found.append(outcome)
            if outcome.verified is not None and root_pem is None:
                root_pem = root_of(outcome.verified.document)
                root = outcome.verified.root if root is None else root
        if root_pem is not None:
            found.append(
                self._fetch_one("root-crl-root", operator.methodcaller("root_crl", root_pem), sources, root, now)
            )
        for tee in map(_tee, tees):
            name = f"qe-identity-{tee}"
            found.append(self._fetch_one(name, operator.methodcaller("qe_identity", tee), sources, root, now))
            for fmspc in fmspcs:
                name = f"tcb-info-{tee}-{fmspc.hex()}"
                found.append(self._fetch_one(name, operator.methodcaller("tcb_info", tee, fmspc), sources, root, now))
        return found

    def fetch_for(
        self, quote: SGXQuote | TDXQuote | SNPReport, now: datetime, *, sources: Sequence[Source] | None = None
    ) -> list[Outcome]:
        """Fetch everything that judging this evidence needs, also what is here already.

        For a SEV-SNP report the sources are AMD's (`kds`), unless others are given.
        """
        if isinstance(quote, SNPReport):
            found: list[Outcome] = []
            for product in _products(quote):
                found = self._fetch_chip(quote, product, now, sources)
                if all(outcome.error is None for outcome in found):
                    break
            return found
        origin = unverified_origin(quote)
        found = []
        if origin.request is not None:
            outcome = self._fetch_certificate(origin, quote, sources, now)
            found.append(outcome)
            if outcome.verified is None:
                return found
            document = outcome.verified.document
            chain = document.body.decode("ascii", "replace") + document.chain
            origin = origin_of_chain(chain, origin.tee, origin.request)
        fmspcs = [origin.fmspc] if origin.fmspc is not None else []
        found += self.fetch(fmspcs=fmspcs, tees=(origin.tee,), sources=sources, root=origin.root, now=now)
        return found

    def refresh(self, now: datetime, *, sources: Sequence[Source] | None = None) -> list[Outcome]:
        """Fetch anew what has passed half of its validity; what fails stays as it is."""
        found: list[Outcome] = []
        for held in self.held():
            verified = held.verified
            if verified is None or verified.document.kind in _LASTING or now < self.due_at(verified):
                continue
            found.append(self._fetch_like(verified, sources, now))
        return found

    def due_at(self, verified: Verified) -> datetime:
        """When a document is to be fetched anew: after half of its validity, give or take a tenth of it."""
        seed = hashlib.sha256(f"{self.directory}|{verified.root}|{verified.name}".encode()).digest()
        share = 0.45 + 0.10 * (seed[0] / 255)
        return verified.issued_at + share * (verified.expires_at - verified.issued_at)

    def _fetch_chip(
        self, report: SNPReport, product: str, now: datetime, sources: Sequence[Source] | None
    ) -> list[Outcome]:
        """Fetch a chip's VCEK, which never changes, only where it is not here; and the CRL."""
        tcb = TCBVersion.parse(report.field("reported_tcb"), turin=product == "Turin")
        found: list[Outcome] = []
        if report.signing_key != KEY_VLEK:
            subject = chip_subject(product, tcb, report.chip_id)
            held = self._held_anywhere(f"amd-vcek-{subject}", now)
            ask = operator.methodcaller("vcek", product, report.chip_id, tcb)
            found.append(held or self._fetch_amd(f"amd-vcek-{subject}", ask, sources, now))
        if all(outcome.error is None for outcome in found):
            found.append(
                self._fetch_amd(f"amd-crl-{product.lower()}", operator.methodcaller("crl", product), sources, now)
            )
        return found

    def _held_anywhere(self, name: str, now: datetime) -> Outcome | None:
        for path in sorted(self.directory.glob(f"{'?' * 64}/{name}.json")):
            try:
                verified = self._load(str(path))
            except StorageFailed:
                continue
            if verified is not None and verified.issued_at <= now <= verified.expires_at:
                return Outcome(name, verified)
        return None

    def put_vlek(self, leaf: bytes, product: str, now: datetime, *, source: Source | None = None) -> Verified:
        """Keep a VLEK certificate (DER) that a guest has from its host, with its chain from AMD."""
        client = self.kds_of(source or self.kds[0])
        return self.put(client.vlek(leaf, product), now)

    def _fetch_amd(
        self, name: str, ask: Callable[[KDSClient], Document], sources: Sequence[Source] | None, now: datetime
    ) -> Outcome:
        last: Error | None = None
        with self._amd_lock:
            for source in self.kds if sources is None else sources:
                wait = self._left_alone(source, name, now)
                if wait is not None:
                    last = wait
                    continue
                try:
                    return Outcome(name, self.put(ask(self.kds_of(source)), now))
                except (EvidenceError, Unavailable) as error:
                    last = error
                    if isinstance(error, FetchFailed):
                        self._note_refusal(source, name, error, now)
        return Outcome(name, None, last or FetchFailed("no source of AMD certificates is known"))

    def _fetch_like(self, verified: Verified, sources: Sequence[Source] | None, now: datetime) -> Outcome:
        if verified.document.kind == "amd-crl":
            return self._fetch_amd(
                verified.name, operator.methodcaller("crl", verified.subject.capitalize()), None, now
            )
        ask = _asking(verified.document.kind, verified.subject, verified.document.chain)
        return self._fetch_one(verified.name, ask, sources, verified.root, now)

    def _fetch_certificate(
        self, origin: Origin, quote: SGXQuote | TDXQuote, sources: Sequence[Source] | None, now: datetime
    ) -> Outcome:
        kind, data = quote.signature.certification_type, quote.signature.certification_data
        if kind == CertificationType.PCK_LEAF:
            ask = operator.methodcaller("pck_issuers", data, origin.ca)
        else:
            ask = operator.methodcaller("pck_certificate", kind, data, quote.header.user_data[:16])
        return self._fetch_one(f"pck-certificate-{origin.request}", ask, sources, None, now)

    def _fetch_missing(
        self, origin: Origin, kind: Kind, subject: str, now: datetime, why: Error, quote: SGXQuote | TDXQuote
    ) -> Verified:
        """Fetch one document while evidence waits for it; raises why it cannot be had."""

        def fetch(kind: Kind, subject: str, chain: str = "") -> Verified:
            name = _name(kind, subject, self.channel)
            outcome = self._fetch_one(name, _asking(kind, subject, chain), None, origin.root, now, patient=True)
            if outcome.verified is None:
                raise outcome.error or why
            return outcome.verified

        if kind == "root-crl":
            return fetch(kind, subject, root_of(fetch("pck-crl", origin.ca or "platform").document))
        if kind != "pck-certificate":
            return fetch(kind, subject)
        outcome = self._fetch_certificate(origin, quote, None, now)
        if outcome.verified is None:
            raise outcome.error or why
        return outcome.verified

    def _fetch_one(
        self,
        name: str,
        ask: Callable[[PCSClient], Document],
        sources: Sequence[Source] | None,
        root: Digest | None,
        now: datetime,
        *,
        patient: bool = False,
    ) -> Outcome:
        """Ask the sources in turn; `patient` also leaves alone what a source did not know lately."""
        last: Error | None = None
        for source in self.sources() if sources is None else sources:
            wait = self._left_alone(source, name if patient else None, now)
            if wait is not None:
                last = wait
                continue
            try:
                return Outcome(name, self.put(ask(self.client_of(source, self.channel)), now, root=root))
            except (EvidenceError, Unavailable) as error:
                last = error
                if isinstance(error, FetchFailed):
                    self._note_refusal(source, name, error, now)
        if last is None:
            last = FetchFailed(
                "no source of collateral is known",
                check="sources of collateral",
                expected="at least one",
                seen="none",
                remedy="name one: adyton collateral fetch --pcs URL",
            )
        return Outcome(name, None, last)

    # --- sources, and what they refused

    def sources(self) -> tuple[Source, ...]:
        """The sources that were named, in their order; Intel's service where none was."""
        rows = _read_json(self.directory / "sources.json", [])
        found = [
            Source(str(row["url"]), row.get("ca_file"))
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and "url" in row
        ]
        return tuple(found) or (Source(INTEL_PCS),)

    def remember_sources(self, sources: Iterable[Source]) -> None:
        """Put these sources first in the list of known ones."""
        with self._locked(None):
            known = [source for source in self.sources() if (self.directory / "sources.json").exists()]
            merged = list(dict.fromkeys([*sources, *known]))[:16]
            _write_json(
                self.directory / "sources.json", [{"url": source.url, "ca_file": source.ca_file} for source in merged]
            )

    def _left_alone(self, source: Source, name: str | None, now: datetime) -> FetchFailed | None:
        rows = _read_json(self.directory / "negative.json", {})
        for key in (source.url, f"{source.url} {name}" if name else None):
            row = rows.get(key) if isinstance(rows, dict) and key else None
            if not isinstance(row, dict):
                continue
            until = _moment(row.get("until"))
            if until is not None and now < until:
                error = FetchFailed(
                    f"{urlsplit(source.url).netloc} is left alone until {until:%Y-%m-%d %H:%M:%S} UTC: "
                    f"{str(row.get('why'))[:300]}",
                    check="source asked too often, or without what is wanted",
                    expected=f"not before {_stamp(until)}",
                    seen=_stamp(now),
                    remedy="wait, or name another source",
                )
                error.retry_after_s = (until - now).total_seconds()
                return error
        return None

    def _note_refusal(self, source: Source, name: str, error: FetchFailed, now: datetime) -> None:
        """Remember a 404 for minutes, and that a source is busy for as long as it says."""
        if error.status in (404, 410):
            key, seconds = f"{source.url} {name}", NEGATIVE_S
        elif error.status in (429, 503):
            key, seconds = source.url, error.retry_after_s if error.retry_after_s is not None else BUSY_S
        else:
            return
        with self._locked(None):
            rows = _read_json(self.directory / "negative.json", {})
            kept = {
                old: row
                for old, row in (rows.items() if isinstance(rows, dict) else ())
                if isinstance(row, dict) and (_moment(row.get("until")) or now) > now
            }
            kept[key] = {"until": _stamp(now + timedelta(seconds=seconds)), "why": error.message}
            _write_json(self.directory / "negative.json", dict(list(kept.items())[-256:]))

    # --- the files

    def held(self) -> Iterator[Held]:
        """Every document that lies here, verified anew; what does not verify comes with the reason."""
        if not self.directory.is_dir():
            return
        for folder in sorted(self.directory.iterdir()):
            if not folder.is_dir() or len(folder.name) != 64:
                continue
            root = Digest.from_hex(folder.name)
            marks = self._marks(root)
            for path in sorted(folder.glob("*-*.json")):
                try:
                    verified = self._load(str(path))
                    if verified is None:
                        continue
                    _check_not_older(verified, marks.get(path.stem))
                    yield Held(root, path.stem, verified)
                except Error as error:
                    yield Held(root, path.stem, None, error)

    def _load(self, path: str) -> Verified | None:
        """The document in this file, verified when it was first read and again when the file has changed."""
        identity = _identity(path)
        if identity is None:
            return None
        with self._lock:
            known = self._loaded.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        try:
            verified = verify_document(Document.from_dict(_read_json(Path(path), None, MAX_DOCUMENT_BYTES)))
        except EvidenceError as error:
            raise StorageFailed(
                f"{path} was altered or damaged: {error.message}",
                check="stored collateral verifies",
                expected=error.expected,
                seen=error.seen,
                remedy=f"remove {path} and fetch it again: adyton collateral fetch",
            ) from error
        if f"{self.directory}/{verified.root.hex()}/{verified.name}.json" != path:
            raise StorageFailed(
                f"{path} holds another document than its name says",
                check="stored collateral",
                expected=Path(path).stem,
                seen=f"{verified.name} under the root {verified.root}",
                remedy=f"remove {path} and fetch it again: adyton collateral fetch",
            )
        with self._lock:
            if len(self._loaded) >= MAX_DOCUMENTS_PER_ROOT:
                self._loaded.clear()
            self._loaded[path] = (identity, verified)
        return verified

    def _marks(self, root: Digest) -> dict[str, _Mark]:
        path = f"{self.directory}/{root.hex()}/marks.json"
        identity = _identity(path)
        if identity is None:
            return {}
        with self._lock:
            known = self._known_marks.get(path)
        if known is not None and known[0] == identity:
            return dict(known[1])
        marks = _parse_marks(path)
        with self._lock:
            if len(self._known_marks) >= _MAX_REMEMBERED:
                self._known_marks.clear()
            self._known_marks[path] = (identity, marks)
        return dict(marks)

    @contextmanager
    def _locked(self, root: Digest | None) -> Iterator[Path]:
        """The folder of this root (or of all), made if need be, and locked against other processes."""
        folder = self.directory if root is None else self.directory / root.hex()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailed(f"cannot use {folder}: {error.strerror}") from error
        with file_lock(folder):
            yield folder


def _identity(path: str) -> _Identity | None:
    """What tells a file from one that was put in its place, or None where there is none."""
    try:
        state = os.stat(path)  # noqa: PTH116 - asked for with every quote
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
    return state.st_ino, state.st_mtime_ns, state.st_size


def _parse_marks(path: str) -> dict[str, _Mark]:
    rows = _read_json(Path(path), {})
    found: dict[str, _Mark] = {}
    for name, row in rows.items() if isinstance(rows, dict) else ():
        issued_at = _moment(row.get("issued_at")) if isinstance(row, dict) else None
        number = row.get("number") if isinstance(row, dict) else None
        if issued_at is None or not (number is None or isinstance(number, int)):
            raise StorageFailed(
                f"{path} does not parse",
                check="marks of the collateral store",
                remedy="remove the folder and fetch the collateral again",
            )
        found[name] = _Mark(number, issued_at)
    return found


def _products(report: SNPReport) -> tuple[str, ...]:
    """The product that the report names; in version 2, which names none, those that there were then."""
    return (report.product,) if report.product is not None else ("Milan", "Genoa")


def _name(kind: Kind, subject: str, channel: Channel) -> str:
    """As `Verified.name`; only the signed JSON documents differ between channels."""
    suffix = f".{channel}" if channel != "standard" and kind in ("tcb-info", "qe-identity") else ""
    return f"{kind}-{subject}{suffix}"


def _tee(text: str) -> str:
    if text not in ("sgx", "tdx"):
        raise UsageError(f"no collateral for {text!r} here", expected="sgx or tdx", seen=text)
    return text


def _asking(kind: Kind, subject: str, chain: str) -> Callable[[PCSClient], Document]:
    """What to call on a client for the document of this kind about this subject."""
    if kind == "tcb-info":
        tee, _, fmspc = subject.partition("-")
        return operator.methodcaller("tcb_info", _tee(tee), bytes.fromhex(fmspc))
    if kind == "qe-identity":
        return operator.methodcaller("qe_identity", _tee(subject))
    if kind == "pck-crl":
        return operator.methodcaller("pck_crl", subject)
    if kind == "root-crl":
        return operator.methodcaller("root_crl", last_certificate(chain))
    raise FetchFailed(f"{kind} is not fetched without the quote that needs it")


def _check_not_older(verified: Verified, mark: _Mark | None) -> None:
    """Refuse a document that is older than one that was seen before; raises Stale."""
    if mark is None:
        return
    back = mark.number is not None and (verified.number is None or verified.number < mark.number)
    if back or verified.issued_at < mark.issued_at:
        raise Stale(
            f"{verified.name} is older than one that was seen before",
            check="collateral does not go back",
            expected=f"number {mark.number}, issued {_stamp(mark.issued_at)}, or later",
            seen=f"number {verified.number}, issued {_stamp(verified.issued_at)}",
            remedy="fetch it from another source: this one, or something on the way, replays old collateral",
        )


def _stamp(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _moment(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return parse_timestamp(text)
    except ValueError:
        return None


def _read_json(path: Path, default: Any, limit: int = _STATE_BYTES) -> Any:
    try:
        raw = read_prefix(path, limit + 1)
    except FileNotFoundError:
        return default
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
    try:
        return parse_json(raw, what=f"file {path}", refuse=StorageFailed, limit_bytes=limit)
    except StorageFailed as error:
        error.remedy = "remove it and fetch the collateral again"
        raise


def _write_json(path: Path, data: object) -> None:
    write_file(path, json.dumps(data, indent=1).encode(), 0o600)


def read_bundle_files(paths: Iterable[Path]) -> list[bytes]:
    """The raw bundles in these files and folders (every *.json in a folder)."""
    found: list[bytes] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{path} holds no *.json", check="bundle", expected="a bundle or collateral file")
        found += [read_capped(file, MAX_BUNDLE_BYTES, "collateral", too_large=MalformedQuote) for file in files]
    return found
