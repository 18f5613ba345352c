"""Named sets of requirements. There is one, `strict-2026`: what one would ask for in November 2026.

A profile only adds requirements. Each can be relaxed by name, with an owner and an end, except those that no careful
relying party relaxes. The floors of `attacks` belong to it, with their source and date in every refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.policy.attacks import ATTACKS, Floor
from adyton.attest.policy.bits import GUEST_POLICY, GUEST_POLICY_OTHER, PLATFORM_INFO, BitRule
from adyton.attest.policy.judge_amd import FORGEABLE, SNPFacts
from adyton.attest.policy.rules import FirmwareVersion
from adyton.attest.snp import SNPReport
from adyton.dates import is_over

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adyton.attest.evidence_policy import Policy
    from adyton.attest.policy.judgement import Judgement
    from adyton.attest.report import VerifiedReport

STRICT_2026: Final = "strict-2026"
PROFILES: Final = frozenset({STRICT_2026})

_INTEL_TEES: Final = frozenset({"sgx", "tdx", "sim", "sim-tdx"})

FIRMWARE: Final = FirmwareVersion(1, 58, 0)

_PLATFORM: Final[Mapping[str, BitRule]] = {
    "alias_check": BitRule(require=frozenset({"alias_check"})),
    "ciphertext_hiding": BitRule(require=frozenset({"ciphertext_hiding"})),
    "rapl_off": BitRule(require=frozenset({"rapl_off"})),
    "smt": BitRule(forbid=frozenset({"smt"})),
}
_GUEST: Final[Mapping[str, BitRule]] = {
    "ciphertext_hiding": BitRule(require=frozenset({"ciphertext_hiding"})),
    "page_swap_off": BitRule(require=frozenset({"page_swap_off"})),
    "rapl_off": BitRule(require=frozenset({"rapl_off"})),
    "smt": BitRule(forbid=frozenset({"smt"})),
    "cxl": BitRule(forbid=frozenset({"cxl"})),
}
_NEVER: Final = BitRule(forbid=frozenset({"debug", "migrate_ma"}))
_MAX_VMPL: Final = 0

RELAXABLE: Final = frozenset({*_PLATFORM, *_GUEST, "channel", "firmware", "floors", "product"})
"""The rules of the profile that a policy can relax, each with an owner and an end."""


def floors_of(product: str) -> tuple[Floor, ...]:
    """The least versions that the sources ask of a product, each once. Withdrawn ones and switches are left out."""
    found: list[Floor] = []
    for attack in ATTACKS:
        for floor in attack.floors:
            if floor.product == product and floor.min_tcb and not floor.withdrawn and floor not in found:
                found.append(floor)
    return tuple(found)


def judge_profile(to: Judgement, report: VerifiedReport, policy: Policy) -> None:
    """What the policy's profile asks for, if it names one."""
    if policy.profile is None:
        return
    if policy.hosts is None:
        to.warn(
            "hosts",
            expected="a policy that lists its machines",
            seen="any machine of the maker's",
            remedy="list the machines in the policy's `hosts`: whoever has one machine to work on by hand can speak"
            " for all that are not told apart",
        )
    evidence = report.evidence
    if isinstance(evidence, SNPReport):
        judged = _snp(evidence, str(report.platform["product"]))
    elif report.tee in _INTEL_TEES:
        judged = _intel(report)
    else:
        judged = _unknown(report)
    relaxed = {item.name: item for item in policy.relaxed if not is_over(item.until, to.now)}
    for rule, what, broken, expected, remedy in judged:
        relaxation = relaxed.get(rule)
        if broken and relaxation is not None:
            to.used.append(relaxation)
            continue
        to.require(
            f"{policy.profile}: {what}",
            not broken,
            expected=expected,
            seen="; ".join(broken) or "so",
            remedy=remedy + _relax(rule),
        )


def _relax(rule: str) -> str:
    return f', or relax it until a day: [[relaxed]] name = "{rule}", owner, until, reason' if rule in RELAXABLE else ""


_Judged = tuple[str, str, list[str], str, str]
"""Rule, its name in a refusal, what breaks it, what is expected, what to do."""


def _intel(report: VerifiedReport) -> Iterator[_Judged]:
    seen = report.platform.get("tcb_channel")
    broken = [] if seen == "early" else [str(seen or "not recorded: the collateral came from a file")]
    remedy = "fetch the collateral with new TCB levels at once: adyton collateral fetch --early"
    yield "channel", "TCB channel", broken, "early", remedy


def _unknown(report: VerifiedReport) -> Iterator[_Judged]:
    remedy = "judge this TEE by a policy without the profile"
    yield "", "TEE", [report.tee], "a TEE that the profile has rules for: sgx, tdx, snp", remedy


def _snp(report: SNPReport, product: str) -> Iterator[_Judged]:
    facts = SNPFacts.of(report, product)
    forgeable = [f"{product}: {FORGEABLE[product]}"] if product in FORGEABLE else []
    yield "product", "product", forgeable, "a product whose reports cannot be forged", "use a newer product"
    for name, rule in _PLATFORM.items():
        broken = rule.broken(facts.platform_info, PLATFORM_INFO)
        yield name, f"platform {name}", broken, str(rule), "change the machine's BIOS settings, or use another machine"
    for name, rule in _GUEST.items():
        broken = rule.broken(facts.guest_policy, GUEST_POLICY, GUEST_POLICY_OTHER)
        yield name, f"guest {name}", broken, str(rule), "start the guest with this guest policy"
    never = _NEVER.broken(facts.guest_policy, GUEST_POLICY, GUEST_POLICY_OTHER)
    yield "", "guest debug and migration", never, str(_NEVER), "start the guest with this guest policy"
    vmpl = report.number("vmpl")
    yield "", "VMPL", [str(vmpl)] if vmpl > _MAX_VMPL else [], "0", "request the report at level 0"
    lowest = min(facts.current_firmware, facts.committed_firmware)
    old = [] if lowest >= FIRMWARE else [f"{lowest}, older than AMD's bulletins of 2026"]
    yield "firmware", "firmware", old, f"at least {FIRMWARE}", "update the machine's firmware"
    for floor in floors_of(product):
        missing = [f"{item}: older than AMD's bulletins of 2026" for item in floor.missing(facts)]
        yield "floors", "versions", missing, f"the versions of: {floor}", "update the machine's firmware and microcode"
