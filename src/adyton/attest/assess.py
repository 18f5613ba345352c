"""Verify and appraise in one call. The result has every check, not only the first refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from adyton.attest import amd, dcap
from adyton.attest.appraise import appraise
from adyton.attest.azure import verify as azure
from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.checks import Checks
from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral
from adyton.attest.nitro import verify as nitro
from adyton.attest.nitro.document import NitroDocument
from adyton.attest.snp import SNPReport
from adyton.attest.tpm import verify as tpm
from adyton.attest.tpm.document import TPMQuote
from adyton.check import Check
from adyton.errors import AppraisalFailed, EvidenceError, Mismatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from adyton.attest.appraise import Claims
    from adyton.attest.evidence import Evidence
    from adyton.attest.evidence_policy import Policy
    from adyton.attest.report import VerifiedReport
    from adyton.attest.roots import TrustRoots

_OF_COLLATERAL: Final = (
    "collateral",
    "parse of the collateral",
    "TCB info",
    "QE identity",
    "root CA CRL",
    "PCK CRL",
    "AMD CRL",
    "parse of the TCB info",
    "parse of the QE identity",
    "parse of the root CA CRL",
    "parse of the PCK CRL",
    "parse of the AMD CRL",
    "VCEK: valid now",
    "VLEK: valid now",
    "ASK: valid now",
    "ARK: valid now",
    "TCB: certificate is for the reported one",
    "chip id: certificate is for this chip",
    "product",
)
"""How the names of checks begin that judge the collateral: where one fails, nothing is known of the evidence."""

Verdict = Literal["accepted", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The result: the claims or the refusal, and every check."""

    evidence: Evidence
    now: datetime
    report: VerifiedReport | None
    """None where the evidence is not genuine."""
    claims: Claims | None
    """None where it was refused."""
    error: EvidenceError | None
    checks: tuple[Check, ...]
    report_data: bytes | None
    """The 64 bytes to which the evidence should be bound. None where nothing was compared."""
    policy: Policy

    @property
    def verdict(self) -> Verdict:
        """The outcome."""
        return "accepted" if self.claims is not None else "refused"

    @property
    def genuine(self) -> bool | None:
        """Whether the evidence is genuine. None where the collateral is at fault, so that nobody can say."""
        if self.report is not None:
            return True
        names = [check.name for check in self.failed]
        return None if names and all(name.startswith(_OF_COLLATERAL) for name in names) else False

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if not check.ok)


def verify_evidence(
    evidence: Evidence,
    collateral: Collateral | AMDCollateral | NoCollateral,
    roots: TrustRoots,
    now: datetime,
    *,
    cache: dcap.Cache | None = None,
    checks: Checks | None = None,
) -> VerifiedReport:
    """Verify evidence of any kind with its vendor's collateral. Raises an EvidenceError that names the step."""
    if isinstance(evidence, NitroDocument):
        return nitro.verify(evidence, roots, now, checks=checks)
    if isinstance(evidence, TPMQuote):
        return tpm.verify(evidence, roots, now, checks=checks)
    if isinstance(evidence, AzureEvidence):
        return azure.verify(evidence, collateral, roots, now, cache=cache, checks=checks)
    if isinstance(evidence, SNPReport):
        if isinstance(collateral, AMDCollateral):
            return amd.verify(evidence, collateral, roots, now, checks=checks)
    elif isinstance(collateral, Collateral):
        return dcap.verify(evidence, collateral, roots, now, cache=cache, checks=checks)
    raise Mismatch(
        "the collateral is of another vendor than the evidence",
        check="collateral: vendor",
        expected="AMD" if isinstance(evidence, SNPReport) else "Intel",
        seen={AMDCollateral: "AMD", NoCollateral: "none"}.get(type(collateral), "Intel"),
        remedy="fetch the collateral of this evidence: adyton collateral fetch --for EVIDENCE",
    )


def assess(
    evidence: Evidence,
    collateral: Collateral | AMDCollateral | NoCollateral,
    roots: TrustRoots,
    policy: Policy,
    now: datetime,
    *,
    report_data: bytes | None,
    cache: dcap.Cache | None = None,
    completed: Callable[[VerifiedReport], VerifiedReport] = lambda report: report,
) -> Assessment:
    """Verify and appraise. A refusal is part of the result instead of being raised.

    `completed` adds the rest of a bundle, such as the devices, to a report that was verified (`attest.complete`).
    """
    checks = Checks()
    report: VerifiedReport | None = None
    claims: Claims | None = None
    refusal: EvidenceError | None = None
    try:
        report = completed(verify_evidence(evidence, collateral, roots, now, cache=cache, checks=checks))
        claims = appraise(report, policy, now, report_data=report_data)
        checks.done += claims.checks
    except AppraisalFailed as error:
        refusal = error
        checks.done += error.checks
    except EvidenceError as error:
        refusal = error
        if all(check.ok for check in checks.done):
            first = next(iter(error.failed), Check("", None, None, ok=False))
            checks.done.append(first._replace(name=first.name or "evidence"))
    return Assessment(
        evidence=evidence,
        now=now,
        report=report,
        claims=claims,
        error=refusal,
        checks=tuple(checks.done),
        report_data=report_data,
        policy=policy,
    )
