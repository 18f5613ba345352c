"""Collateral for GPUs: what evidence needs, fetched from NVIDIA's services into a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.nvidia.chain import DEVICE_CHAIN, DeviceChain, parse_pem_chain
from adyton.attest.nvidia.device import Device, driver_rim_ids, vbios_rim_ids
from adyton.attest.nvidia.rim import parse_rim
from adyton.attest.nvidia.spdm import parse_report
from adyton.collateral.documents import ocsp_subject, rim_subject, stored_name
from adyton.collateral.nvidia import NVIDIA_OCSP, NVIDIA_RIM, OCSPClient, RIMClient
from adyton.collateral.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from adyton.attest.certificates import Certificate
    from adyton.attest.nvidia.evidence import DeviceEvidence
    from adyton.collateral.documents import VerifiedDocument
    from adyton.collateral.downloads import Downloads
    from adyton.collateral.store import Outcome


RIM_PAUSE: Final = timedelta(days=1)
"""How long a RIM that was fetched is not asked for again."""


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
        """Fetch anew every document about GPUs past half of its validity. After a failure the stored one stays.

        A RIM is asked for once a day at most: NVIDIA goes on serving those whose signers have expired.
        """
        store = self.downloads.store
        rims = [each for each in store.of_kind("nvidia-rim") if now - each.document.fetched_at >= RIM_PAUSE]
        held = [*rims, *store.of_kind("nvidia-ocsp")]
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
