"""The result of a verification: a report that only the verifiers (`dcap`, `amd`, `tpm`, `azure`) can make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.devices import NO_DEVICES, device_digest
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote, workload_rtmr3
from adyton.attest.tpm.document import TPMQuote
from adyton.attest.workload_register import workload_register
from adyton.errors import UsageError
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from adyton.attest.devices import Device
    from adyton.attest.snp import SNPReport
    from adyton.attest.status import TCBStatus
    from adyton.check import Check

WORKLOAD_PCR: Final = 15
"""The PCR that holds the workload register where a TPM measures."""

VERIFIER: Final = object()
"""The token of the verifiers. Without it nobody can make a VerifiedReport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """Evidence with verified signatures, chains, validity and identities. No policy was applied yet."""

    tee: str
    """"sgx", "tdx", "snp", "tpm", "az-snp", "az-tdx", "sim", "sim-tdx" or "sim-tpm"."""
    status: TCBStatus
    part_statuses: Mapping[str, TCBStatus]
    """The parts of `status`: sgx, tdx, module, qe, as far as they apply."""
    advisories: tuple[str, ...]
    measurement: Measurement
    """MRENCLAVE, MRTD, SNP's launch measurement, or the digest over all PCRs of a TPM alone."""
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
    checks: tuple[Check, ...]
    evidence: SGXQuote | TDXQuote | SNPReport | TPMQuote | AzureEvidence
    devices: tuple[Device, ...] = ()
    """The GPUs whose evidence was verified with this evidence (`attest.bundle`)."""
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
        """The registers of a TPM, by number. None where the evidence has none."""
        if not isinstance(self.evidence, TPMQuote | AzureEvidence):
            return None
        return dict(enumerate(self.evidence.pcrs))

    def carries_workload(self, workload: Measurement) -> bool:
        """Whether the evidence itself names this workload, on a machine with exactly the verified devices."""
        return carries_workload(self.evidence, workload, device_digest(self.devices))


def carries_workload(
    evidence: SGXQuote | TDXQuote | SNPReport | TPMQuote | AzureEvidence,
    workload: Measurement,
    devices: bytes = NO_DEVICES,
) -> bool:
    """Whether evidence names this workload: as MRENCLAVE (SGX), or in the workload register with the device digest.

    It is never true for SEV-SNP, which has no register for it: there report data bind the workload.
    """
    if isinstance(evidence, SGXQuote):
        return evidence.report.mrenclave == workload.raw
    if isinstance(evidence, TDXQuote):
        return evidence.report.rtmrs[3] == workload_rtmr3(workload, devices).raw
    if isinstance(evidence, TPMQuote | AzureEvidence):
        return evidence.pcrs[WORKLOAD_PCR] == workload_register(workload, devices, bank="sha256")
    return False
