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
from adyton.attest.enclave import FLAG_EINITTOKEN_KEY, FLAG_INIT, FLAG_MODE64, FLAG_PROVISION_KEY
from adyton.attest.evidence_policy import Policy
from adyton.attest.report import WORKLOAD_PCR
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import (
    PLATFORM_ALIAS_CHECK,
    POLICY_MIGRATE_MA,
    POLICY_SINGLE_SOCKET,
    POLICY_SMT,
    SNPReport,
    TCBVersion,
)
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.attest.tdx import (
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_SEPT_VE_DISABLE,
    KNOWN_ATTRIBUTES,
    TDXQuote,
)
from adyton.attest.tpm import pcr_policy
from adyton.attest.tpm.document import TPMQuote
from adyton.check import Check
from adyton.dates import is_over
from adyton.errors import AppraisalFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from adyton.attest.evidence_policy import Exemption
    from adyton.attest.report import VerifiedReport
    from adyton.values import Measurement

__all__ = ["Claims", "Policy", "appraise"]

_APPRAISER: Final = object()

ACPI_CHECK: Final = "ACPI tables of the host"

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
    """As in the policy (`adyton.attest.names`): "sgx", "tpm", "az-snp", "sim:<root>" and so on."""
    status: TCBStatus
    advisories: tuple[str, ...]
    exemptions: tuple[Exemption, ...]
    """The exemptions that were needed."""
    measurement: Measurement
    workload: Measurement | None
    """The workload that the evidence names, where the policy asked for one."""
    bound: bool
    """Whether report data was compared."""
    valid_until: datetime
    """The end of this appraisal's validity: the earliest end of its collateral and exemptions."""
    checks: tuple[Check, ...]
    made_by: object = field(repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.made_by is not _APPRAISER:
            raise UsageError("Claims are made by appraise only")


class _Judgement:
    """Collects every requirement and whether it is met."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.used: list[Exemption] = []

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.ok]

    def require(self, name: str, ok: bool, *, expected: object, seen: object, remedy: str) -> None:
        self.checks.append(Check(name, expected, seen, ok, remedy))

    def one_of(self, name: str, allowed: Iterable[object], seen: object, *, remedy: str) -> None:
        found = frozenset(allowed)
        if found:
            self.require(name, seen in found, expected=found, seen=seen, remedy=remedy)


_PROGRAM: Final = "run the program that the policy names, or name this one in the policy after checking it"


def _judge_tee(to: _Judgement, report: VerifiedReport, policy: Policy) -> None:
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


def _judge_status(to: _Judgement, report: VerifiedReport, policy: Policy, now: datetime) -> None:
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
        seen=status,
        remedy=_REMEDY_TCB.get(status, "update the platform"),
    )
    if status is TCBStatus.UP_TO_DATE or status in NEVER_ACCEPTED:
        return
    for advisory in report.advisories:
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


def _ended(policy: Policy, name: str) -> str:
    ends = [item for item in policy.exemptions if item.name == name]
    return f"an exemption of {ends[-1].owner} that ended {ends[-1].until:%Y-%m-%d}" if ends else "none"


def _judge_debug(to: _Judgement, report: VerifiedReport, policy: Policy) -> None:
    to.require(
        "debug",
        not report.debug or policy.allow_debug,
        expected="no",
        seen=report.debug,
        remedy="build and run the program without debug: whoever runs the machine can read a debug TEE's memory",
    )


def _judge_program(to: _Judgement, report: VerifiedReport, policy: Policy) -> None:
    named = policy.names_program
    to.require(
        "program",
        named or policy.any_program,
        expected="a policy that names the programs it accepts",
        seen="no measurement, workload or signer in the policy",
        remedy="add `measurements`, `workloads` or `signers` to the policy",
    )
    to.one_of("measurement", policy.measurements, report.measurement, remedy=_PROGRAM)
    if policy.workloads:
        to.require(
            "workload",
            any(report.carries_workload(workload) for workload in policy.workloads),
            expected=policy.workloads,
            seen=_workload_seen(report),
            remedy=_PROGRAM,
        )
    if policy.signers:
        to.require(
            "signer",
            any(rule.accepts(report.mrsigner, report.isv_prod_id, report.isv_svn) for rule in policy.signers),
            expected=[str(rule) for rule in policy.signers],
            seen=f"{report.mrsigner or 'none'}, product {report.isv_prod_id}, SVN {report.isv_svn}",
            remedy=_PROGRAM,
        )


def _workload_seen(report: VerifiedReport) -> object:
    if report.pcrs is not None:
        return report.pcrs.get(WORKLOAD_PCR, b"")
    return report.rtmrs[3] if report.rtmrs else report.measurement


def _judge_tpm(to: _Judgement, evidence: TPMQuote | AzureEvidence, report: VerifiedReport, policy: Policy) -> None:
    """A guest that a TPM measures: its boot by the event log, and the workload in PCR 15."""
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


def _judge_sgx(to: _Judgement, quote: SGXQuote, policy: Policy) -> None:
    flags = quote.report.flags
    forbidden = 0 if policy.allow_provisioning_keys else FLAG_PROVISION_KEY | FLAG_EINITTOKEN_KEY
    to.require(
        "enclave attributes",
        flags & (FLAG_INIT | FLAG_MODE64) == FLAG_INIT | FLAG_MODE64 and not flags & forbidden,
        expected="initialised, 64-bit, without provisioning and launch keys",
        seen=f"{flags:#x}",
        remedy="run an ordinary enclave; provisioning and launch enclaves are for Intel's own services",
    )


def _judge_tdx(to: _Judgement, quote: TDXQuote, policy: Policy) -> None:
    report = quote.report
    for index, allowed in enumerate((policy.rtmr0, policy.rtmr1, policy.rtmr2, policy.rtmr3)):
        to.one_of(f"RTMR{index}", allowed, report.rtmrs[index], remedy=_PROGRAM)
    to.one_of("MRCONFIGID", policy.mrconfigids, report.field("mrconfigid"), remedy=_PROGRAM)
    to.one_of("MROWNER", policy.mrowners, report.field("mrowner"), remedy=_PROGRAM)
    to.one_of("MROWNERCONFIG", policy.mrownerconfigs, report.field("mrownerconfig"), remedy=_PROGRAM)
    to.one_of("MRSEAM", policy.mrseams, report.mrseam, remedy="load a TDX module that the policy names")
    attributes = report.td_attributes
    to.require(
        "TD attributes: SEPT_VE_DISABLE",
        bool(attributes & ATTRIBUTE_SEPT_VE_DISABLE) or policy.allow_sept_ve,
        expected="set",
        seen="clear",
        remedy="start the TD with SEPT_VE_DISABLE (the host's hypervisor sets it), or allow it: allow_sept_ve",
    )
    to.require(
        "TD attributes: MIGRATABLE",
        not attributes & ATTRIBUTE_MIGRATABLE or policy.allow_migration,
        expected="clear",
        seen="set",
        remedy="start the TD as not migratable, or allow it: allow_migration",
    )
    to.require(
        "TD attributes: known bits",
        not attributes & ~KNOWN_ATTRIBUTES,
        expected="no unknown bit",
        seen=f"{attributes & ~KNOWN_ATTRIBUTES:#x}",
        remedy="a newer TDX module sets bits that this version of Adyton does not know: update Adyton",
    )
    service = report.mrservicetd
    if service is not None and any(service):
        to.require(
            "service TDs",
            service in policy.service_tds,
            expected=policy.service_tds or "none",
            seen=service,
            remedy="a service TD (migration) is bound to this TD: name it in `service_tds` after checking it",
        )


def _judge_snp(to: _Judgement, report: SNPReport, verified: VerifiedReport, policy: Policy) -> None:
    product = str(verified.platform["product"])
    minimum = policy.min_tcb.get(product)
    reported = TCBVersion.parse(report.field("reported_tcb"), turin=product == "Turin")
    committed = TCBVersion.parse(report.field("committed_tcb"), turin=product == "Turin")
    to.require(
        "minimum TCB",
        minimum is not None and not reported.below(minimum) and not committed.below(minimum),
        expected=minimum if minimum is not None else f"a minimum in the policy for {product}",
        seen=f"reported: {reported}; committed: {committed}",
        remedy="update the machine's firmware and microcode"
        if minimum is not None
        else f"AMD has no status service: name the minimum versions in the policy's min_tcb.{product}",
    )
    to.require(
        "certificates checked for revocation",
        verified.revocation_checked or policy.allow_missing_crl,
        expected="yes",
        seen=verified.revocation_checked,
        remedy="add AMD's CRL to the collateral: adyton collateral fetch",
    )
    wanted = policy.snp
    to.one_of("host data", wanted.host_data, report.field("host_data"), remedy=_PROGRAM)
    to.one_of("id key", wanted.id_key_digests, report.field("id_key_digest"), remedy=_PROGRAM)
    if wanted.author_key_digests:
        to.require(
            "author key",
            report.author_key_enabled and report.field("author_key_digest") in wanted.author_key_digests,
            expected=wanted.author_key_digests,
            seen=report.field("author_key_digest") if report.author_key_enabled else "not enabled",
            remedy=_PROGRAM,
        )
    to.one_of("family id", wanted.family_ids, report.field("family_id"), remedy=_PROGRAM)
    to.one_of("image id", wanted.image_ids, report.field("image_id"), remedy=_PROGRAM)
    to.require(
        "privilege level (VMPL)",
        report.number("vmpl") <= wanted.max_vmpl,
        expected=f"at most {wanted.max_vmpl}",
        seen=report.number("vmpl"),
        remedy="request the report at a more privileged level, or raise max_vmpl in the policy",
    )
    to.require(
        "guest SVN",
        report.number("guest_svn") >= wanted.min_guest_svn,
        expected=f"at least {wanted.min_guest_svn}",
        seen=report.number("guest_svn"),
        remedy="start a newer guest image",
    )
    guest = report.policy
    for name, ok, expected, remedy in (
        (
            "guest policy: migration agent",
            not guest & POLICY_MIGRATE_MA or policy.allow_migration,
            "none",
            "allow_migration",
        ),
        ("guest policy: SMT", not guest & POLICY_SMT or wanted.allow_smt, "off", "snp.allow_smt"),
        (
            "guest policy: single socket",
            bool(guest & POLICY_SINGLE_SOCKET) or not wanted.require_single_socket,
            "set",
            "snp.require_single_socket",
        ),
        (
            "platform: alias check",
            bool(report.number("platform_info") & PLATFORM_ALIAS_CHECK) or not wanted.require_alias_check,
            "complete",
            "snp.require_alias_check",
        ),
    ):
        to.require(
            name,
            ok,
            expected=expected,
            seen=expected if ok else f"not so (guest policy {guest:#x})",
            remedy=f"start the guest or machine so, or change {remedy} in the policy",
        )


def _judge_no_pcrs(to: _Judgement, policy: Policy) -> None:
    """Evidence without PCRs never meets a policy that asks for some."""
    if policy.pcrs or policy.boot_applications:
        to.require(
            "boot applications",
            False,
            expected="evidence of a TPM, which has the PCRs that the policy names",
            seen="evidence without PCRs",
            remedy="put rules for PCRs into an alternative (any_of) of their own",
        )


def _judge_azure(to: _Judgement, evidence: AzureEvidence, report: VerifiedReport, policy: Policy) -> None:
    """The hardware below Microsoft's paravisor, by the rules of that hardware."""
    if isinstance(evidence.hardware, TDXQuote):
        _judge_tdx(to, evidence.hardware, policy)
    else:
        _judge_snp(to, evidence.hardware, report, policy)


def _judge_acpi(to: _Judgement, report: VerifiedReport, policy: Policy) -> None:
    """Say in every verdict where nothing pins the ACPI tables. It is no reason to refuse: the policy left them open."""
    if isinstance(report.evidence, SNPReport) or (isinstance(report.evidence, TDXQuote) and not policy.rtmr0):
        to.require(
            ACPI_CHECK,
            True,
            expected="pinned (RTMR0), or left open by the policy",
            seen="left open: the host writes them, and code in them runs in the guest's kernel",
            remedy="name rtmr0 in the policy; nothing in SEV-SNP's evidence covers them",
        )


def _judge_freshness(to: _Judgement, report: VerifiedReport, policy: Policy, now: datetime) -> None:
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


def _judge_binding(to: _Judgement, report: VerifiedReport, policy: Policy, report_data: bytes | None) -> None:
    tpm = isinstance(report.evidence, TPMQuote | AzureEvidence)
    if report_data is None:
        to.require(
            "report data",
            not policy.require_report_data and not tpm,
            expected="a value to compare with",
            seen="none was given",
            remedy="give the data that the evidence must be bound to: --report-data"
            + (" (the nonce; without it anybody can send an old quote of a TPM)" if tpm else ""),
        )
        return
    if len(report_data) != 64 and not (tpm and report_data):
        wanted = "1 to 64 bytes" if tpm else "64 bytes"
        raise UsageError(f"report data has {wanted}, got {len(report_data)}", expected=wanted, seen=len(report_data))
    to.require(
        "report data",
        hmac.compare_digest(report.report_data, report_data),
        expected=report_data,
        seen=report.report_data,
        remedy="this evidence was made for another key, nonce or session: refuse it, and ask for a new one (what a"
        " program asked for itself is compared with --program-data)",
    )


def _judge(report: VerifiedReport, policy: Policy, now: datetime, report_data: bytes | None) -> _Judgement:
    to = _Judgement()
    _judge_tee(to, report, policy)
    _judge_status(to, report, policy, now)
    _judge_debug(to, report, policy)
    _judge_program(to, report, policy)
    evidence = report.evidence
    if report.pcrs is None:
        _judge_no_pcrs(to, policy)
    if isinstance(evidence, SGXQuote):
        _judge_sgx(to, evidence, policy)
    elif isinstance(evidence, TDXQuote):
        _judge_tdx(to, evidence, policy)
    elif isinstance(evidence, TPMQuote | AzureEvidence):
        if isinstance(evidence, AzureEvidence):
            _judge_azure(to, evidence, report, policy)
        _judge_tpm(to, evidence, report, policy)
    else:
        _judge_snp(to, evidence, report, policy)
    _judge_acpi(to, report, policy)
    _judge_freshness(to, report, policy, now)
    _judge_binding(to, report, policy, report_data)
    return to


def appraise(report: VerifiedReport, policy: Policy, now: datetime, *, report_data: bytes | None) -> Claims:
    """Judge a verified report by a policy at the time `now`. Raises AppraisalFailed with every reason.

    `report_data` are the 64 bytes that the evidence must be bound to (of a TPM's quote: its nonce, 1 to 64 bytes). With
    None nothing is compared, and `Claims.bound` is False. A TPM's quote is refused then. Of a policy with alternatives
    (`any_of`) one must be met. Otherwise the reasons are those of the closest alternative.
    """
    if now.tzinfo is None:
        raise UsageError("the time of appraisal needs a time zone")
    refused: list[_Judgement] = []
    for alternative in policy.alternatives():
        judgement = _judge(report, alternative, now, report_data)
        if not judgement.failed:
            return _claims(report, alternative, judgement, report_data)
        refused.append(judgement)
    closest = min(refused, key=lambda judgement: len(judgement.failed))
    names = "; ".join(check.name for check in closest.failed)
    raise AppraisalFailed(f"the policy does not accept this evidence: {names}", checks=closest.checks)


def _claims(report: VerifiedReport, policy: Policy, judgement: _Judgement, report_data: bytes | None) -> Claims:
    return Claims(
        report=report,
        tee=report.tee_with_root,
        status=report.status,
        advisories=report.advisories,
        exemptions=tuple(judgement.used),
        measurement=report.measurement,
        workload=next((item for item in sorted(policy.workloads, key=str) if report.carries_workload(item)), None),
        bound=report_data is not None,
        valid_until=min([report.expires_at, *(item.until for item in judgement.used)]),
        checks=tuple(judgement.checks),
        made_by=_APPRAISER,
    )
