"""Which kind of evidence some bytes are, decided by their content."""

from __future__ import annotations

from typing import Final, TypeAlias

from adyton.attest import sgx, snp, tdx
from adyton.attest.layout import MAX_QUOTE_BYTES
from adyton.attest.nitro.document import NitroDocument, is_document, parse_document
from adyton.attest.quote import TEE_TDX, refuse
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote

_LOOK_BYTES: Final = 32
"""So many printable characters at the start are text: all kinds of evidence have a byte there that is none."""

Evidence: TypeAlias = SGXQuote | TDXQuote | SNPReport | NitroDocument


def parse_evidence(raw: bytes) -> Evidence:
    """Parse an SGX quote, a TDX quote, a SEV-SNP report or a Nitro document. Raises MalformedQuote.

    A quote says its QE vendor at 12..27. A report has 1184 bytes and a version in its first four; a table of
    certificates may follow. A Nitro document begins with COSE's protected header.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        refuse(
            f"evidence has at most {MAX_QUOTE_BYTES} bytes, got {len(raw)}",
            check="size of the evidence",
            expected=f"at most {MAX_QUOTE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
        )
    if is_document(raw):
        return parse_document(raw)
    if raw and raw[:_LOOK_BYTES].isascii() and raw[:_LOOK_BYTES].decode("ascii").isprintable():
        refuse(
            "evidence is binary, and this is text",
            check="form of the evidence",
            expected="binary evidence",
            seen="text",
            remedy="decode it first; `adyton verify` reads hex, base64 and JSON envelopes by itself",
        )
    if len(raw) >= snp.REPORT_BYTES and int.from_bytes(raw[:4], "little") in (2, 3, 4, 5):
        return snp.parse_report(raw) if len(raw) == snp.REPORT_BYTES else snp.parse_extended_report(raw)
    if len(raw) >= 8 and int.from_bytes(raw[4:8], "little") == TEE_TDX:
        return tdx.parse_quote(raw)
    return sgx.parse_quote(raw)
