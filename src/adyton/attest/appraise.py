"""Appraisal: compare a verified report with a policy. The result is claims, or a refusal with every reason.

Verification stops at the first failure. Appraisal judges every requirement, so that a person sees at once all that has
to be repaired.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.nitro.document import NitroDocument
from adyton.attest.nitro.verify import PROGRAM_PCR
from adyton.attest.nvidia.gpu_policy import judge_gpus
from adyton.attest.policy.judge_amd import judge_snp
from adyton.attest.policy.judge_boot import judge_acpi, judge_azure, judge_no_pcrs, judge_tpm
from adyton.attest.policy.judge_hosts import judge_hosts
from adyton.attest.policy.judge_intel import PROGRAM_REMEDY, SERVICING_COSTS, SERVICING_ENDED, judge_sgx, judge_tdx
from adyton.attest.policy.judge_nitro import judge_nitro
from adyton.attest.policy.judgement import Judgement, Warned
from adyton.attest.policy.profile import judge_profile
from adyton.attest.report import WORKLOAD_PCR
from adyton.attest.report_data import REPORT_DATA_BYTES
from adyton.attest.sgx import SGXQuote
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.attest.tdx import TDXQuote
from adyton.attest.tpm.document import TPMQuote
from adyton.check import Check
from adyton.dates import is_over
from adyton.errors import AppraisalFailed, UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.attest.policy.rules import Exemption
    from adyton.attest.report import VerifiedReport
    from adyton.values import Measurement

__all__ = ["Claims", "Policy", "appraise"]

_APPRAISER: Final = object()
_MAX_SHORTFALLS: Final = 4
"""Most versions that one refusal names. All of them are in `VerifiedReport.shortfalls`."""

_REMEDY_TCB: Final = {
    TCBStatus.SW_HARDENING_NEEDED: "accept the advisories by name in the policy once the program has the mitigations",
    TCBStatus.CONFIGURATION_NEEDED: "change the BIOS setting that the advisories name, or accept them in the policy",
    TCBStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: (
        "change the BIOS setting that the advisories name and harden the program, or accept them in the policy"
    ),
    TCBStatus.OUT_OF_DATE: "update BIOS and microcode (for TDX also the TDX module), then collect new evidence",
    TCBStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: "update BIOS and microcode, change the settings the advisories name",
    TCBStatus.TD_RELAUNCH_ADVISED: "restart the TD: it was started under an older TDX module than the one loaded now",
    TCBStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED: "restart the TD and change the settings the advisories name",
    TCBStatus.REVOKED: "never trust this platform again: use another machine",
    TCBStatus.NOT_SUPPORTED: "the platform is older than anything Intel knows: update BIOS, microcode and TDX module",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Evidence that a policy has accepted. Only `appraise` can make it."""

    report: VerifiedReport
    tee: str
    """As in the policy: "sgx", "tdx", "snp", "sim:<root>" or "sim-tdx:<root>"."""
    status: TCBStatus
    advisories: tuple[str, ...]
    exemptions: tuple[Exemption, ...]
    """The exemptions that were needed."""
    warned: tuple[Warned, ...]
    """What the policy accepts and its owner should see."""
    measurement: Measurement
    workload: Measurement | None
    """The workload that the evidence names, where the policy asked for one."""
    bound: bool
    """Whether report data was compared."""
    valid_until: datetime
    """The end of this appraisal's validity: the earliest end of collateral, exemptions and list entries."""
    checks: tuple[Check, ...]
    made_by: object = field(repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.made_by is not _APPRAISER:
            raise UsageError("Claims are made by appraise only")


def _judge_tee(to: Judgement, report: VerifiedReport, policy: Policy) -> None:
    to.require(
        "TEE",
        report.tee_with_root in policy.tees,
        expected=policy.tees,
        seen=report.tee_with_root,
        remedy="run on a TEE that the policy names, or name this one in the policy's `tees`"
        if policy.tees
        else f'say in a policy what you expect, such as tees = ["{report.tee_with_root}"] and `measurements`',
    )


def _exemption(policy: Policy, name: str, now: datetime) -> Exemption | None:
    return next((item for item in policy.exemptions if item.name == name and not is_over(item.until, now)), None)


def _judge_status(to: Judgement, report: VerifiedReport, policy: Policy, now: datetime) -> None:
    status = report.status
    if status is TCBStatus.NOT_STATED:
        return
    exemption = _exemption(policy, status.value, now)
    accepted = status in policy.statuses
    if not accepted and exemption is not None:
        to.used.append(exemption)
    to.require(
        "TCB status",
        status not in NEVER_ACCEPTED and (accepted or exemption is not None),
        expected=policy.statuses,
        seen=_short(report),
        remedy=_repair(report),
    )
    if status is TCBStatus.UP_TO_DATE or status in NEVER_ACCEPTED:
        return
    for advisory in report.advisories:
        if advisory in (SERVICING_COSTS, SERVICING_ENDED):  # notices of the maker's, judged for themselves
            continue
        exemption = _exemption(policy, advisory, now)
        if exemption is not None:
            to.used.append(exemption)
        to.require(
            f"advisory {advisory}",
            exemption is not None,
            expected="an exemption in the policy that has not ended",
            seen=_ended(policy, advisory),
            remedy=f"apply what {advisory} asks for, or exempt it in the policy with an owner and an end date",
        )


def _short(report: VerifiedReport) -> str:
    """The status, and the first of the versions that are short."""
    found = report.shortfalls
    more = len(found) - _MAX_SHORTFALLS
    parts = [report.status.value, *map(str, found[:_MAX_SHORTFALLS]), *([f"and {more} more"] if more > 0 else [])]
    return "; ".join(parts)


def _repair(report: VerifiedReport) -> str:
    """What repairs the parts that are short. Where no version is, the status says what to do."""
    remedies = dict.fromkeys(item.remedy for item in report.shortfalls)
    if not remedies or report.status in (TCBStatus.REVOKED, TCBStatus.TD_RELAUNCH_ADVISED):
        return _REMEDY_TCB.get(report.status, "update the platform")
    more = " and change the settings that the advisories name" if "Configuration" in report.status.value else ""
    return f"{', and '.join(remedies)}{more}; then collect new evidence"


def _ended(policy: Policy, name: str) -> str:
    ends = [item for item in policy.exemptions if item.name == name]
    return f"an exemption of {ends[-1].owner} that ended {ends[-1].until:%Y-%m-%d}" if ends else "none"


def _judge_debug(to: Judgement, report: VerifiedReport, policy: Policy) -> None:
    to.require(
        "debug",
        not report.debug or policy.allow_debug,
        expected="no",
        seen=report.debug,
        remedy="build and run the program without debug: whoever runs the machine can read a debug TEE's memory",
    )


def _judge_program(to: Judgement, report: VerifiedReport, policy: Policy) -> None:
    named = policy.names_program or (report.pcrs is not None and PROGRAM_PCR.get(report.tee) in policy.pcrs)
    to.require(
        "program",
        named or policy.any_program,
        expected="a policy that names the programs it accepts",
        seen="no measurement, workload or signer in the policy",
        remedy="add `measurements`, `workloads` or `signers` to the policy",
    )
    to.one_of("measurement", policy.measurements, report.measurement, remedy=PROGRAM_REMEDY)
    if policy.workloads:
        to.require(
            "workload",
            any(report.carries_workload(workload) for workload in policy.workloads),
            expected=policy.workloads,
            seen=_workload_seen(report),
            remedy=PROGRAM_REMEDY,
        )
    if policy.signers:
        to.require(
            "signer",
            any(rule.accepts(report.mrsigner, report.isv_prod_id, report.isv_svn) for rule in policy.signers),
            expected=[str(rule) for rule in policy.signers],
            seen=f"{report.mrsigner or 'none'}, product {report.isv_prod_id}, SVN {report.isv_svn}",
            remedy=PROGRAM_REMEDY,
        )


def _workload_seen(report: VerifiedReport) -> object:
    if report.pcrs is not None:
        return f"PCR {WORKLOAD_PCR} {report.pcrs.get(WORKLOAD_PCR, b'').hex() or 'absent'}"
    return report.rtmrs[3] if report.rtmrs else report.measurement


def _judge_freshness(to: Judgement, report: VerifiedReport, policy: Policy, now: datetime) -> None:
    to.require(
        "verified at the time of appraisal",
        abs(now - report.verified_at) <= timedelta(minutes=10),
        expected=now,
        seen=report.verified_at,
        remedy="verify the evidence again",
    )
    if policy.max_collateral_age_days is not None and report.issued_at is not None:
        to.require(
            "age of the collateral",
            now - report.issued_at <= timedelta(days=policy.max_collateral_age_days),
            expected=f"at most {policy.max_collateral_age_days} days",
            seen=f"{(now - report.issued_at).days} days",
            remedy="fetch the collateral again: adyton collateral fetch",
        )
    if policy.min_evaluation_number is not None and report.evaluation_number is not None:
        to.require(
            "TCB evaluation data number",
            report.evaluation_number >= policy.min_evaluation_number,
            expected=f"at least {policy.min_evaluation_number}",
            seen=report.evaluation_number,
            remedy="fetch newer collateral: adyton collateral fetch",
        )


def _judge_binding(to: Judgement, report: VerifiedReport, policy: Policy, report_data: bytes | None) -> None:
    if report_data is None:
        to.require(
            "report data",
            policy.allow_missing_report_data,
            expected="a value to compare with",
            seen="none was given",
            remedy="give what the evidence must be bound to (--report-data, --program-data): a copy of somebody else's"
            " evidence is genuine, too; to look at a platform only, say so in the policy: allow_missing_report_data",
        )
        return
    own_length = report.pcrs is not None
    if len(report_data) != REPORT_DATA_BYTES and not (own_length and report_data):
        wanted = "at least one byte" if own_length else f"{REPORT_DATA_BYTES} bytes"
        raise UsageError(f"report data has {wanted}, got {len(report_data)}", expected=wanted, seen=len(report_data))
    to.require(
        "report data",
        hmac.compare_digest(report.report_data, report_data),
        expected=report_data,
        seen=report.report_data,
        remedy="this evidence was made for another key, nonce or session: refuse it, and ask for a new one (what a"
        " program asked for itself is compared with --program-data)",
    )


def _judge(report: VerifiedReport, policy: Policy, now: datetime, report_data: bytes | None) -> Judgement:
    to = Judgement(now, policy.tracked)
    _judge_tee(to, report, policy)
    _judge_status(to, report, policy, now)
    _judge_debug(to, report, policy)
    _judge_program(to, report, policy)
    evidence = report.evidence
    if report.pcrs is None:
        judge_no_pcrs(to, policy)
    if isinstance(evidence, SGXQuote):
        judge_sgx(to, evidence, report, policy)
    elif isinstance(evidence, TDXQuote):
        judge_tdx(to, evidence, report, policy)
    elif isinstance(evidence, NitroDocument):
        judge_nitro(to, evidence, report, policy, now)
    elif isinstance(evidence, TPMQuote | AzureEvidence):
        if isinstance(evidence, AzureEvidence):
            judge_azure(to, evidence, report, policy)
        judge_tpm(to, evidence, report, policy)
    else:
        judge_snp(to, evidence, report, policy)
    to.checks += judge_gpus(report.devices, policy.gpus)
    judge_acpi(to, report, policy)
    judge_hosts(to, report, policy)
    judge_profile(to, report, policy)
    _judge_freshness(to, report, policy, now)
    _judge_binding(to, report, policy, report_data)
    return to


def appraise(report: VerifiedReport, policy: Policy, now: datetime, *, report_data: bytes | None) -> Claims:
    """Judge a verified report by a policy at the time `now`. Raises AppraisalFailed with every reason.

    `report_data` are the 64 bytes that the evidence must be bound to. None is refused, unless the policy says
    `allow_missing_report_data`: then nothing is compared, and `Claims.bound` is False. Of a policy with alternatives
    (`any_of`) one must be met. Otherwise the reasons are those of the closest alternative.
    """
    if now.tzinfo is None:
        raise UsageError("the time of appraisal needs a time zone")
    refused: list[Judgement] = []
    for alternative in policy.alternatives():
        judgement = _judge(report, alternative, now, report_data)
        if not judgement.failed:
            return _claims(report, alternative, judgement, report_data)
        refused.append(judgement)
    closest = min(refused, key=lambda judgement: len(judgement.failed))
    names = "; ".join(check.name for check in closest.failed)
    raise AppraisalFailed(f"the policy does not accept this evidence: {names}", checks=closest.checks)


def _end(report: VerifiedReport, policy: Policy) -> datetime:
    """The end of what was relied on. An old Nitro document counts as long as the policy says."""
    if isinstance(report.evidence, NitroDocument) and policy.max_document_age_s is not None:
        return report.evidence.timestamp + timedelta(seconds=policy.max_document_age_s)
    return report.expires_at


def _claims(report: VerifiedReport, policy: Policy, judgement: Judgement, report_data: bytes | None) -> Claims:
    return Claims(
        report=report,
        tee=report.tee_with_root,
        status=report.status,
        advisories=report.advisories,
        exemptions=tuple(judgement.used),
        warned=tuple(judgement.warned),
        measurement=report.measurement,
        workload=next((item for item in sorted(policy.workloads, key=str) if report.carries_workload(item)), None),
        bound=report_data is not None,
        valid_until=min([_end(report, policy), *(item.until for item in judgement.used), *judgement.ends]),
        checks=tuple(judgement.checks),
        made_by=_APPRAISER,
    )
