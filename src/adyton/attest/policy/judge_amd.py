"""Judge a SEV-SNP report: versions of the firmware, switches of platform and guest, identities of the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from adyton.attest.policy.bits import GUEST_POLICY, GUEST_POLICY_OTHER, PLATFORM_INFO, set_names
from adyton.attest.policy.judge_intel import PROGRAM_REMEDY
from adyton.attest.policy.rules import Exemption, FirmwareVersion, ProductRules
from adyton.attest.shortfall import Shortfall
from adyton.attest.snp import (
    PLATFORM_ALIAS_CHECK,
    POLICY_MIGRATE_MA,
    POLICY_SINGLE_SOCKET,
    POLICY_SMT,
    SNPReport,
    TCBVersion,
)
from adyton.dates import is_over

if TYPE_CHECKING:
    from adyton.attest.evidence_policy import Policy
    from adyton.attest.policy.judgement import Judgement
    from adyton.attest.policy.rules import SNPRules
    from adyton.attest.report import VerifiedReport

FORGEABLE: Final = {
    "Milan": "MilanLaunchy and BadFuse (arXiv 2605.12990, 2026-05): software on the host takes the root key of the"
    " chip, and signs reports of any version"
}
"""Products whose reports can be forged whatever they say. A policy accepts them only until a day that it names."""

_MITIGATIONS_FROM: Final = 5
"""The version of the report that has mitigation vectors."""

_FIRMWARE_REMEDY: Final = "update the machine's firmware and microcode"


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPFacts:
    """What a SEV-SNP report says of platform and firmware, as a policy judges it."""

    product: str
    reported: TCBVersion
    committed: TCBVersion
    launch: TCBVersion
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    platform_info: int
    guest_policy: int
    launch_mitigations: int
    current_mitigations: int

    @classmethod
    def of(cls, report: SNPReport, product: str) -> Self:
        """Read them. A report without mitigation vectors states no mitigation."""
        has_vectors = report.version >= _MITIGATIONS_FROM

        def tcb(name: str) -> TCBVersion:
            return TCBVersion.parse(report.field(name), turin=product == "Turin")

        def firmware(when: str) -> FirmwareVersion:
            return FirmwareVersion(*(report.number(f"{when}_{part}") for part in ("major", "minor", "build")))

        return cls(
            product=product,
            reported=tcb("reported_tcb"),
            committed=tcb("committed_tcb"),
            launch=tcb("launch_tcb"),
            current_firmware=firmware("current"),
            committed_firmware=firmware("committed"),
            platform_info=report.number("platform_info"),
            guest_policy=report.policy,
            launch_mitigations=report.number("launch_mitigations") if has_vectors else 0,
            current_mitigations=report.number("current_mitigations") if has_vectors else 0,
        )


def amd_shortfalls(report: SNPReport, product: str, minimum: TCBVersion) -> tuple[Shortfall, ...]:
    """Every security version of a report that is below a policy's minimum. AMD states no dates and advisories."""
    facts, needed = SNPFacts.of(report, product), minimum.to_dict()
    found = []
    for when, versions in (("reported", facts.reported), ("committed", facts.committed)):
        seen = versions.to_dict()
        for part in versions.below(minimum):
            name, lowest = f"{part} ({when})", needed[part]
            found.append(Shortfall("platform", name, seen.get(part, 0), lowest, None, (), _FIRMWARE_REMEDY))
    return tuple(found)


def judge_snp(to: Judgement, report: SNPReport, verified: VerifiedReport, policy: Policy) -> None:
    """A guest as the policy asks, on firmware as the policy asks."""
    product = str(verified.platform["product"])
    facts = SNPFacts.of(report, product)
    _judge_product(to, product, policy.snp)
    _judge_minimum(to, report, facts, policy)
    to.require(
        "certificates checked for revocation",
        verified.revocation_checked or policy.allow_missing_crl,
        expected="yes",
        seen=verified.revocation_checked,
        remedy="add AMD's CRL to the collateral: adyton collateral fetch",
    )
    _judge_guest(to, report, policy.snp)
    _judge_switches(to, facts, policy)
    rules = policy.snp.products.get(product, ProductRules())
    _judge_bits(to, facts, rules)
    _judge_versions(to, facts, rules, policy.snp)


def _judge_product(to: Judgement, product: str, rules: SNPRules) -> None:
    rule = rules.products.get(product)
    named = rule is not None or not rules.products
    until = rule.accept_until if rule is not None else None
    if until is not None and rule is not None and not is_over(until, to.now):
        to.used.append(Exemption(name=f"product {product}", owner="the policy", until=until, reason=rule.reason))
    if product in FORGEABLE and until is None:
        seen = f"{product}: {FORGEABLE[product]}"
        remedy = f"use a newer product, or answer for it: [snp.products.{product}] accept_until = YYYY-MM-DD, reason"
    elif not named:
        seen = product
        remedy = f"name it in the policy: [snp.products.{product}]"
    else:
        seen = product if until is None else f"{product}, accepted until {until:%Y-%m-%d}"
        remedy = "use another product, or move the date in the policy after weighing what is published"
    to.require(
        "product accepted",
        named and (until is not None or product not in FORGEABLE) and (until is None or not is_over(until, to.now)),
        expected=sorted(rules.products) or "a product whose reports cannot be forged",
        seen=seen,
        remedy=remedy,
    )


