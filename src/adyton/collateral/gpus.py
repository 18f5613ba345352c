"""Collateral for GPUs: what evidence needs, fetched into a store, and taken from a store or from files."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.nvidia.chain import DEVICE_CHAIN, DeviceChain, parse_pem_chain
from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
from adyton.attest.nvidia.device import Device, driver_rim_ids, vbios_rim_ids
from adyton.attest.nvidia.ocsp import parse_answer
from adyton.attest.nvidia.rim import parse_rim
from adyton.attest.nvidia.spdm import parse_report
from adyton.capped_read import read_capped
from adyton.collateral.bundle import parse_bundle
from adyton.collateral.documents import Document, ocsp_subject, rim_subject, stored_name, verify_document
from adyton.collateral.nvidia import NVIDIA_OCSP, NVIDIA_RIM, OCSPClient, RIMClient, rim_in_answer
from adyton.collateral.sources import Source
from adyton.errors import EvidenceError, MalformedQuote
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

    from adyton.attest.certificates import Certificate
    from adyton.attest.nvidia.evidence import DeviceEvidence
    from adyton.collateral.documents import VerifiedDocument
    from adyton.collateral.downloads import Downloads
    from adyton.collateral.store import CollateralStore, Outcome

MAX_FILES: Final = 4096
MAX_FILE_BYTES: Final = 64 << 20


# --- from a store -----------------------------------------------------------------------------------------------------


def gpu_collateral(store: CollateralStore) -> GPUCollateral:
    """Every RIM and every OCSP answer of a store. What has ended is judged with the evidence.

    Raises StorageFailed where a document was altered on disk.
    """
    recorded = store.rims_recorded()
    rims = []
    for verified in store.of_kind("nvidia-rim"):
        rim = parse_rim(verified.document.body)
        rims.append(KnownRIM(rim, verified.document.request, recorded.get(rim.fingerprint.hex())))
    answers = tuple(parse_answer(verified.document.body) for verified in store.of_kind("nvidia-ocsp"))
    return GPUCollateral(rims=tuple(rims), answers=answers)


# --- from files -------------------------------------------------------------------------------------------------------


def gpu_collateral_from(paths: Iterable[Path]) -> GPUCollateral:
    """RIMs and OCSP answers in files and folders: XML, DER, answers of the RIM service, bundles, documents of a store.

    A bare file has no record of when it came, so an expired signer of its RIM takes an exemption. Raises
    MalformedQuote or BadChain where a named file holds none. Other files in a folder are skipped.
    """
    rims: list[KnownRIM] = []
    answers: list[bytes] = []
    for path in paths:
        folder = path.is_dir()
        files = islice(sorted(item for item in path.rglob("*") if item.is_file()), MAX_FILES) if folder else [path]
        for file in files:
            raw = read_capped(file, MAX_FILE_BYTES, "collateral")
            try:
                _take(raw, file, rims, answers)
            except EvidenceError:
                if not folder:
                    raise
    return GPUCollateral(rims=tuple(rims), answers=tuple(map(parse_answer, answers)))


def _take(raw: bytes, path: Path, rims: list[KnownRIM], answers: list[bytes]) -> None:
    head = raw[:64].lstrip()
    if head.startswith(b"<"):
        rims.append(KnownRIM(parse_rim(raw)))
    elif head.startswith(b"{"):
        for document in _documents(raw, path):
            if document.kind == "nvidia-rim":
                verify_document(document)
                rims.append(KnownRIM(parse_rim(document.body), document.request))
            elif document.kind == "nvidia-ocsp":
                parse_answer(document.body)
                answers.append(document.body)
    elif raw[:1] == b"\x30":
        parse_answer(raw)
        answers.append(raw)
    else:
        raise MalformedQuote(
            f"{path} is no collateral for GPUs",
            check="parse of the collateral",
            expected="a RIM (XML), an OCSP answer (DER), or JSON",
            seen=raw[:8].hex(),
        )


def _documents(raw: bytes, path: Path) -> Sequence[Document]:
    data = parse_json_object(raw, what=f"collateral {path}", refuse=MalformedQuote, limit_bytes=MAX_FILE_BYTES)
    if "rim" in data:
        from datetime import UTC, datetime

        body = rim_in_answer(raw)
        return [Document("nvidia-rim", body, "", "", datetime.fromtimestamp(0, UTC), request=str(data.get("id"))[:100])]
    return [Document.from_dict(data)] if "kind" in data else parse_bundle(raw)


# --- from NVIDIA's services -------------------------------------------------------------------------------------------


def device_chain(evidence: DeviceEvidence) -> tuple[Certificate, ...]:
    """The certificates in some evidence, unverified. Raises MalformedQuote."""
    return parse_pem_chain(evidence.chain, DEVICE_CHAIN, "device certificate chain")


def rim_ids(evidence: DeviceEvidence) -> tuple[str, ...]:
    """The ids of the RIMs that some evidence needs, by what it says itself. Raises MalformedQuote."""
    chain = DeviceChain(device_chain(evidence), simulated=False)
    arch = evidence.arch
    if arch is None:
        arch = "BLACKWELL" if chain.model.startswith("GB") else "LS10" if chain.model.startswith("LS_10") else "HOPPER"
    device = Device(arch=arch, report=parse_report(evidence.report), chain=chain)
    return (() if arch == "LS10" else driver_rim_ids(device)) + vbios_rim_ids(device)


@dataclass
class GPUDownloads:
    """Fetches RIMs and OCSP answers into a store. Sources that asked for rest, or lacked a document, are left alone."""

    downloads: Downloads
    rim_sources: Sequence[Source] = (Source(NVIDIA_RIM),)
    ocsp_sources: Sequence[Source] = (Source(NVIDIA_OCSP),)
    rim_client: Callable[[Source], RIMClient] = field(
        default=lambda source: RIMClient(source.url, source.fetcher()), repr=False
    )
    ocsp_client: Callable[[Source], OCSPClient] = field(
        default=lambda source: OCSPClient(source.url, source.fetcher()), repr=False
    )

    def fetch_for(self, evidence: Iterable[DeviceEvidence], now: datetime) -> list[Outcome]:
        """Fetch all that some evidence needs. A failure does not stop the other documents."""
        found: dict[str, Outcome] = {}
        for item in evidence:
            chain = device_chain(item)
            for place in range(1, len(chain) - 1):
                self._answer(chain[place:], now, found)
            for rim_id in rim_ids(item):
                outcome = self._rim(rim_id, now, found)
                if outcome.verified is not None:
                    self._answers_about_signers(outcome.verified, now, found)
        return list(found.values())

    def refresh(self, now: datetime) -> list[Outcome]:
        """Fetch anew every document about GPUs past half of its validity. After a failure the stored one stays."""
        store = self.downloads.store
        held = [*store.of_kind("nvidia-rim"), *store.of_kind("nvidia-ocsp")]
        return [self.fetch_anew(verified, now) for verified in held if now >= store.due_at(verified)]

    def fetch_anew(self, verified: VerifiedDocument, now: datetime) -> Outcome:
        """Fetch a stored document again."""
        found: dict[str, Outcome] = {}
        if verified.document.kind == "nvidia-rim":
            return self._rim(verified.document.request, now, found)
        chain = [parse_certificate(block, "certificate") for block in split_pem(verified.document.chain, "OCSP chain")]
        return self._answer(chain, now, found)

    def _answers_about_signers(self, verified: VerifiedDocument, now: datetime, found: dict[str, Outcome]) -> None:
        chain = parse_rim(verified.document.body).chain
        for place in range(len(chain) - 1):
            if chain[place].window.not_after >= now:
                self._answer(chain[place:], now, found)

    def _rim(self, rim_id: str, now: datetime, found: dict[str, Outcome]) -> Outcome:
        name = stored_name("nvidia-rim", rim_subject(rim_id))
        if name not in found:
            found[name] = self.downloads.fetch_document(
                name, self.rim_sources, lambda source: self.rim_client(source).rim(rim_id), now
            )
        return found[name]

    def _answer(self, chain: Sequence[Certificate], now: datetime, found: dict[str, Outcome]) -> Outcome:
        name = stored_name("nvidia-ocsp", ocsp_subject(chain[0]))
        if name not in found:
            found[name] = self.downloads.fetch_document(
                name, self.ocsp_sources, lambda source: self.ocsp_client(source).answer(chain), now
            )
        return found[name]
