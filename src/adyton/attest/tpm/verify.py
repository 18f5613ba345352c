"""Verify a TPM's quote: document, roots and time go in, a VerifiedReport or a refusal comes out.

The steps, with one function each (the parsers check the structure):

1  the attestation key's certificate chain up to a pinned root, and its validity
2  the attestation key's kind and size
3  the signature over the quoted message
4  the PCR selection: all 24 of the SHA-256 bank
5  the PCR digest

What the PCRs hold, and the nonce, are judged in the appraisal. A TPM encrypts no memory: whoever runs the machine can
read it. Source: TCG, Trusted Platform Module Library, Part 3, 18.4 TPM2_Quote.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from adyton.attest.checks import Checks
from adyton.attest.report import VERIFIER, VerifiedReport
from adyton.attest.status import TCBStatus
from adyton.attest.tpm.ak_chain import check_ak_chain
from adyton.attest.tpm.quote import check_key, check_pcr_digest, check_selection, check_signature
from adyton.attest.validity import check_validity
from adyton.errors import UsageError
from adyton.values import Measurement

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.attest.roots import TrustRoots
    from adyton.attest.tpm.document import TPMQuote


def verify(quote: TPMQuote, roots: TrustRoots, now: datetime, *, checks: Checks | None = None) -> VerifiedReport:
    """Verify a TPM quote at the time `now` (aware). Raises an EvidenceError that names the step.

    The report's `measurement` is the digest over all PCRs, and its `report_data` what the TPM signed along.
    """
    if now.tzinfo is None:
        raise UsageError("the time of verification needs a time zone")
    checks = Checks() if checks is None else checks
    ak = check_ak_chain(checks, quote.ak_certificates, roots)
    check_validity(checks, ak.windows, now)
    check_key(checks, ak.key)
    check_signature(checks, ak.key, quote.signature, quote.message)
    check_selection(checks, quote.attest)
    check_pcr_digest(checks, quote.attest, quote.pcrs)
    attest = quote.attest
    return VerifiedReport(
        tee="sim-tpm" if ak.simulated else "tpm",
        status=TCBStatus.NOT_STATED,
        part_statuses=MappingProxyType({}),
        advisories=(),
        measurement=Measurement(attest.pcr_digest),
        mrsigner=None,
        isv_prod_id=None,
        isv_svn=None,
        debug=False,
        report_data=attest.extra_data,
        root_fingerprint=ak.root,
        tcb_date=None,
        evaluation_number=None,
        issued_at=None,
        expires_at=min(window.not_after for window in ak.windows),
        verified_at=now,
        platform=MappingProxyType(
            {
                "tpm_firmware": f"{attest.firmware_version:#x}",
                "boots": attest.reset_count,
                "resumes": attest.restart_count,
                "clock_safe": attest.safe,
            }
        ),
        revocation_checked=False,
        checks=tuple(checks.done),
        evidence=quote,
        made_by=VERIFIER,
    )
