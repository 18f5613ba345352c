"""Collateral: fetch, show, export and import."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from adyton.atomic_file import write_file
from adyton.attest.amd import parse_chip_certificate
from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.evidence import hardware_part, parse_evidence
from adyton.attest.forms import MAX_FORM_BYTES, read_form
from adyton.attest.layout import MAX_CHAIN_BYTES, MAX_JSON_BYTES
from adyton.attest.roots import AMD_ARKS, GOOGLE_FIRMWARE_ROOT, INTEL_SGX_ROOT, NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote
from adyton.capped_read import read_capped
from adyton.collateral.bundle import parse_bundle, read_bundle_files
from adyton.collateral.documents import verify_document
from adyton.collateral.downloads import Downloads
from adyton.collateral.google import GOOGLE_ROOT_URL, GoogleDownloads
from adyton.collateral.sources import Source
from adyton.collateral.store import CollateralStore, Held, Outcome, expires_soon
from adyton.errors import Error, EvidenceError, MalformedQuote, Unavailable, UsageError
from adyton.keystore.home import default_home
from adyton.values import Digest
from adyton.workflow.progress import unheard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adyton.attest.evidence import HardwareEvidence
    from adyton.workflow.progress import Notice

MAX_KINDS: Final = 16
"""The limit of platform kinds up to which everything from a service is fetched."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The result for each fetched or imported document."""

    outcomes: tuple[Outcome, ...]

    @property
    def errors(self) -> tuple[Error, ...]:
        """The errors of documents that were refused or not fetched."""
        return tuple(outcome.error for outcome in self.outcomes if outcome.error is not None)

    @property
    def roots(self) -> frozenset[Digest]:
        """The roots of the verified documents."""
        return frozenset(outcome.verified.root for outcome in self.outcomes if outcome.verified is not None)

    @property
    def strange_roots(self) -> tuple[Digest, ...]:
        """Those roots that are not Intel's, AMD's, NVIDIA's or Google's."""
        vendors = {INTEL_SGX_ROOT, GOOGLE_FIRMWARE_ROOT, NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT, *AMD_ARKS.values()}
        return tuple(sorted(self.roots - vendors, key=str))

    def require(self) -> None:
        """Raise the first error, if there is one."""
        for error in self.errors:
            raise error

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton collateral fetch --json` and `import --json`, where nothing failed."""
        return {
            "documents": [_row(outcome) for outcome in self.outcomes],
            "roots": sorted(root.hex() for root in self.roots),
        }


@dataclass(frozen=True, slots=True)
class HeldDocument:
    """A document of the store or of a bundle, and its present state."""

    held: Held
    state: str
    due_at: datetime | None
    expires_soon: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """The documents of a store or of bundles."""

    directory: Path
    documents: tuple[HeldDocument, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton collateral show --json`."""
        rows = [
            _row(item.held)
            | {"state": item.state}
            | ({} if item.due_at is None else {"due_at": item.due_at.isoformat()})
            for item in self.documents
        ]
        return {"directory": str(self.directory), "documents": rows}


def fetch_collateral(
    *,
    pcs: Sequence[str] = (),
    evidence: Sequence[Path] = (),
    vleks: Sequence[Path] = (),
    fmspcs: Sequence[str] = (),
    tee: str = "both",
    root: str | None = None,
    early: bool = False,
    kds: Sequence[str] = (),
    pcs_ca: Path | Mapping[str, Path] | None = None,
    pcs_certificates: Mapping[str, Path] | None = None,
    api_key_file: Path | None = None,
    gpu: bool = False,
    rim_services: Sequence[str] = (),
    ocsp_responders: Sequence[str] = (),
    google: bool = False,
    google_bucket: str | None = None,
    google_root: str | None = None,
    home: Path | None = None,
    notice: Notice = unheard,
) -> Taken:
    """Fetch, verify and store collateral, as `adyton collateral fetch` does.

    `pcs_ca` is a file of CA certificates for all named services, or one for each address. `pcs_certificates` has for an
    address of `pcs` the file (PEM or DER) of the one certificate that is accepted there. Both are remembered.

    With `gpu`, the evidence is of GPUs, and RIMs and OCSP answers are fetched for it. Without evidence, those that are
    due are fetched anew.

    With `google`, Google's endorsement of the firmware of each evidence is fetched, too. `google_bucket` and
    `google_root` name other addresses for the endorsements, and for the certificate of their root.

    Raises UsageError, StorageFailed, and FetchFailed where a service cannot say what it knows.
    """
    if tee not in ("sgx", "tdx", "both"):
        raise UsageError(f"no collateral for {tee!r}", check="--tee", expected="sgx, tdx or both", seen=tee)
    tees = ("sgx", "tdx") if tee == "both" else (tee,)
    now, wanted_root = datetime.now(UTC), _root(root)
    downloads = Downloads(_store(home, early=early))
    if gpu:
        return _fetch_for_gpus(evidence, rim_services, ocsp_responders, pcs_ca, downloads, now)
    if api_key_file is not None:
        key = _api_key(api_key_file)
        downloads.client_of = lambda source, channel: source.client(channel, key)
    named = tuple(
        downloads.sources.named(Source(url, _ca_of(url, pcs_ca), _pin_of(url, pcs_certificates or {}))) for url in pcs
    )
    sources = named or downloads.sources.known()
    outcomes: list[Outcome] = []
    endorsements = GoogleDownloads(downloads, root_url=google_root or GOOGLE_ROOT_URL)
    if google_bucket is not None:
        endorsements.sources = (Source(google_bucket, _ca_of(google_bucket, pcs_ca)),)
    amd_sources = tuple(Source(url, _ca_of(url, pcs_ca)) for url in kds) or downloads.kds
    for path in evidence:
        given = _read_evidence(path)
        asked = amd_sources if isinstance(given, SNPReport) else sources
        outcomes += downloads.fetch_for(given, now, sources=asked)
        if google:
            outcomes.append(_endorsement(endorsements, path, given, now))
    outcomes += [_keep_vlek(path, downloads, amd_sources[0], now) for path in vleks]
    kinds = [_fmspc(text) for text in fmspcs]
    if not outcomes and not kinds and named:
        kinds = _known_fmspcs(downloads, named, now)
    if kinds:
        outcomes += downloads.fetch(fmspcs=kinds, tees=tees, sources=sources, root=wanted_root, now=now)
    if not evidence and not vleks and not fmspcs and not named:
        outcomes += downloads.refresh(now)
        outcomes += endorsements.refresh(now)
        if not any(True for _ in downloads.store.held()):
            outcomes += downloads.fetch(tees=tees, sources=sources, root=wanted_root, now=now)
            notice("TCB info is per kind of platform: name evidence (--for) or an FMSPC (--fmspc) to fetch it")
    if named and any(outcome.verified is not None for outcome in outcomes):
        downloads.sources.remember(named)
    return Taken(tuple(outcomes))


def _endorsement(endorsements: GoogleDownloads, path: Path, evidence: HardwareEvidence, now: datetime) -> Outcome:
    """Fetch what Google says of the firmware that this evidence names."""
    if not isinstance(evidence, TDXQuote | SNPReport):
        raise UsageError(
            f"{path} is no evidence of a confidential machine, so no firmware of Google's booted there",
            check="--google",
            expected="a TDX quote or a SEV-SNP report",
            seen="another evidence",
            remedy="leave --google out",
        )
    return endorsements.fetch_for(evidence, now)


def _fetch_for_gpus(
    evidence: Sequence[Path],
    rim_services: Sequence[str],
    ocsp_responders: Sequence[str],
    ca: Path | Mapping[str, Path] | None,
    downloads: Downloads,
    now: datetime,
) -> Taken:
    """Fetch for evidence of GPUs, or what is due of the documents about GPUs in the store."""
    from adyton.attest.nvidia.evidence import parse_devices
    from adyton.collateral.gpus import GPUDownloads

    gpus = GPUDownloads(downloads)
    if rim_services:
        gpus.rim_sources = tuple(Source(url, _ca_of(url, ca)) for url in rim_services)
    if ocsp_responders:
        gpus.ocsp_sources = tuple(Source(url, _ca_of(url, ca)) for url in ocsp_responders)
    outcomes: list[Outcome] = []
    for path in evidence:
        raw = read_capped(path, MAX_JSON_BYTES, "evidence", too_large=MalformedQuote)
        outcomes += gpus.fetch_for(parse_devices(raw), now)
    if not evidence:
        outcomes += gpus.refresh(now)
    return Taken(tuple(outcomes))


def show_collateral(*, bundles: Sequence[Path] = (), home: Path | None = None) -> Shown:
    """Every document of the store, or of bundles, with its validity, as `adyton collateral show` does."""
    store, now = _store(home), datetime.now(UTC)
    found = _held_in_bundles(bundles) if bundles else store.held()
    return Shown(store.directory, tuple(_state(held, store, now) for held in found))


def export_collateral(output: Path, *, root: str | None = None, home: Path | None = None) -> int:
    """Write all documents into one bundle. Returns their number. Raises UsageError where there is none."""
    bundle = _store(home).export_bundle(_root(root))
    count = len(parse_bundle(bundle))
    if not count:
        raise UsageError("there is no collateral to export", remedy="fetch some: adyton collateral fetch")
    write_file(output, bundle, 0o644)
    return count


def import_collateral(bundles: Sequence[Path], *, root: str | None = None, home: Path | None = None) -> Taken:
    """Import bundles, as `adyton collateral import` does. Each document is judged by itself.

    The result has the refused documents: see `Taken.require`.
    """
    store, now = _store(home), datetime.now(UTC)
    outcomes: list[Outcome] = []
    for raw in read_bundle_files(bundles):
        outcomes += store.import_bundle(raw, now, root=_root(root))
    return Taken(tuple(outcomes))


def _store(home: Path | None, *, early: bool = False) -> CollateralStore:
    return CollateralStore((home or default_home()) / "collateral", channel="early" if early else "standard")


def _ca_of(url: str, given: Path | Mapping[str, Path] | None) -> str | None:
    """The CA file for a service, as an absolute path: it is remembered."""
    path = given.get(url) if isinstance(given, Mapping) else given
    return None if path is None else str(path.resolve())


def _pin_of(url: str, given: Mapping[str, Path]) -> str | None:
    """The SHA-256 of the certificate that is pinned for a service; raises UsageError where it cannot be."""
    path = given.get(url)
    if path is None:
        return None
    if not url.startswith("https://"):
        raise UsageError(
            f"{url} shows no certificate that could be pinned",
            check="--pcs-cert",
            expected="a service over https://",
            seen=url[:200],
        )
    raw = read_capped(path, MAX_CHAIN_BYTES, "TLS certificate")
    try:
        found = split_pem(raw, "TLS certificate") if raw.startswith(b"-----BEGIN") else [raw]
        leaf = parse_certificate(found[0], "TLS certificate").der
    except EvidenceError as error:
        raise UsageError(
            f"{path} holds no certificate: {error.message}", check="--pcs-cert", expected="PEM or DER", seen="neither"
        ) from error
    return hashlib.sha256(leaf).hexdigest()


def _root(text: str | None) -> Digest | None:
    return None if text is None else Digest.from_hex(text.removeprefix("sim-tdx:").removeprefix("sim:"))


def _read_evidence(path: Path) -> HardwareEvidence:
    raw = read_capped(path, MAX_FORM_BYTES, "evidence", too_large=MalformedQuote)
    found = hardware_part(parse_evidence(read_form(raw).evidence))
    if found is None:
        raise UsageError(
            "a TPM's quote and a Nitro document need no collateral: they carry their certificates",
            check="--for",
            expected="evidence of a processor",
            seen="a TPM quote or a Nitro document",
        )
    return found


def _keep_vlek(path: Path, downloads: Downloads, source: Source, now: datetime) -> Outcome:
    """Store a VLEK, which only the host gets from AMD. The chain above it comes from AMD's service."""
    raw = read_capped(path, MAX_CHAIN_BYTES, "VLEK", too_large=MalformedQuote)
    leaf = split_pem(raw, "VLEK")[0] if raw.startswith(b"-----BEGIN") else raw
    product = parse_chip_certificate(parse_certificate(leaf, "VLEK")).product.partition("-")[0]
    try:
        verified = downloads.put_vlek(leaf, product, now, source=source)
    except (EvidenceError, Unavailable) as error:
        return Outcome("amd-vlek", None, error)
    return Outcome(verified.name, verified)


