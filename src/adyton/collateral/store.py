"""Documents on disk. None is replaced by an older one.

::

    DIR/
      sources.json                 where collateral comes from, in the order in which it is asked (sources.py)
      rims.json                    SHA-256 of each RIM, and when it was taken while its signers were valid
      negative.json                what a source refused lately, and until when it is not asked again (backoff.py)
      <SHA-256 of a root>/         everything that leads to that root
        marks.json                 the highest number and newest issue date seen of each document
        <kind>-<subject>.json      one document as it was served, with its chain, its address and the time

A document is verified before it is written and again when it is read. It is served while it is valid, and it is due for
a new fetch after half of its validity. Marks stop a proxy that serves older collateral that is still valid. Several
processes may share a store. Nothing is fetched here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from adyton.attest.roots import INTEL_SGX_ROOT
from adyton.collateral.bundle import build_bundle, parse_bundle
from adyton.collateral.documents import (
    Channel,
    Document,
    Kind,
    VerifiedDocument,
    check_current,
    stored_name,
    verify_document,
)
from adyton.collateral.folder import FileIdentity, identity_of, locked, read_json, write_json
from adyton.collateral.needs import missing
from adyton.collateral.stored_time import parse_stamp
from adyton.dates import timestamp
from adyton.errors import Error, EvidenceError, FetchFailed, Stale, StorageFailed, Unavailable
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPIRY_NOTICE: Final = timedelta(days=7)
_NOTICE_SHARE: Final = 4
"""A warning comes in the last quarter of a short validity: OCSP answers live for days."""
MAX_DOCUMENT_BYTES: Final = 8 << 20
MAX_DOCUMENTS_PER_ROOT: Final = 4096
MAX_ROOTS_IN_MEMORY: Final = 1024

IMMUTABLE: Final = frozenset({"pck-certificate", "amd-vcek", "amd-vlek"})
"""Kinds that never change for their subject. They are not fetched anew."""

EARLIEST_SHARE: Final = 0.45
LATEST_SHARE: Final = 0.55
"""A document becomes due between these shares of its validity.

