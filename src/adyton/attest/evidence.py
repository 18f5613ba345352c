"""Which kind of evidence some bytes are, decided by their content."""

from __future__ import annotations

from typing import TypeAlias

from adyton.attest import sgx, snp, tdx
from adyton.attest.azure.evidence import AzureEvidence, evidence_from_document, is_body
from adyton.attest.layout import MAX_QUOTE_BYTES
from adyton.attest.quote import TEE_TDX, refuse
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote
from adyton.attest.tpm.document import FORMAT, MAX_DOCUMENT_BYTES, TPMQuote, quote_from_document
from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json_object

HardwareEvidence: TypeAlias = SGXQuote | TDXQuote | SNPReport
"""What a processor signed, in its maker's form."""

TPMEvidence: TypeAlias = TPMQuote | AzureEvidence
"""What a TPM signed: it names PCRs, its report data are the nonce of a quote, and an event log may stand beside it."""

Evidence: TypeAlias = HardwareEvidence | TPMEvidence


def hardware_part(evidence: Evidence) -> HardwareEvidence | None:
    """The part of evidence that is judged by a processor maker's collateral. None for a TPM alone."""
    if isinstance(evidence, TPMQuote):
        return None
    return evidence.hardware if isinstance(evidence, AzureEvidence) else evidence


def parse_evidence(raw: bytes) -> Evidence:
    """Parse an SGX or TDX quote, a SEV-SNP report, a TPM quote or Azure's evidence. Raises MalformedQuote.

    A quote says its QE vendor at 12..27. A report has 1184 bytes and a version in its first four. The others are JSON.
    """
    if raw[:16].lstrip()[:1] == b"{":
        return _parse_json(raw)
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


def _parse_json(raw: bytes) -> TPMEvidence:
    document = parse_json_object(raw, what="evidence", refuse=MalformedQuote, limit_bytes=MAX_DOCUMENT_BYTES)
    if "format" in document:
        return quote_from_document(document)
    if is_body(document):
        return evidence_from_document(document)
    raise MalformedQuote(
        "the JSON is no evidence in a form that is known",
        check="form of the evidence",
        expected=f"{FORMAT}, or a body with hcl_report and tpm_quote (Azure)",
        seen=", ".join(sorted(document))[:160] or "an empty object",
    )
