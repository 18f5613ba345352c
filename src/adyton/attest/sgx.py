"""SGX quotes of versions 3, 4 and 5: bytes to values and back. Nothing is verified here."""

from __future__ import annotations

from dataclasses import dataclass

from adyton.attest.enclave import EnclaveReport
from adyton.attest.quote import BODY_SGX, TEE_SGX, QuoteHeader, SignatureData, put_together, refuse, signed_part, unpack


@dataclass(frozen=True, slots=True)
class SGXQuote:
    """A parsed SGX quote. Everything in it is unverified."""

    header: QuoteHeader
    report: EnclaveReport
    signature: SignatureData
    padding: int = 0
    """Zero bytes that followed the quote."""

    @property
    def version(self) -> int:
        """Quote version: 3, 4 or 5."""
        return self.header.version

    @property
    def signed_part(self) -> bytes:
        """The bytes under the attestation key's signature."""
        return signed_part(self.header, self.report.raw, BODY_SGX)

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave chose."""
        return self.report.report_data

    def to_bytes(self) -> bytes:
        """The quote as it was parsed, byte for byte."""
        return put_together(self.signed_part, self.signature, self.version, self.padding)


def parse_quote(raw: bytes) -> SGXQuote:
    """Parse an SGX quote. Raises MalformedQuote."""
    header, body, signature, padding = unpack(raw)
    if header.tee_type != TEE_SGX:
        refuse("this is a quote of TDX, not of SGX", check="TEE type", expected="0 (SGX)", seen=f"{header.tee_type:#x}")
    return SGXQuote(header, EnclaveReport(body), signature, padding)
