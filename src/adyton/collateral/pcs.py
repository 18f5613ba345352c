"""Client of Intel's PCS, of a PCCS, and of a simulated platform with the same API (version 4).

Every method GETs one document and returns it as a `Document`, unverified. An error status becomes an error with a
remedy. Sources: Intel SGX and TDX Provisioning Certification Service, API version 4, and the PCCS design guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote as url_quote
from urllib.parse import unquote, urlencode, urlsplit

from adyton.attest.certificates import decode_crl
from adyton.attest.layout import MAX_CHAIN_BYTES, MAX_CRL_BYTES, MAX_JSON_BYTES
from adyton.attest.quote import CertificationType, parse_ppid_certification
from adyton.collateral.documents import Channel, Document
from adyton.collateral.http_client import Fetcher, HTTPFetcher, Response, retry_after_s, told_wait
from adyton.collateral.needs import pck_request
from adyton.errors import FetchFailed, MalformedQuote, UsageError
from adyton.untrusted import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
API_KEY_HEADER: Final = "Ocp-Apim-Subscription-Key"

Tee = Literal["sgx", "tdx"]

_CHAIN_HEADERS: Final = {
    "tcb-info": ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
    "qe-identity": ("sgx-enclave-identity-issuer-chain",),
    "pck-crl": ("sgx-pck-crl-issuer-chain",),
    "pck-certificate": ("sgx-pck-certificate-issuer-chain",),
}
_MEANINGS: Final = {
    400: ("the service calls the request wrong", "check the FMSPC and the address of the service"),
    401: ("the service wants a subscription key", "give the key's file with --api-key-file"),
    403: ("the service refuses", "check the address and the subscription key"),
    404: ("the service does not know this platform", "check the FMSPC; a PCCS must have the platform registered first"),
    410: ("the service no longer keeps that evaluation data", "ask for the present one"),
    429: ("the service is asked too often", "wait, and try again"),
    500: ("the service failed", "try again, or name another source"),
    503: ("the service is not available now", "wait, and try again, or name another source"),
}


def _refused(response: Response, what: str) -> FetchFailed:
    meaning, remedy = _MEANINGS.get(response.status, ("the service refuses", "name another source"))
    request_id = response.headers.get("request-id", "")[:80]
    wait_s = retry_after_s(response)
    return FetchFailed(
        f"{what}: {meaning} (HTTP {response.status}"
        + (f", request {request_id}" if request_id.isprintable() and request_id else "")
        + told_wait(wait_s)
        + f") at {response.url}",
        check="status of the answer",
        expected="200",
        seen=response.status,
        remedy=remedy if wait_s is None else remedy.replace("wait,", f"wait {wait_s:.0f} s,"),
        status=response.status,
        retry_after_s=wait_s,
    )


@dataclass(frozen=True)
class PCSClient:
    """One service: Intel's (the default), a PCCS, or a simulated platform.

    The root CRL is not part of the API. Intel's has a fixed address. On other hosts the client tries the path of a PCCS
    (`/sgx/certification/v4/rootcacrl`), then `/IntelSGXRootCA.der`.
    """

    base_url: str = INTEL_PCS
    fetcher: Fetcher = field(default_factory=HTTPFetcher)
    channel: Channel = "standard"
    api_key: str | None = field(default=None, repr=False)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"no address of a collateral service: {self.base_url[:200]}",
                check="address of the service",
                expected="https://HOST[:PORT]",
                seen=self.base_url[:200],
            )

    def tcb_info(self, tee: Tee, fmspc: bytes) -> Document:
        """TCB info for one FMSPC (6 bytes)."""
        query = {"fmspc": fmspc.hex().upper()} | self._update()
        return self._json_document("tcb-info", f"/{tee}/certification/v4/tcb", query)

    def qe_identity(self, tee: Tee) -> Document:
        """Identity of the QE (SGX) or TD QE (TDX)."""
        return self._json_document("qe-identity", f"/{tee}/certification/v4/qe/identity", self._update())

    def pck_crl(self, ca: str) -> Document:
        """CRL of the PCK Platform CA or Processor CA."""
        response = self._get("/sgx/certification/v4/pckcrl", {"ca": ca, "encoding": "der"}, "PCK CRL", MAX_CRL_BYTES)
        chain = _chain(response, "pck-crl")
        return Document("pck-crl", decode_crl(response.body), chain, response.url, self.clock())

    def root_crl(self, root: str) -> Document:
        """The CRL of this root (PEM), which must be known from another document's chain."""
        if self.base_url.rstrip("/") == INTEL_PCS:
            places = [INTEL_ROOT_CRL]
        else:
            base = self.base_url.rstrip("/")
            places = [f"{base}/sgx/certification/v4/rootcacrl", f"{base}/IntelSGXRootCA.der"]
        refusal: FetchFailed | None = None
        for url in places:
            response = self._fetch(url, MAX_CRL_BYTES)
            if response.status == 200:
                crl = decode_crl(response.body.strip() if response.body[:1] != b"\x30" else response.body)
                return Document("root-crl", crl, root, url, self.clock())
            refusal = _refused(response, "root CA CRL")
            if response.status not in (400, 404):
                break
        raise refusal or FetchFailed("no place to fetch the root CA's CRL from")

    def pck_certificate(self, kind: int, data: bytes, qe_id: bytes) -> Document:
        """The PCK certificate of a platform that a quote only names (certification data type 3).

        Types 1 and 2 cannot be fetched: the API takes only a PPID encrypted with RSA-3072.
        """
        if kind != CertificationType.PPID_RSA3072:
            raise FetchFailed(
                f"no service hands out the PCK certificate for certification data of type {kind}",
                check="certification data type",
                expected="3 (PPID encrypted with RSA-3072), 4 or 5",
                seen=kind,
                remedy="register the platform, so that its quotes carry the PCK certificate chain (type 5), "
                "or give the chain in a collateral file (pck_certificate_chain)",
            )
        named = parse_ppid_certification(kind, data)
        query = {
            "encrypted_ppid": named.ppid.hex(),
            "cpusvn": named.cpu_svn.hex(),
            "pcesvn": named.pce_svn.to_bytes(2, "little").hex(),
            "pceid": named.pce_id.hex(),
        }
        if self.base_url.rstrip("/") != INTEL_PCS:
            query["qeid"] = qe_id.hex()
        headers = {API_KEY_HEADER: self.api_key} if self.api_key else {}
        path = "/sgx/certification/v4/pckcert"
        response = self._get(path, query, "PCK certificate", MAX_CHAIN_BYTES, headers)
        chain = _chain(response, "pck-certificate")
        body = response.body.strip() + b"\n"
        return Document("pck-certificate", body, chain, response.url, self.clock(), request=pck_request(kind, data))

    def pck_issuers(self, leaf: bytes, ca: str) -> Document:
        """A PCK certificate that a quote carries alone (certification data type 4), with the chain of its CA.

        The CA's certificate comes with the CRL that it issues.
        """
        crl = self.pck_crl(ca)
        request = pck_request(CertificationType.PCK_LEAF, leaf)
        body = leaf.rstrip(b"\0 \r\n") + b"\n"
        return Document("pck-certificate", body, crl.chain, crl.url, self.clock(), request=request)

    def fmspcs(self) -> tuple[bytes, ...]:
        """Every FMSPC that the service knows."""
        response = self._get("/sgx/certification/v4/fmspcs", {"platform": "all"}, "list of FMSPCs", MAX_JSON_BYTES)
        rows = parse_json(response.body, what="list of FMSPCs", refuse=MalformedQuote)
        texts = [row.get("fmspc") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else [None]
        found = [text for text in texts if isinstance(text, str) and re.fullmatch(r"[0-9A-Fa-f]{12}", text)]
        if not isinstance(rows, list) or len(found) != len(rows):
            raise MalformedQuote("the list of FMSPCs does not parse", check="list of FMSPCs", seen=response.body[:80])
        return tuple(bytes.fromhex(text) for text in found)

    def _update(self) -> dict[str, str]:
        return {} if self.channel == "standard" else {"update": self.channel}

    def _json_document(self, kind: Literal["tcb-info", "qe-identity"], path: str, query: Mapping[str, str]) -> Document:
        response = self._get(path, query, kind.replace("-", " "), MAX_JSON_BYTES)
        chain = _chain(response, kind)
        return Document(kind, response.body, chain, response.url, self.clock(), self.channel)

    def _get(
        self, path: str, query: Mapping[str, str], what: str, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        url = self.base_url.rstrip("/") + path + (f"?{urlencode(query, quote_via=url_quote)}" if query else "")
        response = self._fetch(url, max_bytes, headers)
        if response.status != 200:
            raise _refused(response, what)
        return response

    def _fetch(self, url: str, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        return self.fetcher.get(url, max_bytes=2 * max_bytes, headers=headers)


def _chain(response: Response, kind: str) -> str:
    """The issuer chain from its header (URL-encoded PEM). Raises MalformedQuote where there is none."""
    for name in _CHAIN_HEADERS[kind]:
        text = unquote(response.headers.get(name, ""), errors="replace")
        if text and len(text) <= MAX_CHAIN_BYTES:
            return text.rstrip("\x00 \r\n") + "\n"
    raise MalformedQuote(
        f"the answer from {response.url} has no issuer chain",
        check="issuer chain header",
        expected=" or ".join(_CHAIN_HEADERS[kind]),
        seen="none",
        remedy="check that this is the address of a PCS or PCCS, API version 4",
    )