def _judge_minimum(to: Judgement, report: SNPReport, facts: SNPFacts, policy: Policy) -> None:
    minimum = policy.min_tcb.get(facts.product)
    short = amd_shortfalls(report, facts.product, minimum) if minimum is not None else ()
    to.require(
        "minimum TCB",
        minimum is not None and not short,
        expected=minimum if minimum is not None else f"a minimum in the policy for {facts.product}",
        seen="; ".join(str(item) for item in short) or f"reported: {facts.reported}; committed: {facts.committed}",
        remedy=_FIRMWARE_REMEDY
        if minimum is not None
        else f"AMD has no status service: name the minimum versions in the policy's min_tcb.{facts.product}",
    )


def _judge_guest(to: Judgement, report: SNPReport, wanted: SNPRules) -> None:
    to.one_of("host data", wanted.host_data, report.field("host_data"), remedy=PROGRAM_REMEDY)
    to.one_of("id key", wanted.id_key_digests, report.field("id_key_digest"), remedy=PROGRAM_REMEDY)
    if wanted.author_key_digests:
        to.require(
            "author key",
            report.author_key_enabled and report.field("author_key_digest") in wanted.author_key_digests,
            expected=wanted.author_key_digests,
            seen=report.field("author_key_digest") if report.author_key_enabled else "not enabled",
            remedy=PROGRAM_REMEDY,
        )
    to.one_of("family id", wanted.family_ids, report.field("family_id"), remedy=PROGRAM_REMEDY)
    to.one_of("image id", wanted.image_ids, report.field("image_id"), remedy=PROGRAM_REMEDY)
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


def _judge_switches(to: Judgement, facts: SNPFacts, policy: Policy) -> None:
    guest, wanted = facts.guest_policy, policy.snp
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
            bool(facts.platform_info & PLATFORM_ALIAS_CHECK) or not wanted.require_alias_check,
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


def _judge_bits(to: Judgement, facts: SNPFacts, rules: ProductRules) -> None:
    if rules.platform_info:
        broken = rules.platform_info.broken(facts.platform_info, PLATFORM_INFO)
        to.track(
            "platform_info",
            "platform info",
            not broken,
            expected=rules.platform_info,
            seen="; ".join(broken) or set_names(facts.platform_info, PLATFORM_INFO),
            remedy="change the machine's BIOS settings or firmware, or use a machine that has them so",
        )
    if rules.guest_policy:
        broken = rules.guest_policy.broken(facts.guest_policy, GUEST_POLICY, GUEST_POLICY_OTHER)
        to.require(
            "guest policy",
            not broken,
            expected=rules.guest_policy,
            seen="; ".join(broken) or set_names(facts.guest_policy, GUEST_POLICY),
            remedy="start the guest with the guest policy that is asked for",
        )


def _judge_versions(to: Judgement, facts: SNPFacts, rules: ProductRules, common: SNPRules) -> None:
    for when, wanted, seen in (
        ("launch", rules.min_launch_mitigation | common.min_launch_mitigation, facts.launch_mitigations),
        ("current", rules.min_current_mitigation | common.min_current_mitigation, facts.current_mitigations),
    ):
        if wanted:
            missing = [bit for bit in range(64) if wanted & ~seen & 1 << bit]
            to.require(
                f"mitigation vector at {when}",
                not missing,
                expected=f"{wanted:#x}",
                seen=f"{seen:#x}" + (f", missing bits {', '.join(map(str, missing))}" if missing else ""),
                remedy="update the machine's firmware to one that states these mitigations (SNP ABI 1.58), then"
                " restart the guest",
            )
    if rules.min_firmware is not None:
        to.require(
            "firmware version",
            min(facts.current_firmware, facts.committed_firmware) >= rules.min_firmware,
            expected=f"at least {rules.min_firmware}",
            seen=f"current: {facts.current_firmware}; committed: {facts.committed_firmware}",
            remedy=_FIRMWARE_REMEDY,
        )
    if rules.min_launch_tcb is not None:
        short = facts.launch.below(rules.min_launch_tcb)
        to.require(
            "minimum TCB at launch",
            not short,
            expected=rules.min_launch_tcb,
            seen=facts.launch,
            remedy="restart the guest on firmware that is new enough: it was started on an older one",
        )
