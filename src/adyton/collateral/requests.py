"""Requests to a service: one frozen class for each kind of document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from adyton.attest.quote import CertificationType
from adyton.collateral.documents import chip_subject, last_certificate
from adyton.collateral.needs import pck_request
from adyton.errors import FetchFailed, UsageError

if TYPE_CHECKING:
    from adyton.attest.sgx import SGXQuote
    from adyton.attest.snp import TCBVersion
    from adyton.attest.tdx import TDXQuote
    from adyton.collateral.documents import Document, Kind
    from adyton.collateral.kds import KDSClient
    from adyton.collateral.needs import Origin
    from adyton.collateral.pcs import PCSClient, Tee

Client = TypeVar("Client", contravariant=True)


class Request(Protocol[Client]):
    """A request for one document."""

    kind: ClassVar[Kind]

    @property
    def subject(self) -> str:
        """The document's subject, as in `VerifiedDocument.subject`."""
        ...

    def send(self, client: Client, /) -> Document:
        """The service's answer, unverified. Raises FetchFailed, MalformedQuote or UsageError."""
        ...


# --- of Intel's service -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TCBInfoRequest:
    """TCB info of one FMSPC (6 bytes)."""

    kind: ClassVar[Kind] = "tcb-info"
    tee: Tee
    fmspc: bytes

    @property
    def subject(self) -> str:
        """TEE and FMSPC."""
        return f"{self.tee}-{self.fmspc.hex()}"

    def send(self, client: PCSClient, /) -> Document:
        """Send the request."""
        return client.tcb_info(self.tee, self.fmspc)


@dataclass(frozen=True, slots=True)
class QEIdentityRequest:
    """Identity of the QE (SGX) or TD QE (TDX)."""

    kind: ClassVar[Kind] = "qe-identity"
    tee: Tee

    @property
    def subject(self) -> str:
        """The TEE."""
        return self.tee

    def send(self, client: PCSClient, /) -> Document:
        """Send the request."""
        return client.qe_identity(self.tee)


@dataclass(frozen=True, slots=True)
class PCKCRLRequest:
    """CRL of the PCK Platform CA (`platform`) or Processor CA (`processor`)."""

    kind: ClassVar[Kind] = "pck-crl"
    ca: str

    @property
    def subject(self) -> str:
        """The CA."""
        return self.ca

    def send(self, client: PCSClient, /) -> Document:
        """Send the request."""
        return client.pck_crl(self.ca)


@dataclass(frozen=True, slots=True)
class RootCRLRequest:
    """CRL of this root CA (PEM), which another document's chain ends in."""

    kind: ClassVar[Kind] = "root-crl"
    root: str

    @property
    def subject(self) -> str:
        """A fixed name, since a root has one CRL."""
        return "root"

    def send(self, client: PCSClient, /) -> Document:
        """Send the request."""
        return client.root_crl(self.root)


@dataclass(frozen=True, slots=True)
class PCKCertificateRequest:
    """PCK certificate of a platform that a quote only names (certification data of type 3)."""

    kind: ClassVar[Kind] = "pck-certificate"
    certification_type: int
    certification_data: bytes
    qe_id: bytes

    @property
    def subject(self) -> str:
        """The hash of the certification data."""
        return pck_request(self.certification_type, self.certification_data)

    def send(self, client: PCSClient, /) -> Document:
        """Send the request."""
        return client.pck_certificate(self.certification_type, self.certification_data, self.qe_id)


@dataclass(frozen=True, slots=True)
class PCKIssuersRequest:
    """Chain of a PCK certificate that a quote carries alone (certification data of type 4)."""

    kind: ClassVar[Kind] = "pck-certificate"
    leaf: bytes
    ca: str

    @property
    def subject(self) -> str:
        """The hash of the certification data."""
        return pck_request(CertificationType.PCK_LEAF, self.leaf)

    def send(self, client: PCSClient, /) -> Document:
        """Send the request."""
        return client.pck_issuers(self.leaf, self.ca)


# --- of AMD's service -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VCEKRequest:
    """VCEK of one chip (64 bytes of id) at one TCB."""

    kind: ClassVar[Kind] = "amd-vcek"
    product: str
    chip_id: bytes
    tcb: TCBVersion

    @property
    def subject(self) -> str:
        """Product, TCB and a hash of the chip's id."""
        return chip_subject(self.product, self.tcb, self.chip_id)

    def send(self, client: KDSClient, /) -> Document:
        """Send the request."""
        return client.vcek(self.product, self.chip_id, self.tcb)


@dataclass(frozen=True, slots=True)
class AMDCRLRequest:
    """CRL of one product's ARK."""

    kind: ClassVar[Kind] = "amd-crl"
    product: str

    @property
    def subject(self) -> str:
        """The product."""
        return self.product.lower()

    def send(self, client: KDSClient, /) -> Document:
        """Send the request."""
        return client.crl(self.product)


# --- which request a need leads to ------------------------------------------------------------------------------------


def tee_of(written: str) -> Tee:
    """`sgx` or `tdx`. Raises UsageError for anything else."""
    if written == "sgx":
        return "sgx"
    if written == "tdx":
        return "tdx"
    raise UsageError(f"no collateral for {written!r} here", expected="sgx or tdx", seen=written)


def request_for(kind: Kind, subject: str, chain: str = "") -> Request[PCSClient]:
    """The request for a document of Intel's service. `chain` ends in the root, for the root's CRL.

    Raises FetchFailed for a kind whose request needs more than the subject.
    """
    if kind == "tcb-info":
        tee, _, fmspc = subject.partition("-")
        return TCBInfoRequest(tee_of(tee), bytes.fromhex(fmspc))
    if kind == "qe-identity":
        return QEIdentityRequest(tee_of(subject))
    if kind == "pck-crl":
        return PCKCRLRequest(subject)
    if kind == "root-crl":
        return RootCRLRequest(last_certificate(chain))
    raise FetchFailed(f"{kind} is not fetched without the quote that needs it")


def certificate_request(quote: SGXQuote | TDXQuote, origin: Origin) -> Request[PCSClient]:
    """The request for the PCK certificate of a quote that does not carry its chain."""
    kind, data = quote.signature.certification_type, quote.signature.certification_data
    if kind == CertificationType.PCK_LEAF:
        return PCKIssuersRequest(data, origin.ca or "platform")
    return PCKCertificateRequest(kind, data, quote.header.user_data[:16])
