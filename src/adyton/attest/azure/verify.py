"""Verify evidence of an Azure confidential machine: evidence, collateral, roots and time go in, a report comes out.

The steps, with one function each (the parsers check the structure):

1  the attestation key in the runtime claims: RSA of 2048 bits or more, exponent 65537
2  the TPM quote's signature by that key
3  the TPM quote's PCR selection: all 24 of the SHA-256 bank
4  the TPM quote's PCR digest
5  the runtime claims are bound in the hardware report: all 64 bytes of its report data
6  version 2 only: the nonce stands in the runtime claims' user data, too
7  TDX: the TDREPORT of the paravisor is the one that was quoted
8  the hardware's evidence itself, by its maker's collateral (`attest.amd`, `attest.dcap`)
9  SEV-SNP: the report was asked for at VMPL 0, by the paravisor and not by the guest

The nonce, debug mode, the TCB and the PCRs are judged in the appraisal. Sources: Microsoft, "Azure confidential VMs:
guest attestation design"; the checks of step 5 (its second half), 3, 7 and 9 are left out by other verifiers.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from adyton.attest import amd, dcap
from adyton.attest.azure.hcl import TD_REPORT_FIELDS, TDREPORT
from adyton.attest.checks import Checks
from adyton.attest.collateral import AMDCollateral, Collateral
from adyton.attest.snp import SNPReport
from adyton.attest.tpm.quote import check_key, check_pcr_digest, check_selection, check_signature
from adyton.errors import Mismatch

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.attest.azure.evidence import AzureEvidence
    from adyton.attest.report import VerifiedReport
    from adyton.attest.roots import TrustRoots
    from adyton.attest.tdx import TDXQuote

_COMPARED: Final = tuple(name for name in TD_REPORT_FIELDS if name != "report_type")
_ALTERED: Final = "the parts of this evidence do not belong together: collect it again"


def _hardware_report_data(evidence: AzureEvidence) -> bytes:
    found = evidence.hcl.hardware
    return found.field("report_data") if isinstance(found, TDREPORT) else found.report_data


def check_claims_bound(checks: Checks, evidence: AzureEvidence) -> None:
    """Step 5: the hardware report names the runtime claims: their SHA-256, then 32 zeros."""
    wanted = hashlib.sha256(evidence.hcl.claims_json).digest() + bytes(32)
    seen = _hardware_report_data(evidence)
    checks.require(
        "runtime claims: bound in the hardware report",
        hmac.compare_digest(seen, wanted),
        expected=wanted,
        seen=seen,
        error=Mismatch,
        remedy="refuse the evidence: the attestation key is not the one that the hardware vouches for",
    )


def check_user_data(checks: Checks, evidence: AzureEvidence) -> None:
    """Step 6: in version 2 the user data of the runtime claims begin with the nonce."""
    if evidence.version != 2:
        return
    nonce, user_data = evidence.report_data, evidence.hcl.claims.user_data
    checks.require(
        "runtime claims: user data",
        bool(nonce) and user_data.startswith(nonce),
        expected=f"{nonce.hex() or 'a nonce'} at its beginning",
        seen=user_data,
        error=Mismatch,
        remedy=_ALTERED,
    )


def check_td_report(checks: Checks, report: TDREPORT, quote: TDXQuote) -> None:
    """Step 7: the quote says of the trust domain what the paravisor's TDREPORT says."""
    differing = [name for name in _COMPARED if report.field(name) != quote.report.field(name)]
    checks.require(
        "TDREPORT: the one that was quoted",
        not differing,
        expected="equal fields in the TDREPORT and in the quote",
        seen=", ".join(differing) or "equal fields",
        error=Mismatch,
        remedy=_ALTERED,
    )


def check_vmpl(checks: Checks, report: SNPReport) -> None:
    """Step 9: only the paravisor runs at VMPL 0; the guest above it could put any key into a report of its own."""
    checks.require(
        "paravisor's privilege level (VMPL)",
        report.number("vmpl") == 0,
        expected=0,
        seen=report.number("vmpl"),
        error=Mismatch,
        remedy="refuse the evidence: the guest asked for this report itself",
    )


def _verify_hardware(
    evidence: AzureEvidence,
    collateral: object,
    roots: TrustRoots,
    now: datetime,
    checks: Checks,
    cache: dcap.Cache | None,
) -> VerifiedReport:
    """Step 8. Simulated roots do not count here: there is no simulated Azure."""
    real, hardware = replace(roots, sim=frozenset()), evidence.hardware
    if isinstance(hardware, SNPReport):
        if isinstance(collateral, AMDCollateral):
            return amd.verify(hardware, collateral, real, now, checks=checks)
    elif isinstance(collateral, Collateral):
        return dcap.verify(hardware, collateral, real, now, cache=cache, checks=checks)
    raise Mismatch(
        "the collateral is of another vendor than the evidence",
        check="collateral: vendor",
        expected="AMD" if isinstance(hardware, SNPReport) else "Intel",
        seen=type(collateral).__name__,
        remedy="fetch the collateral of this evidence: adyton collateral fetch --for EVIDENCE",
    )


def verify(
    evidence: AzureEvidence,
    collateral: object,
    roots: TrustRoots,
    now: datetime,
    *,
    cache: dcap.Cache | None = None,
    checks: Checks | None = None,
) -> VerifiedReport:
    """Verify Azure's evidence at the time `now` (aware). Raises an EvidenceError that names the step.

    The report's `measurement` is the paravisor's, and its `report_data` what the TPM signed along.
    """
    checks = Checks() if checks is None else checks
    claims, key = evidence.hcl.claims, evidence.hcl.claims.attestation_key
    check_key(checks, key)
    check_signature(checks, key, evidence.signature, evidence.message)
    check_selection(checks, evidence.attest)
    check_pcr_digest(checks, evidence.attest, evidence.pcrs)
    check_claims_bound(checks, evidence)
    check_user_data(checks, evidence)
    if isinstance(evidence.hcl.hardware, TDREPORT) and not isinstance(evidence.hardware, SNPReport):
        check_td_report(checks, evidence.hcl.hardware, evidence.hardware)
    found = _verify_hardware(evidence, collateral, roots, now, checks, cache)
    if isinstance(evidence.hardware, SNPReport):
        check_vmpl(checks, evidence.hardware)
    facts = {"secure_boot": claims.secure_boot, "console_enabled": claims.console_enabled, "vm_id": claims.vm_id}
    return replace(
        found,
        tee=f"az-{found.tee}",
        report_data=evidence.report_data,
        platform=MappingProxyType({**found.platform, **facts}),
        checks=tuple(checks.done),
        evidence=evidence,
    )
