"""Client of NVIDIA's services for RIMs and for OCSP. They are asked by name, and see no evidence.

Evidence is never sent anywhere: NVIDIA's remote attestation service is not asked. The RIM service gets the id of a RIM,
the OCSP responder the serial number of a certificate. Everything is verified by whoever keeps it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.attest.nvidia.layout import MAX_OCSP_BYTES, MAX_RIM_BYTES
from adyton.attest.nvidia.ocsp import build_request
from adyton.collateral.answers import body_of, check_address
from adyton.collateral.documents import Document
from adyton.collateral.gpu_files import rim_in_answer
from adyton.collateral.http_client import HTTPFetcher
from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.attest.certificates import Certificate
    from adyton.collateral.http_client import Fetcher, Poster

NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"
_RIM_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_MEANINGS: Final = {
    401: ("the service wants a key", "use a service that does not, or import a bundle"),
    403: ("the service refuses", "use another service, or import a bundle"),
    404: ("the service does not know it", "check the versions of driver and VBIOS; NVIDIA may not have published it"),
    429: ("the service is asked too often", "wait, and try again"),
}


@dataclass(frozen=True)
class RIMClient:
    """NVIDIA's RIM service, or one with the same API."""

    base_url: str = NVIDIA_RIM
    fetcher: Fetcher = field(default_factory=HTTPFetcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def rim(self, rim_id: str) -> Document:
        """The RIM with this id, unverified. Raises FetchFailed, MalformedQuote or UsageError."""
        check_address(self.base_url)
        if _RIM_ID.fullmatch(rim_id) is None:
            raise UsageError(f"no id of a RIM: {rim_id[:100]!r}", check="id of the RIM", expected="A-Z, 0-9, . _ -")
        url = f"{self.base_url.rstrip('/')}/v1/rim/{rim_id}"
        body = body_of(self.fetcher.get(url, max_bytes=2 * MAX_RIM_BYTES), f"RIM {rim_id}", _MEANINGS)
        return Document("nvidia-rim", rim_in_answer(body, rim_id), "", url, self.clock(), request=rim_id)


@dataclass(frozen=True)
class OCSPClient:
    """NVIDIA's OCSP responder, or another one."""

    base_url: str = NVIDIA_OCSP
    fetcher: Poster = field(default_factory=HTTPFetcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def answer(self, chain: Sequence[Certificate]) -> Document:
        """The answer about the first certificate of a chain that ends in its root. Raises as `RIMClient.rim` does."""
        check_address(self.base_url)
        response = self.fetcher.post(
            self.base_url,
            build_request(chain[0], chain[1]),
            max_bytes=MAX_OCSP_BYTES,
            headers={"Content-Type": "application/ocsp-request", "Accept": "application/ocsp-response"},
        )
        body = body_of(response, f"OCSP answer about {chain[0].common_name}", _MEANINGS)
        pem = "".join(certificate.pem for certificate in chain)
        return Document("nvidia-ocsp", body, pem, response.url, self.clock())
