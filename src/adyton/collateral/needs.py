"""The documents that one piece of evidence needs, and how they are put together. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adyton.attest.certificates import parse_chain, split_pem
from adyton.attest.collateral import AMDCollateral, Collateral
from adyton.attest.pck import SGX_EXTENSION, parse_sgx_extension
from adyton.attest.quote import PPID_SIZES, CertificationType
from adyton.attest.roots import INTEL_SGX_ROOT
from adyton.attest.sgx import SGXQuote
from adyton.attest.signed_json import cut_signed
from adyton.attest.snp import KEY_VLEK, TCBVersion
from adyton.collateral.documents import ca_kind, chip_subject, document_text, malformed
from adyton.errors import FetchFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.attest.snp import SNPReport
    from adyton.attest.tdx import TDXQuote
    from adyton.collateral.documents import Document, Kind, VerifiedDocument
    from adyton.values import Digest


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a quote, unverified. It says which documents to look for."""

    root: Digest
    tee: Literal["sgx", "tdx"]
    ca: str | None
    fmspc: bytes | None
    request: str | None
    """The PCK request, for quotes that only name their platform."""

    @property
    def names(self) -> tuple[tuple[Kind, str], ...]:
        """Kind and subject of each document that verification needs, as far as known.

        A PCK certificate that must be fetched comes first: it decides which others are needed.
        """
        wanted: list[tuple[Kind, str]] = [("root-crl", "root"), ("qe-identity", self.tee)]
        if self.ca is not None:
            wanted.append(("pck-crl", self.ca))
        if self.fmspc is not None:
            wanted.append(("tcb-info", f"{self.tee}-{self.fmspc.hex()}"))
        if self.request is not None:
            wanted.insert(0, ("pck-certificate", self.request))
        return tuple(wanted)


def pck_request(kind: int, data: bytes) -> str:
    """The name of a PCK request: a hash of the certification data (types 1 to 3)."""
    return hashlib.sha256(kind.to_bytes(1, "little") + data).hexdigest()[:40]


def pck_chain(certificate: Document) -> str:
    """The whole chain (PEM) of a PCK certificate document: the certificate, its CA, the root."""
    return certificate.body.decode("ascii", "replace") + certificate.chain


def origin_of_chain(chain: str | bytes, tee: Literal["sgx", "tdx"], request: str | None = None) -> Origin:
    """The origin that a PCK chain names, unverified."""
    leaf, ca, root = parse_chain(chain, ("PCK certificate", "PCK CA", "root CA"), "PCK certificate chain")
    extension = leaf.unrecognized(SGX_EXTENSION)
    if extension is None:
        raise malformed("PCK certificate", "no SGX extension")
    return Origin(root.fingerprint, tee, ca_kind(ca), parse_sgx_extension(extension).fmspc, request)


def unverified_origin(quote: SGXQuote | TDXQuote, *, root: Digest = INTEL_SGX_ROOT) -> Origin:
    """The origin of a quote, unverified. Without a chain in the quote (types 1 to 4) it is under `root`."""
    tee: Literal["sgx", "tdx"] = "sgx" if isinstance(quote, SGXQuote) else "tdx"
    kind, data = quote.signature.certification_type, quote.signature.certification_data
    if kind == CertificationType.PCK_CHAIN:
        return origin_of_chain(data, tee)
    if kind == CertificationType.PCK_LEAF:
        (leaf,) = parse_chain(data, ("PCK certificate",), "certification data")
        extension = leaf.unrecognized(SGX_EXTENSION)
        if extension is None:
            raise malformed("PCK certificate", "no SGX extension")
        issuer = leaf.issuer.rfc4514_string()
        ca = "processor" if "PCK Processor CA" in issuer else "platform"
        return Origin(root, tee, ca, parse_sgx_extension(extension).fmspc, pck_request(kind, data))
    if kind not in PPID_SIZES:
        raise malformed("quote", f"certification data of type {kind}")
    return Origin(root, tee, None, None, pck_request(kind, data))


