"""The common parts of SGX and TDX quotes: the header, the signature data, and how they are put together.

::

    version 3, 4:  header 48 | body                      | u32 S | signature data S
    version 5:     header 48 | u16 type | u32 size | body | u32 S | signature data S

    signature data, version 3
      0 quote signature 64 | 64 attestation key 64 | QE part, certification types 1..5
    signature data, versions 4 and 5
      0 quote signature 64 | 64 attestation key 64 | 128 u16 type = 6 | 130 u32 N | 134 QE part of N bytes
    QE part
      0 QE report 384 | 384 its signature 64 | 448 u16 A | 450 QE authentication data A
      450+A u16 certification type | 452+A u32 C | 456+A certification data C

Everything before S is signed by the attestation key. Sources: Intel SGX and TDX ECDSA quote library references;
Intel TDX DCAP quoting library API.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn, Self

from adyton.attest.enclave import REPORT_BYTES, EnclaveReport
from adyton.attest.layout import MAX_QUOTE_BYTES, Span, check_size, pack
from adyton.errors import MalformedQuote

HEADER_BYTES: Final = 48
TEE_SGX: Final = 0x00
TEE_TDX: Final = 0x81
KEY_ECDSA_P256: Final = 2
QE_VENDOR_INTEL: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

BODY_SGX: Final = 1
BODY_TD10: Final = 2
BODY_TD15: Final = 3
BODY_TD15_EXTENDED: Final = 4
BODY_BYTES: Final = {BODY_SGX: 384, BODY_TD10: 584, BODY_TD15: 648, BODY_TD15_EXTENDED: 885}
"""Quote version 5: body type -> size in bytes."""

_HEADER: Final[dict[str, Span]] = {
    "version": Span(0, 2),
    "key_type": Span(2, 2),
    "tee_type": Span(4, 4),
    "qe_svn": Span(8, 2),
    "pce_svn": Span(10, 2),
    "qe_vendor_id": Span(12, 16),
    "user_data": Span(28, 20),
}


class CertificationType(IntEnum):
    """The data in a quote that leads to its platform's certificate."""

    PPID_PLAIN = 1
    PPID_RSA2048 = 2
    PPID_RSA3072 = 3
    PCK_LEAF = 4
    PCK_CHAIN = 5
    QE_REPORT = 6
    PLATFORM_MANIFEST = 7


PPID_SIZES: Final = {
    CertificationType.PPID_PLAIN: 16,
    CertificationType.PPID_RSA2048: 256,
    CertificationType.PPID_RSA3072: 384,
}


def refuse(message: str, *, check: str, expected: object, seen: object, remedy: str | None = None) -> NoReturn:
    """Every check of the parsers fails through here: raises MalformedQuote."""
    raise MalformedQuote(message, check=check, expected=expected, seen=seen, remedy=remedy)


@dataclass(frozen=True, slots=True)
class QuoteHeader:
    """The first 48 bytes of a quote."""

    raw: bytes

    def __post_init__(self) -> None:
        check_size(self.raw, HEADER_BYTES, "quote header")

    @classmethod
    def build(cls, **fields: bytes | int) -> Self:
        """Make a header from named fields. Key type and QE vendor are ECDSA P-256 and Intel unless named."""
        defaults: dict[str, bytes | int] = {"key_type": KEY_ECDSA_P256, "qe_vendor_id": QE_VENDOR_INTEL}
        return cls(pack(HEADER_BYTES, _HEADER, defaults | fields))

    def replace(self, **fields: bytes | int) -> Self:
        """The same header with some fields changed."""
        return type(self)(pack(HEADER_BYTES, _HEADER, fields, self.raw))

    @property
    def version(self) -> int:
        """Quote version."""
        return self.raw[0] | self.raw[1] << 8

    @property
    def key_type(self) -> int:
        """Attestation key type. 2 is ECDSA with P-256."""
        return self.raw[2] | self.raw[3] << 8

    @property
    def tee_type(self) -> int:
        """0 for SGX, 0x81 for TDX."""
        return _HEADER["tee_type"].number(self.raw)

    @property
    def qe_vendor_id(self) -> bytes:
        """The vendor of the quoting enclave, 16 bytes."""
        return _HEADER["qe_vendor_id"].of(self.raw)

    @property
    def user_data(self) -> bytes:
        """20 bytes. The first 16 are the platform's QE identifier."""
        return _HEADER["user_data"].of(self.raw)


