"""Judge a boot that a TPM measured, a machine below Microsoft's paravisor, and who pins the host's ACPI tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.policy.judge_amd import judge_snp
from adyton.attest.policy.judge_intel import judge_tdx
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote
from adyton.attest.tpm import pcr_policy

if TYPE_CHECKING:
    from adyton.attest.evidence_policy import Policy
    from adyton.attest.policy.judgement import Judgement
    from adyton.attest.policy.rules import SNPRules
    from adyton.attest.report import VerifiedReport
    from adyton.attest.tpm.document import TPMQuote

ACPI_CHECK: Final = "ACPI tables of the host"
PARAVISOR_CHECK: Final = "paravisor: named"
PARAVISOR_EXPECTED: Final = {
    "az-snp": "a policy that names it: its launch digest, or the key that signed it (snp.id_key_digests)",
    "az-tdx": "a policy that names it: its MRTD",
}


def judge_tpm(to: Judgement, evidence: TPMQuote | AzureEvidence, report: VerifiedReport, policy: Policy) -> None:
    """A guest that a TPM measures: the root of a bare TPM, the boot by its event log, and the workload in PCR 15."""
    if report.tee == "tpm":
        to.require(
            "AK root: named",
            report.root_fingerprint in policy.tpm_roots,
            expected=policy.tpm_roots or "a root in the policy's tpm_roots",
            seen=report.root_fingerprint,
            remedy="name the root of this TPM in tpm_roots, in the same alternative of the policy as its guest",
        )
    if policy.any_program and not policy.boot_applications and not policy.pcrs:
        return
    to.checks += pcr_policy.judge(
        report.pcrs or {},
        evidence.event_log,
        boot_applications=policy.boot_applications,
        values=policy.pcrs,
    )
    to.require(
        "workload: named",
        bool(policy.workloads) or policy.any_program,
        expected="a policy that names the workload in PCR 15",
        seen=f"{len(policy.workloads)} workloads",
        remedy="add the workload measurement (adyton build prints it) to the policy's `workloads`",
    )


def judge_no_pcrs(to: Judgement, policy: Policy) -> None:
    """Evidence without PCRs never meets a policy that asks for some."""
    if policy.pcrs or policy.boot_applications:
        to.require(
            "boot applications",
            False,
            expected="evidence of a TPM, which has the PCRs that the policy names",
            seen="evidence without PCRs",
            remedy="put rules for PCRs into an alternative (any_of) of their own",
        )


def judge_azure(to: Judgement, evidence: AzureEvidence, report: VerifiedReport, policy: Policy) -> None:
    """Microsoft's paravisor, and the hardware below it by the rules of that hardware.

    The paravisor vouches for the TPM's key. Whoever has a confidential machine can start software of his own in its
    place, which vouches for a key of his own, with any PCRs. So the paravisor must be named.
    """
    to.require(
        PARAVISOR_CHECK,
        bool(policy.measurements) or names_id_key(policy.snp, report.tee) or policy.any_program,
        expected=PARAVISOR_EXPECTED[report.tee],
        seen="none: anybody's software in its place could make up the TPM and all PCRs",
        remedy="name Microsoft's paravisor in the policy: `measurements`, or for az-snp snp.id_key_digests",
    )
    if isinstance(evidence.hardware, TDXQuote):
        judge_tdx(to, evidence.hardware, report, policy)
    else:
        judge_snp(to, evidence.hardware, report, policy)


def names_id_key(rules: SNPRules, tee: str) -> bool:
    """Whether the rules say who signed a paravisor on SEV-SNP. Zeros stand for nobody, and pin nothing."""
    keys = rules.id_key_digests or rules.author_key_digests
    return tee == "az-snp" and bool(keys) and all(any(key) for key in keys)


def judge_acpi(to: Judgement, report: VerifiedReport, policy: Policy) -> None:
    """Say in every verdict where nothing pins the ACPI tables. It is no reason to refuse: the policy left them open."""
    if isinstance(report.evidence, SNPReport) or (isinstance(report.evidence, TDXQuote) and not policy.rtmr0):
        to.require(
            ACPI_CHECK,
            True,
            expected="pinned (RTMR0), or left open by the policy",
            seen="left open: the host writes them, and code in them runs in the guest's kernel",
            remedy="name rtmr0 in the policy; nothing in SEV-SNP's evidence covers them",
        )
