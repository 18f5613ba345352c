"""The result of a verification: a report that only `dcap.verify` and `amd.verify` can make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote, workload_rtmr3
from adyton.errors import UsageError
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from adyton.attest.shortfall import Shortfall
    from adyton.attest.snp import SNPReport
    from adyton.attest.status import TCBStatus
    from adyton.check import Check

VERIFIER: Final = object()
"""The token of the two verifiers. Without it nobody can make a VerifiedReport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """Evidence with verified signatures, chains, validity and identities. No policy was applied yet."""

    tee: str
    """"sgx", "tdx", "snp", "sim" or "sim-tdx"."""
    status: TCBStatus
    part_statuses: Mapping[str, TCBStatus]
    """The parts of `status`: sgx, tdx, module, qe, as far as they apply."""
    advisories: tuple[str, ...]
    measurement: Measurement
    """MRENCLAVE, MRTD, or SNP's launch measurement."""
    mrsigner: Digest | None
    isv_prod_id: int | None
    isv_svn: int | None
    debug: bool
    report_data: bytes
    root_fingerprint: Digest
    tcb_date: datetime | None
    """Date of the matched TCB level. None where no level matched or the vendor has none."""
    evaluation_number: int | None
    """The lower of TCB info's and QE identity's tcbEvaluationDataNumber."""
    issued_at: datetime | None
    """Oldest issue date of the TCB info, QE identity and CRLs."""
    expires_at: datetime
    """Earliest end of validity of all documents in use."""
    verified_at: datetime
    platform: Mapping[str, object]
    """Facts about the platform: FMSPC, PPID, SGX type, CRL numbers (Intel), or product, TCB versions, chip id (AMD)."""
    revocation_checked: bool
    shortfalls: tuple[Shortfall, ...] = ()
    """The security versions that the maker's tables call too low."""
    checks: tuple[Check, ...]
    evidence: SGXQuote | TDXQuote | SNPReport
    made_by: object = field(repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.made_by is not VERIFIER:
            raise UsageError("a VerifiedReport is made by dcap.verify or amd.verify only")

    @property
    def tee_with_root(self) -> str:
        """The TEE as a policy names it: simulated ones with the fingerprint of their root."""
        return f"{self.tee}:{self.root_fingerprint}" if self.tee.startswith("sim") else self.tee

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes] | None:
        """TDX's run-time measurement registers."""
        return self.evidence.report.rtmrs if isinstance(self.evidence, TDXQuote) else None

    def carries_workload(self, workload: Measurement) -> bool:
        """Whether the evidence itself names this workload: as MRENCLAVE (SGX), or extended into RTMR3 (TDX).

        It is never true for SEV-SNP, which has no register for it: there report data bind the workload.
        """
        if isinstance(self.evidence, SGXQuote):
            return self.measurement == workload
        if isinstance(self.evidence, TDXQuote):
            return self.evidence.report.rtmrs[3] == workload_rtmr3(workload).raw
        return False