def _api_key(path: Path) -> str:
    key = read_capped(path, 257, "subscription key").decode("ascii", "replace").strip()
    if not 1 <= len(key) <= 256 or not key.isalnum():
        raise UsageError(f"{path} holds no subscription key", check="--api-key-file", expected="letters and digits")
    return key


def _fmspc(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise UsageError(f"{text!r} is no FMSPC", check="--fmspc", expected="12 hex digits", seen=text[:60])
    return raw


def _known_fmspcs(downloads: Downloads, sources: tuple[Source, ...], now: datetime) -> list[bytes]:
    """Every kind of platform that these services know, if they are few."""
    found: list[bytes] = []
    for source in sources:
        found += downloads.fmspcs(source, now)
    if len(found) > MAX_KINDS:
        raise UsageError(
            f"the service knows {len(found)} kinds of platform: say which",
            check="what to fetch",
            expected="--for EVIDENCE or --fmspc HEX",
            seen=f"{len(found)} kinds",
        )
    return list(dict.fromkeys(found))


def _row(outcome: Outcome | Held) -> dict[str, Any]:
    verified = outcome.verified
    if verified is None:
        return {"name": outcome.name, "ok": False, **(outcome.error.details() if outcome.error else {})}
    return {
        "name": verified.name,
        "ok": True,
        "root": verified.root.hex(),
        "number": verified.number,
        "issued_at": verified.issued_at.isoformat(),
        "expires_at": verified.expires_at.isoformat(),
        "fetched_at": verified.document.fetched_at.isoformat(),
        "url": verified.document.url,
    }


def _held_in_bundles(paths: Sequence[Path]) -> list[Held]:
    found: list[Held] = []
    for raw in read_bundle_files(paths):
        for document in parse_bundle(raw):
            try:
                verified = verify_document(document)
                found.append(Held(verified.root, verified.name, verified))
            except Error as error:
                found.append(Held(Digest(bytes(32)), document.kind, None, error))
    return sorted(found, key=lambda held: (held.root.raw, held.name))


def _state(held: Held, store: CollateralStore, now: datetime) -> HeldDocument:
    if held.verified is None:
        return HeldDocument(held, "refused", None, expires_soon=False)
    verified, due = held.verified, store.due_at(held.verified)
    if now > verified.expires_at:
        state = "EXPIRED"
    elif now < verified.issued_at:
        state = "NOT YET VALID"
    else:
        state = "due" if now >= due else "valid"
    return HeldDocument(held, state, due, expires_soon=state in ("valid", "due") and expires_soon(verified, now))