def assemble(found: Mapping[tuple[Kind, str], VerifiedDocument], origin: Origin) -> Collateral:
    """Put the documents for one origin together. Raises FetchFailed that names the first missing one."""

    def take(kind: Kind, subject: str) -> Document:
        verified = found.get((kind, subject))
        if verified is None:
            raise missing(origin.root, kind, subject)
        return verified.document

    chain: str | None = None
    if origin.request is not None:
        certificate = take("pck-certificate", origin.request)
        chain = pck_chain(certificate)
        origin = origin_of_chain(chain, origin.tee, origin.request)
    info = take("tcb-info", f"{origin.tee}-{(origin.fmspc or b'').hex()}")
    identity = take("qe-identity", origin.tee)
    crl = take("pck-crl", origin.ca or "")
    info_text, info_signature = cut_signed(document_text(info.body, "TCB info"), "tcbInfo")
    identity_text, identity_signature = cut_signed(document_text(identity.body, "QE identity"), "enclaveIdentity")
    return Collateral(
        tcb_info=info_text,
        tcb_info_signature=bytes.fromhex(info_signature),
        tcb_info_issuer_chain=info.chain,
        qe_identity=identity_text,
        qe_identity_signature=bytes.fromhex(identity_signature),
        qe_identity_issuer_chain=identity.chain,
        channel="early" if {info.channel, identity.channel} == {"early"} else "standard",
        pck_crl=crl.body,
        pck_crl_issuer_chain=crl.chain,
        root_ca_crl=take("root-crl", "root").body,
        pck_certificate_chain=chain,
    )


def missing(root: Digest, kind: Kind, subject: str) -> FetchFailed:
    """The error for a missing document."""
    vlek = (
        "a VLEK is with the guest, which has it from its host: adyton collateral fetch --for EVIDENCE, where the"
        " evidence carries it (a report with its certificate table), or --vlek FILE"
    )
    return FetchFailed(
        f"no collateral to judge this evidence with: {kind} {subject} under the root {root} is missing",
        check="collateral at hand",
        expected=f"{kind} {subject}",
        seen="none",
        remedy=vlek
        if kind == "amd-vlek"
        else "fetch it: adyton collateral fetch --for EVIDENCE (--pcs URL for a simulated platform or a PCCS), "
        "or import a bundle: adyton collateral import",
    )


# --- SEV-SNP ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChipOrigin:
    """The origin of a SEV-SNP report of this product, unverified. It says which documents to look for."""

    product: str
    tcb: TCBVersion
    chip_id: bytes | None
    """None where a VLEK signs: it belongs to a provider, not to a chip."""
    vlek: bytes | None = None
    """The VLEK that came with the report, DER, unverified."""

    @property
    def certificate(self) -> tuple[Kind, str]:
        """Kind and subject of the certificate of the key that signed the report."""
        kind: Kind = "amd-vlek" if self.chip_id is None else "amd-vcek"
        return kind, chip_subject(self.product, self.tcb, self.chip_id)

    @property
    def crl(self) -> tuple[Kind, str]:
        """Kind and subject of the product's CRL."""
        return "amd-crl", self.product.lower()


def unverified_chips(report: SNPReport) -> tuple[ChipOrigin, ...]:
    """The possible origins of a report. Version 2 names no product, so all products of its time are possible."""
    products = (report.product,) if report.product is not None else ("Milan", "Genoa")
    chip_id = None if report.signing_key == KEY_VLEK else report.chip_id
    raw = report.field("reported_tcb")
    return tuple(
        ChipOrigin(each, TCBVersion.parse(raw, turin=each == "Turin"), chip_id, report.vlek) for each in products
    )


def assemble_amd(certificate: Document, crl: Document) -> AMDCollateral:
    """Put the documents for one report together."""
    ask, ark = split_pem(certificate.chain, "AMD chain")
    return AMDCollateral(leaf=certificate.body, ask=ask, ark=ark, crl=crl.body)