The exact share depends on the store and the document.
"""


def expires_soon(verified: VerifiedDocument, now: datetime) -> bool:
    """Whether a document ends within EXPIRY_NOTICE and is in the last quarter of its validity, or has ended."""
    notice = min(EXPIRY_NOTICE, (verified.expires_at - verified.issued_at) / _NOTICE_SHARE)
    return verified.expires_at - now < notice


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the fetch or import of one document."""

    name: str
    verified: VerifiedDocument | None
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """One document of the store: verified, or refused with the reason."""

    root: Digest
    name: str
    verified: VerifiedDocument | None
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest version of one document that was ever seen."""

    number: int | None
    issued_at: datetime


@dataclass
class CollateralStore:
    """A folder of verified documents. Thread-safe, and shared with other processes."""

    directory: Path
    channel: Channel = "standard"
    _loaded: dict[str, tuple[FileIdentity, VerifiedDocument]] = field(default_factory=dict, repr=False)
    _known_marks: dict[str, tuple[FileIdentity, dict[str, Mark]]] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    # --- what is here

    def get(self, root: Digest, kind: Kind, subject: str, now: datetime) -> VerifiedDocument:
        """One document, verified and valid at `now`.

        Raises FetchFailed where there is none, Stale where it is not valid at `now` or is older than its mark, and
        StorageFailed where it was altered or cannot be read.
        """
        name = stored_name(kind, subject, self.channel)
        verified = self._load(f"{self.directory}/{root.hex()}/{name}.json")
        if verified is None:
            raise missing(root, kind, subject)
        check_not_older(verified, self._marks(root).get(name))
        check_current(verified, now)
        return verified

    def find(self, kind: Kind, subject: str, now: datetime) -> VerifiedDocument | None:
        """A document that is valid at `now`, under any root. None where there is none."""
        for path in sorted(self.directory.glob(f"{'?' * 64}/{stored_name(kind, subject, self.channel)}.json")):
            try:
                verified = self._load(str(path))
            except StorageFailed:
                continue
            if verified is not None and verified.issued_at <= now <= verified.expires_at:
                return verified
        return None

    def root_of_request(self, request: str) -> Digest:
        """The root of the stored PCK certificate for this request. Intel's root where there is none."""
        for path in sorted(self.directory.glob(f"{'?' * 64}/pck-certificate-{request}.json")):
            return Digest.from_hex(path.parent.name)
        return INTEL_SGX_ROOT

    def held(self) -> Iterator[Held]:
        """Every stored document, verified anew. One that does not verify comes with the reason."""
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
                    check_not_older(verified, marks.get(path.stem))
                    yield Held(root, path.stem, verified)
                except Error as error:
                    yield Held(root, path.stem, None, error)

    def due_at(self, verified: VerifiedDocument) -> datetime:
        """When a document is due for a new fetch: after 45 to 55 percent of its validity.

        The exact time depends on the store and the document, so that many stores do not ask at once. Documents of
        IMMUTABLE kinds are never fetched anew.
        """
        seed = hashlib.sha256(f"{self.directory}|{verified.root}|{verified.name}".encode()).digest()
        share = EARLIEST_SHARE + (LATEST_SHARE - EARLIEST_SHARE) * (seed[0] / 255)
        return verified.issued_at + share * (verified.expires_at - verified.issued_at)

    # --- what comes in

    def put(self, document: Document, now: datetime, *, root: Digest | None = None) -> VerifiedDocument:
        """Verify a document and keep it.

        Raises the errors of `verify_document`, FetchFailed where it leads to another root than `root`, Stale where it
        is not valid at `now` or is older than its mark, and StorageFailed.
        """
        verified = verify_document(document)
        if root is not None and verified.root != root:
            raise FetchFailed(
                f"{document.url or document.kind} leads to another root: {verified.root}",
                check="root of the collateral",
                expected=root,
                seen=verified.root,
                remedy="ask the service that belongs to this root",
            )
        folder = self.directory / verified.root.hex()
        if document.kind != "nvidia-rim" or self._would_replace(verified, f"{folder}/{verified.name}.json"):
            check_current(
                verified, now
            )  # of a RIM alone it is judged with the evidence whether its signers still count
        with locked(folder):
            marks = self._marks(verified.root)
            mark = marks.get(verified.name)
            check_not_older(verified, mark)
            if mark is None and len(marks) >= MAX_DOCUMENTS_PER_ROOT:
                raise StorageFailed(f"{folder} holds {len(marks)} documents already", check="size of the store")
            write_json(folder / f"{verified.name}.json", document.to_dict())
            marks[verified.name] = Mark(verified.number, verified.issued_at)
            rows = {
                name: {"number": kept.number, "issued_at": timestamp(kept.issued_at)} for name, kept in marks.items()
            }
            write_json(folder / "marks.json", rows)
        if document.kind == "nvidia-rim" and verified.issued_at <= now <= verified.expires_at:
            self._record_rim(document, now)
        return verified

    def _would_replace(self, verified: VerifiedDocument, path: str) -> bool:
        """Whether another document lies in this place."""
        held = self._load(path)
        return held is not None and held.document.body != verified.document.body

    def rims_recorded(self) -> dict[str, datetime]:
        """For each RIM that was taken while its signers were valid: its SHA-256 (hex), and when.

        Raises StorageFailed where the record does not parse.
        """
        found: dict[str, datetime] = {}
        rows = read_json(self.directory / "rims.json", {})
        for digest, text in rows.items() if isinstance(rows, dict) else [("", "")]:
            moment = parse_stamp(text)
            if len(digest) != 64 or moment is None:
                raise StorageFailed(
                    f"{self.directory / 'rims.json'} does not parse",
                    check="record of RIMs",
                    remedy="remove it and fetch the RIMs again: adyton collateral fetch --gpu",
                )
            found[digest] = moment
        return found

    def _record_rim(self, document: Document, now: datetime) -> None:
        """Keep the first time at which this RIM was taken. Only this store's own clock counts, and no bundle's word."""
        digest = hashlib.sha256(document.body).hexdigest()
        with locked(self.directory):
            known = self.rims_recorded()
            if digest not in known and len(known) < MAX_DOCUMENTS_PER_ROOT:
                rows = {name: timestamp(moment) for name, moment in known.items()} | {digest: timestamp(now)}
                write_json(self.directory / "rims.json", rows)

    def of_kind(self, kind: Kind) -> list[VerifiedDocument]:
        """Every document of this kind that verifies, under any root and of any age."""
        found: list[VerifiedDocument] = []
        for path in sorted(self.directory.glob(f"{'?' * 64}/{kind}-*.json"))[:MAX_DOCUMENTS_PER_ROOT]:
            verified = self._load(str(path))
            if verified is not None:
                check_not_older(verified, self._marks(verified.root).get(verified.name))
                found.append(verified)
        return found

    def import_bundle(self, raw: bytes, now: datetime, *, root: Digest | None = None) -> list[Outcome]:
        """Import the documents of a bundle, each judged by itself."""
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

    # --- the files

    def _load(self, path: str) -> VerifiedDocument | None:
        """The document in this file. It is verified on the first read and after each change of the file."""
        identity = identity_of(path)
        if identity is None:
            return None
        with self._lock:
            known = self._loaded.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        try:
            document = read_json(Path(path), None, limit_bytes=MAX_DOCUMENT_BYTES)
            verified = verify_document(Document.from_dict(document))
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

    def _marks(self, root: Digest) -> dict[str, Mark]:
        path = f"{self.directory}/{root.hex()}/marks.json"
        identity = identity_of(path)
        if identity is None:
            return {}
        with self._lock:
            known = self._known_marks.get(path)
        if known is not None and known[0] == identity:
            return dict(known[1])
        marks = _load_marks(Path(path))
        with self._lock:
            if len(self._known_marks) >= MAX_ROOTS_IN_MEMORY:
                self._known_marks.clear()
            self._known_marks[path] = (identity, marks)
        return dict(marks)


def _load_marks(path: Path) -> dict[str, Mark]:
    rows = read_json(path, {})
    found: dict[str, Mark] = {}
    for name, row in rows.items() if isinstance(rows, dict) else ():
        issued_at = parse_stamp(row.get("issued_at")) if isinstance(row, dict) else None
        number = row.get("number") if isinstance(row, dict) else None
        if issued_at is None or not (number is None or isinstance(number, int)):
            raise StorageFailed(
                f"{path} does not parse",
                check="marks of the collateral store",
                remedy="remove the folder and fetch the collateral again",
            )
        found[name] = Mark(number, issued_at)
    return found


def check_not_older(verified: VerifiedDocument, mark: Mark | None) -> None:
    """Refuse a document that is older than one that was seen before. Raises Stale."""
    if mark is None:
        return
    back = mark.number is not None and (verified.number is None or verified.number < mark.number)
    if back or verified.issued_at < mark.issued_at:
        raise Stale(
            f"{verified.name} is older than one that was seen before",
            check="collateral does not go back",
            expected=f"number {mark.number}, issued {timestamp(mark.issued_at)}, or later",
            seen=f"number {verified.number}, issued {timestamp(verified.issued_at)}",
            remedy="fetch it from another source: this one, or something on the way, replays old collateral",
        )
