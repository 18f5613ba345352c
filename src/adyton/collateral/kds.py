"""The client of AMD's Key Distribution Service: VCEK certificates, chains, CRLs.

Source: AMD 57230, "VCEK Certificate and KDS Interface Specification". The service allows each address about one VCEK in
ten seconds, and answers 429 to more. The VCEK of one chip and TCB never changes, so it is fetched once. The request
tells AMD which chip is verified. A bundle or a local store avoids that.

AMD gives VLEK certificates to cloud providers only. A guest gets its VLEK from the host, in the certificate table of
the extended report. Only the chain and the CRL come from the service.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

from adyton.attest.certificates import parse_certificate, parse_chain
from adyton.attest.layout import MAX_CHAIN_BYTES, MAX_CRL_BYTES
from adyton.collateral.documents import Document
from adyton.collateral.http_client import Fetcher, HTTPFetcher, Response, retry_after_s, told_wait
from adyton.errors import FetchFailed, MalformedQuote, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.attest.snp import TCBVersion

AMD_KDS: Final = "https://kdsintf.amd.com"
PRODUCTS: Final = ("Milan", "Genoa", "Turin")
PACE_S: Final = 10.0
"""How long to wait after a 429 that names no time."""
MAX_WAIT_S: Final = 30.0
_TURIN_ID_BYTES: Final = 8


def vcek_query(product: str, tcb: TCBVersion) -> dict[str, str]:
    """The parameters that name a TCB: two decimal digits each, `fmcSPL` first where the product has it."""
    parts = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
    if product == "Turin":
        parts = {"fmcSPL": tcb.fmc or 0, **parts}
    return {name: f"{svn:02d}" for name, svn in parts.items()}


@dataclass(frozen=True)
class KDSClient:
    """Client of AMD's service or one like it. Waits once where the service asks for a pause."""

    base_url: str = AMD_KDS
    fetcher: Fetcher = field(default_factory=HTTPFetcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"no address of a key distribution service: {self.base_url[:200]}",
                check="address of the service",
                expected="https://HOST[:PORT]",
                seen=self.base_url[:200],
            )

    def vcek(self, product: str, chip_id: bytes, tcb: TCBVersion) -> Document:
        """The VCEK of one chip (64 bytes of id) at one TCB, with its chain."""
        _check_product(product)
        if len(chip_id) != 64 or not any(chip_id):
            raise FetchFailed(
                "the report masks its chip id, so no VCEK can be asked for",
                check="chip id",
                expected="64 bytes that are not all zero",
                seen=f"{len(chip_id)} bytes, all zero" if not any(chip_id) else f"{len(chip_id)} bytes",
                remedy="take the certificate from the guest's extended report, or switch MASK_CHIP_KEY off",
            )
        name = chip_id[:_TURIN_ID_BYTES] if product == "Turin" else chip_id
        path = f"/vcek/v1/{product}/{name.hex()}?{urlencode(vcek_query(product, tcb))}"
        response = self._get(path, "VCEK certificate", MAX_CHAIN_BYTES)
        parse_certificate(response.body, "VCEK")
        return Document("amd-vcek", response.body, self.chain(product), response.url, self.clock())

    def chain(self, product: str, *, vlek: bool = False) -> str:
        """The chain (PEM: ASK or ASVK, then ARK) of one product."""
        _check_product(product)
        path = f"/{'vlek' if vlek else 'vcek'}/v1/{product}/cert_chain"
        response = self._get(path, "AMD certificate chain", MAX_CHAIN_BYTES)
        issuer, root = parse_chain(response.body, ("ASK", "ARK"), "AMD certificate chain")
        return issuer.pem + root.pem

    def vlek(self, leaf: bytes, product: str) -> Document:
        """A VLEK (DER) that the guest has from its host, with its chain."""
        path = f"{self.base_url.rstrip('/')}/vlek/v1/{product}/cert_chain"
        return Document("amd-vlek", leaf, self.chain(product, vlek=True), path, self.clock())

    def crl(self, product: str) -> Document:
        """The CRL of one product's ARK."""
        chain = self.chain(product)
        ark = parse_chain(chain, ("ASK", "ARK"), "AMD certificate chain")[1]
        response = self._get(f"/vcek/v1/{product}/crl", "AMD CRL", MAX_CRL_BYTES)
        return Document("amd-crl", response.body, ark.pem, response.url, self.clock())

    def _get(self, path: str, what: str, max_bytes: int) -> Response:
        url = self.base_url.rstrip("/") + path
        response = self.fetcher.get(url, max_bytes=max_bytes)
        if response.status == 429:
            wait_s = retry_after_s(response)
            wait_s = PACE_S if wait_s is None else wait_s
            if wait_s <= MAX_WAIT_S:
                self.sleep(wait_s)
                response = self.fetcher.get(url, max_bytes=max_bytes)
        if response.status != 200:
            raise _refused(response, what)
        if not response.body:
            raise MalformedQuote(f"the answer from {url} is empty", check=what, expected="DER or PEM", seen="nothing")
        return response


def _check_product(product: str) -> None:
    if product not in PRODUCTS:
        raise UsageError(
            f"no AMD product {product!r}", check="product", expected=", ".join(PRODUCTS), seen=product[:60]
        )


def _refused(response: Response, what: str) -> FetchFailed:
    wait_s = retry_after_s(response)
    meanings = {
        400: ("the service calls the request wrong", "the chip id or TCB of the report is not a real one"),
        404: ("the service does not know this chip or TCB", "check the product, and that the report is genuine"),
        429: ("the service is asked too often", f"wait {PACE_S if wait_s is None else wait_s:.0f} s, and try again"),
    }
    meaning, remedy = meanings.get(response.status, ("the service failed", "try again later, or import a bundle"))
    return FetchFailed(
        f"{what}: {meaning} (HTTP {response.status}{told_wait(wait_s)}) at {response.url[:200]}",
        check="status of the answer",
        expected="200",
        seen=response.status,
        remedy=remedy,
        status=response.status,
        retry_after_s=PACE_S if response.status == 429 and wait_s is None else wait_s,
    )
