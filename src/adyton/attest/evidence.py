"""Which kind of evidence some bytes are, decided by their content."""

from __future__ import annotations

from typing import TypeAlias

from adyton.attest import sgx, snp, tdx
from adyton.attest.layout import MAX_QUOTE_BYTES
from adyton.attest.quote import TEE_TDX, refuse
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote

Evidence: TypeAlias = SGXQuote | TDXQuote | SNPReport


def parse_evidence(raw: bytes) -> Evidence:
    """Parse an SGX quote, a TDX quote or a SEV-SNP report. Raises MalformedQuote.

    A quote says its QE vendor at 12..27. A report has 1184 bytes and a version in its first four.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        refuse(
            f"evidence has at most {MAX_QUOTE_BYTES} bytes, got {len(raw)}",
            check="size of the evidence",
            expected=f"at most {MAX_QUOTE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
        )
    if len(raw) == snp.REPORT_BYTES and int.from_bytes(raw[:4], "little") in (2, 3, 4, 5):
        return snp.parse_report(raw)
    if len(raw) >= 8 and int.from_bytes(raw[4:8], "little") == TEE_TDX:
        return tdx.parse_quote(raw)
    return sgx.parse_quote(raw)