@dataclass(frozen=True, slots=True)
class SignatureData:
    """The signatures of a quote and what leads from them to the platform's certificate."""

    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification_data: bytes

    def __post_init__(self) -> None:
        for what in ("signature", "attestation_key", "qe_report_signature"):
            check_size(getattr(self, what), 64, what.replace("_", " "))

    def to_bytes(self, version: int) -> bytes:
        """The signature data as it stands in a quote of that version."""
        part = b"".join(
            (
                self.qe_report.to_bytes(),
                self.qe_report_signature,
                len(self.qe_auth_data).to_bytes(2, "little"),
                self.qe_auth_data,
                self.certification_type.to_bytes(2, "little"),
                len(self.certification_data).to_bytes(4, "little"),
                self.certification_data,
            )
        )
        if version >= 4:
            part = int(CertificationType.QE_REPORT).to_bytes(2, "little") + len(part).to_bytes(4, "little") + part
        return self.signature + self.attestation_key + part


@dataclass(frozen=True, slots=True)
class PPIDCertification:
    """Certification data of types 1 to 3: names the platform instead of carrying its certificate."""

    ppid: bytes
    """Plain (type 1, 16 bytes) or RSA-OAEP encrypted to Intel (types 2 and 3)."""
    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    """Two bytes, little-endian as in the quote."""


def parse_ppid_certification(kind: int, raw: bytes) -> PPIDCertification:
    """Read certification data of type 1, 2 or 3: PPID, CPUSVN(16), PCESVN(2), PCEID(2)."""
    size = PPID_SIZES[CertificationType(kind)]
    check_size(raw, size + 20, f"certification data of type {kind}")
    return PPIDCertification(
        ppid=raw[:size],
        cpu_svn=raw[size : size + 16],
        pce_svn=int.from_bytes(raw[size + 16 : size + 18], "little"),
        pce_id=raw[size + 18 : size + 20],
    )


def _fits(end: int, limit: int, what: str) -> None:
    if end > limit:
        refuse(
            f"the quote ends inside its {what}",
            check=f"length of the {what}",
            expected=f"at most {limit} bytes",
            seen=f"{end} bytes",
            remedy="the evidence was cut or altered on its way; collect it again",
        )


def _fills(end: int, limit: int, what: str) -> None:
    if end != limit:
        refuse(
            f"{limit - end} bytes are left over in the {what}",
            check=f"{what} filled exactly",
            expected=f"{end} bytes",
            seen=f"{limit} bytes",
            remedy="the evidence was altered on its way; collect it again",
        )


def _parse_qe_part(raw: bytes, at: int, end: int, signature: bytes, key: bytes) -> SignatureData:
    """The QE part in `raw[at:end]`, which it must fill exactly."""
    _fits(at + 450, end, "quoting enclave's report")
    auth_at = at + 450
    auth_size = raw[auth_at - 2] | raw[auth_at - 1] << 8
    kind_at = auth_at + auth_size
    _fits(kind_at + 6, end, "QE authentication data")
    kind = raw[kind_at] | raw[kind_at + 1] << 8
    if not CertificationType.PPID_PLAIN <= kind <= CertificationType.PCK_CHAIN:
        refuse(
            f"certification data of type {kind} does not lead to a platform certificate",
            check="certification data type",
            expected="1 to 5",
            seen=kind,
            remedy="register the platform, so that its quotes carry the PCK certificate chain (type 5)",
        )
    data_at = kind_at + 6
    size = int.from_bytes(raw[kind_at + 2 : data_at], "little")
    _fits(data_at + size, end, "certification data")
    _fills(data_at + size, end, "signature data")
    return SignatureData(
        signature=signature,
        attestation_key=key,
        qe_report=EnclaveReport(raw[at : at + REPORT_BYTES]),
        qe_report_signature=raw[at + 384 : at + 448],
        qe_auth_data=raw[auth_at:kind_at],
        certification_type=kind,
        certification_data=raw[data_at : data_at + size],
    )


