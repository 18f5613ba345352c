"""Client of NVIDIA's services for RIMs and for OCSP. They are asked by name, and see no evidence.

Evidence is never sent anywhere: NVIDIA's remote attestation service is not asked. The RIM service gets the id of a RIM,
the OCSP responder the serial number of a certificate. Everything is verified by whoever keeps it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from adyton.attest.nvidia.layout import MAX_OCSP_BYTES, MAX_RIM_BYTES
from adyton.attest.nvidia.ocsp import build_request
from adyton.collateral.documents import Document
from adyton.collateral.gpu_files import rim_in_answer
from adyton.collateral.http_client import HTTPFetcher, Response, retry_after_s, told_wait
from adyton.errors import FetchFailed, UsageError

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


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"no address of a service: {url[:200]}",
            check="address of the service",
            expected="https://HOST[:PORT]",
            seen=url[:200],
        )


def _checked(response: Response, what: str) -> bytes:
    if response.status != 200:
        wait_s = retry_after_s(response)
        meaning, remedy = _MEANINGS.get(response.status, ("the service failed", "try again later, or import a bundle"))
        raise FetchFailed(
            f"{what}: {meaning} (HTTP {response.status}{told_wait(wait_s)}) at {response.url[:200]}",
            check="status of the answer",
            expected="200",
            seen=response.status,
            remedy=remedy,
            status=response.status,
            retry_after_s=wait_s,
        )
    return response.body


@dataclass(frozen=True)
class RIMClient:
    """NVIDIA's RIM service, or one with the same API."""

    base_url: str = NVIDIA_RIM
    fetcher: Fetcher = field(default_factory=HTTPFetcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def rim(self, rim_id: str) -> Document:
        """The RIM with this id, unverified. Raises FetchFailed, MalformedQuote or UsageError."""
        _check_address(self.base_url)
        if _RIM_ID.fullmatch(rim_id) is None:
            raise UsageError(f"no id of a RIM: {rim_id[:100]!r}", check="id of the RIM", expected="A-Z, 0-9, . _ -")
        url = f"{self.base_url.rstrip('/')}/v1/rim/{rim_id}"
        body = _checked(self.fetcher.get(url, max_bytes=2 * MAX_RIM_BYTES), f"RIM {rim_id}")
        return Document("nvidia-rim", rim_in_answer(body, rim_id), "", url, self.clock(), request=rim_id)


@dataclass(frozen=True)
class OCSPClient:
    """NVIDIA's OCSP responder, or another one."""

    base_url: str = NVIDIA_OCSP
    fetcher: Poster = field(default_factory=HTTPFetcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def answer(self, chain: Sequence[Certificate]) -> Document:
        """The answer about the first certificate of a chain that ends in its root. Raises as `RIMClient.rim` does."""
        _check_address(self.base_url)
        response = self.fetcher.post(
            self.base_url,
            build_request(chain[0], chain[1]),
            max_bytes=MAX_OCSP_BYTES,
            headers={"Content-Type": "application/ocsp-request", "Accept": "application/ocsp-response"},
        )
        body = _checked(response, f"OCSP answer about {chain[0].common_name}")
        pem = "".join(certificate.pem for certificate in chain)
        return Document("nvidia-ocsp", body, pem, response.url, self.clock())
