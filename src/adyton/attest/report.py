"""The result of a verification: a report that only the verifiers (`dcap`, `amd`, `nitro`) can make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.nitro.document import NitroDocument
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote, workload_rtmr3
from adyton.errors import UsageError
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from adyton.attest.snp import SNPReport
    from adyton.attest.status import TCBStatus
    from adyton.check import Check

VERIFIER: Final = object()
"""The token of the verifiers. Without it nobody can make a VerifiedReport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """Evidence with verified signatures, chains, validity and identities. No policy was applied yet."""

    tee: str
    """"sgx", "tdx", "snp", "nitro", "nitrotpm", "sim" or "sim-tdx"."""
    status: TCBStatus
    part_statuses: Mapping[str, TCBStatus]
    """The parts of `status`: sgx, tdx, module, qe, as far as they apply."""
    advisories: tuple[str, ...]
    measurement: Measurement
    """MRENCLAVE, MRTD, SNP's launch measurement, a Nitro Enclave's PCR 0, or a NitroTPM's PCR 4."""
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
    """Facts about the platform.

    Intel: FMSPC, PPID, SGX type, CRL numbers. AMD: product, TCB versions, chip id. Amazon: module, document time.
    """
    revocation_checked: bool
    checks: tuple[Check, ...]
    evidence: SGXQuote | TDXQuote | SNPReport | NitroDocument
    made_by: object = field(repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.made_by is not VERIFIER:
            raise UsageError("a VerifiedReport is made by a verifier only")

    @property
    def tee_with_root(self) -> str:
        """The TEE as a policy names it: simulated ones with the fingerprint of their root."""
        return f"{self.tee}:{self.root_fingerprint}" if self.tee.startswith("sim") else self.tee

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes] | None:
        """TDX's run-time measurement registers."""
        return self.evidence.report.rtmrs if isinstance(self.evidence, TDXQuote) else None

    @property
    def pcrs(self) -> Mapping[int, bytes] | None:
        """The registers of a TPM or a Nitro Enclave, by number. None where the evidence has none."""
        return self.evidence.pcrs if isinstance(self.evidence, NitroDocument) else None

    def carries_workload(self, workload: Measurement) -> bool:
        """Whether the evidence itself names this workload: as MRENCLAVE (SGX), or extended into RTMR3 (TDX).

        It is never true for SEV-SNP, which has no register for it: there report data bind the workload. Nor is it for
        Nitro documents.
        """
        if isinstance(self.evidence, SGXQuote):
            return self.measurement == workload
        if isinstance(self.evidence, TDXQuote):
            return self.evidence.report.rtmrs[3] == workload_rtmr3(workload).raw
        return False