def _parse_signature_data(version: int, raw: bytes, at: int, end: int) -> SignatureData:
    _fits(at + 134, end, "signature data")
    signature, key = raw[at : at + 64], raw[at + 64 : at + 128]
    if version == 3:
        return _parse_qe_part(raw, at + 128, end, signature, key)
    kind = raw[at + 128] | raw[at + 129] << 8
    if kind != CertificationType.QE_REPORT:
        refuse(
            f"quote version {version} has certification data of type {kind} outside",
            check="outer certification data type",
            expected=int(CertificationType.QE_REPORT),
            seen=kind,
        )
    size = int.from_bytes(raw[at + 130 : at + 134], "little")
    _fits(at + 134 + size, end, "QE report certification data")
    _fills(at + 134 + size, end, "QE report certification data")
    return _parse_qe_part(raw, at + 134, at + 134 + size, signature, key)


def _check_trailing(raw: bytes, end: int) -> int:
    padding = len(raw) - end
    if padding and any(raw[end:]):
        refuse(
            f"{padding} bytes follow the quote, and they are not zero padding",
            check="trailing bytes",
            expected="none, or zeros",
            seen=f"{padding} bytes",
            remedy="give the quote alone, without what stands behind it in the file",
        )
    return padding


def check_header(header: QuoteHeader) -> None:
    """Refuse a version, key type, TEE type or quoting enclave vendor that cannot be judged."""
    version = header.version
    if version not in (3, 4, 5):
        refuse(f"quote version {version} is not known", check="quote version", expected="3, 4 or 5", seen=version)
    if header.key_type != KEY_ECDSA_P256:
        refuse(
            f"attestation key type {header.key_type} is not supported",
            check="attestation key type",
            expected="2 (ECDSA P-256)",
            seen=header.key_type,
        )
    tee = header.tee_type
    if tee not in ((TEE_SGX,) if version == 3 else (TEE_SGX, TEE_TDX)):
        refuse(
            f"TEE type {tee:#x} is not one of quote version {version}",
            check="TEE type",
            expected="0" if version == 3 else "0 (SGX) or 0x81 (TDX)",
            seen=f"{tee:#x}",
        )
    if header.qe_vendor_id != QE_VENDOR_INTEL:
        refuse(
            "the quoting enclave is not Intel's",
            check="QE vendor",
            expected=QE_VENDOR_INTEL.hex(),
            seen=header.qe_vendor_id.hex(),
        )


def unpack(raw: bytes) -> tuple[QuoteHeader, bytes, SignatureData, int]:
    """Take a quote apart: header, body, signature data, and the number of zero bytes behind it."""
    if len(raw) > MAX_QUOTE_BYTES:
        refuse(
            f"a quote has at most {MAX_QUOTE_BYTES} bytes, got {len(raw)}",
            check="size of the quote",
            expected=f"at most {MAX_QUOTE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
        )
    raw = bytes(raw)
    _fits(HEADER_BYTES + 6, len(raw), "header")
    header = QuoteHeader(raw[:HEADER_BYTES])
    check_header(header)
    version, at = header.version, HEADER_BYTES
    if version == 5:
        kind = raw[48] | raw[49] << 8
        size = int.from_bytes(raw[50:54], "little")
        if kind not in BODY_BYTES or (kind == BODY_SGX) != (header.tee_type == TEE_SGX):
            refuse(
                f"body type {kind} does not go with TEE type {header.tee_type:#x}",
                check="body type",
                expected="1 with SGX; 2, 3 or 4 with TDX",
                seen=kind,
            )
        if size != BODY_BYTES[kind]:
            refuse(
                f"body type {kind} has {BODY_BYTES[kind]} bytes, the quote says {size}",
                check="body size",
                expected=BODY_BYTES[kind],
                seen=size,
            )
        at = 54
    else:
        size = BODY_BYTES[BODY_SGX if header.tee_type == TEE_SGX else BODY_TD10]
    end = at + size
    _fits(end + 4, len(raw), "body")
    signature_size = int.from_bytes(raw[end : end + 4], "little")
    signature_at = end + 4
    _fits(signature_at + signature_size, len(raw), "signature data")
    signature = _parse_signature_data(version, raw, signature_at, signature_at + signature_size)
    return header, raw[at:end], signature, _check_trailing(raw, signature_at + signature_size)


def signed_part(header: QuoteHeader, body: bytes, body_type: int) -> bytes:
    """The bytes under the attestation key's signature."""
    if header.version == 5:
        return header.raw + body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little") + body
    return header.raw + body


def put_together(signed: bytes, signature: SignatureData, version: int, padding: int) -> bytes:
    """The quote: the signed part, the signature data with its length, zero padding."""
    data = signature.to_bytes(version)
    return signed + len(data).to_bytes(4, "little") + data + bytes(padding)
