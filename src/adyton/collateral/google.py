"""Google's firmware endorsements: fetched by the launch measurement that evidence names, and kept in a store.

The request tells Google which firmware is asked for: one of a few, the same for many machines. An endorsement says
whose firmware booted, and releases nothing (`attest.google`).

Source: google/gce-tcb-verifier, README ("Where to find endorsements"). The live service was never asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.google import MAX_ENDORSEMENT_BYTES, endorsed_measurement
from adyton.attest.layout import MAX_CHAIN_BYTES
from adyton.attest.tdx import TDXQuote
from adyton.collateral.answers import body_of, check_address
from adyton.collateral.documents import Document, endorsement_request, endorsement_subject, stored_name
from adyton.collateral.http_client import HTTPFetcher
from adyton.collateral.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.attest.snp import SNPReport
    from adyton.collateral.documents import VerifiedDocument
    from adyton.collateral.downloads import Downloads
    from adyton.collateral.http_client import Fetcher
    from adyton.collateral.store import Outcome

GOOGLE_BUCKET: Final = "https://storage.googleapis.com/gce_tcb_integrity"
GOOGLE_ROOT_URL: Final = "https://pki.goog/cloud_integrity/GCE-cc-tcb-root_1.crt"
_ROOT: Final = "Google's firmware root"
_FOLDERS: Final = {"tdx": "tdx", "snp": "sevsnp"}
_MEANINGS: Final = {
    403: ("Google publishes none for this firmware", "the machine may not be Google's, or its firmware is too new"),
    404: ("Google publishes none for this firmware", "the machine may not be Google's, or its firmware is too new"),
    429: ("the service is asked too often", "wait, and try again"),
}


@dataclass(frozen=True)
class EndorsementClient:
    """Google's bucket of endorsements, or one of the same form, and the address of the root's certificate."""

    base_url: str = GOOGLE_BUCKET
    root_url: str = GOOGLE_ROOT_URL
    fetcher: Fetcher = field(default_factory=HTTPFetcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def endorsement(self, tee: str, measurement: bytes) -> Document:
        """The endorsement of this launch measurement (`tee`: tdx or snp), unverified, with its root.

        Raises FetchFailed, MalformedQuote and UsageError.
        """
        for url in (self.base_url, self.root_url):
            check_address(url)
        url = f"{self.base_url.rstrip('/')}/ovmf_x64_csm/{_FOLDERS[tee]}/{measurement.hex()}.binarypb"
        body = body_of(self.fetcher.get(url, max_bytes=MAX_ENDORSEMENT_BYTES), "firmware endorsement", _MEANINGS)
        raw = body_of(self.fetcher.get(self.root_url, max_bytes=MAX_CHAIN_BYTES), _ROOT, _MEANINGS)
        if raw.startswith(b"-----BEGIN"):
            raw = split_pem(raw, _ROOT)[0]
        root = parse_certificate(raw, _ROOT).pem
        request = endorsement_request(tee, measurement)
        return Document("google-firmware", body, root, url, self.clock(), request=request)


@dataclass
class GoogleDownloads:
    """Fetches endorsements into a store. A service that asked for rest, or lacked a document, is left alone."""

    downloads: Downloads
    sources: Sequence[Source] = (Source(GOOGLE_BUCKET),)
    root_url: str = GOOGLE_ROOT_URL

    def fetch_for(self, evidence: TDXQuote | SNPReport, now: datetime) -> Outcome:
        """Fetch the endorsement of the firmware that this evidence names."""
        return self._fetch(*endorsed_measurement(evidence), now)

    def refresh(self, now: datetime) -> list[Outcome]:
        """Fetch anew every endorsement past half of its validity. After a failure the stored one stays."""
        store = self.downloads.store
        held = [found for found in store.of_kind("google-firmware") if now >= store.due_at(found)]
        return [self._fetch(*_asked(found), now) for found in held]

    def _fetch(self, tee: str, measurement: bytes, now: datetime) -> Outcome:
        return self.downloads.fetch_document(
            stored_name("google-firmware", endorsement_subject(tee, measurement)),
            self.sources,
            lambda source: EndorsementClient(source.url, self.root_url, source.fetcher()).endorsement(tee, measurement),
            now,
        )


def _asked(found: VerifiedDocument) -> tuple[str, bytes]:
    tee, _, measurement = found.document.request.partition("-")
    return tee, bytes.fromhex(measurement)
