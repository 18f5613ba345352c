"""Judge an SGX or TDX report: attributes, registers, and the configuration of the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.enclave import FLAG_EINITTOKEN_KEY, FLAG_INIT, FLAG_MODE64, FLAG_PROVISION_KEY
from adyton.attest.pck import SGX_TYPES
from adyton.attest.policy.bits import TD_ATTRIBUTES, set_names
from adyton.attest.tdx import ATTRIBUTE_MIGRATABLE, ATTRIBUTE_SEPT_VE_DISABLE, KNOWN_ATTRIBUTES

if TYPE_CHECKING:
    from adyton.attest.evidence_policy import Policy
    from adyton.attest.policy.judgement import Judgement
    from adyton.attest.policy.rules import SGXRules, TDXRules
    from adyton.attest.report import VerifiedReport
    from adyton.attest.sgx import SGXQuote
    from adyton.attest.tdx import TDReport, TDXQuote

SERVICING_COSTS: Final = "INTEL-DOC-10000"
SERVICING_ENDED: Final = "INTEL-DOC-10001"
"""Intel's notices in the advisories of a TCB level: servicing updates ended; servicing ended for good."""

PROGRAM_REMEDY: Final = "run the program that the policy names, or name this one in the policy after checking it"


def judge_servicing(to: Judgement, report: VerifiedReport) -> None:
    """The maker still repairs this platform. Its notices come as advisories, and no policy can exempt the last one."""
    if SERVICING_COSTS in report.advisories:
        to.warn(
            "servicing",
            expected="a platform that Intel services",
            seen=f"{SERVICING_COSTS}: the end of servicing updates has passed",
            remedy="plan for newer hardware: fixes for this platform come under a paid contract only",
        )
    if SERVICING_ENDED in report.advisories:
        to.require(
            "servicing",
            False,
            expected="a platform that Intel services",
            seen=f"{SERVICING_ENDED}: the end of its servicing lifetime has passed",
            remedy="use newer hardware: Intel does not repair this platform any more, whatever its status says",
        )


def _judge_platform(to: Judgement, report: VerifiedReport, rules: SGXRules | TDXRules) -> None:
    """The rules that SGX and TDX share: channel of the TCB data, kind of platform, configuration in the PCK."""
    facts = report.platform
    if rules.channel == "early":
        to.require(
            "TCB channel",
            facts.get("tcb_channel") == "early",
            expected="early",
            seen=facts.get("tcb_channel") or "not recorded: the collateral came from a file",
            remedy="fetch the collateral with new TCB levels at once: adyton collateral fetch --early",
        )
    if rules.fmspc:
        to.track(
            "fmspc",
            "FMSPC",
            facts["fmspc"] in rules.fmspc,
            expected=rules.fmspc,
            seen=facts["fmspc"],
            remedy="run on a kind of platform that the policy names, or name this one",
        )
    pck = rules.pck
    shown = "not stated: the PCK certificate is of the Processor CA"
    for wanted, name, ok, expected, seen in (
        (
            pck.static_platform,
            "PCK configuration: static platform",
            facts["dynamic"] is False,
            "static: no processor can be added",
            "dynamic" if facts["dynamic"] else shown,
        ),
        (
            pck.smt_disabled,
            "PCK configuration: SMT",
            facts["smt"] is False,
            "off",
            "on" if facts["smt"] else shown,
        ),
        (
            pck.memory_integrity,
            "PCK configuration: memory integrity",
            facts["sgx_type"] == SGX_TYPES[2],
            SGX_TYPES[2],
            facts["sgx_type"],
        ),
    ):
        if wanted:
            to.require(
                name,
                ok,
                expected=expected,
                seen=expected if ok else seen,
                remedy="run on a platform that was registered with Intel so, or ask less in the policy's `pck`",
            )


def judge_sgx(to: Judgement, quote: SGXQuote, report: VerifiedReport, policy: Policy) -> None:
    """An ordinary enclave, on a platform as the policy asks."""
    flags = quote.report.flags
    forbidden = 0 if policy.allow_provisioning_keys else FLAG_PROVISION_KEY | FLAG_EINITTOKEN_KEY
    to.require(
        "enclave attributes",
        flags & (FLAG_INIT | FLAG_MODE64) == FLAG_INIT | FLAG_MODE64 and not flags & forbidden,
        expected="initialised, 64-bit, without provisioning and launch keys",
        seen=f"{flags:#x}",
        remedy="run an ordinary enclave; provisioning and launch enclaves are for Intel's own services",
    )
    judge_servicing(to, report)
    _judge_platform(to, report, policy.sgx)


def judge_tdx(to: Judgement, quote: TDXQuote, report: VerifiedReport, policy: Policy) -> None:
    """Registers, attributes and module of a trust domain, on a platform as the policy asks."""
    td = quote.report
    for index, allowed in enumerate((policy.rtmr0, policy.rtmr1, policy.rtmr2, policy.rtmr3)):
        to.one_of(f"RTMR{index}", allowed, td.rtmrs[index], remedy=PROGRAM_REMEDY)
    to.one_of("MRCONFIGID", policy.mrconfigids, td.field("mrconfigid"), remedy=PROGRAM_REMEDY)
    to.one_of("MROWNER", policy.mrowners, td.field("mrowner"), remedy=PROGRAM_REMEDY)
    to.one_of("MROWNERCONFIG", policy.mrownerconfigs, td.field("mrownerconfig"), remedy=PROGRAM_REMEDY)
    if policy.mrseams:
        to.track(
            "mrseams",
            "MRSEAM",
            td.mrseam in policy.mrseams,
            expected=policy.mrseams,
            seen=td.mrseam,
            remedy="load a TDX module that the policy names, or name this one after checking where it comes from",
        )
    _judge_attributes(to, td, policy)
    _judge_module(to, td, policy.tdx)
    service = td.mrservicetd
    if service is not None and any(service):
        to.require(
            "service TDs",
            service in policy.service_tds,
            expected=policy.service_tds or "none",
            seen=service,
            remedy="a service TD (migration) is bound to this TD: name it in `service_tds` after checking it",
        )
    judge_servicing(to, report)
    _judge_platform(to, report, policy.tdx)


def _judge_attributes(to: Judgement, td: TDReport, policy: Policy) -> None:
    attributes = td.td_attributes
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
    rule = policy.tdx.td_attributes
    if rule:
        broken = rule.broken(attributes, TD_ATTRIBUTES)
        to.require(
            "TD attributes",
            not broken,
            expected=rule,
            seen="; ".join(broken) or set_names(attributes, TD_ATTRIBUTES),
            remedy="start the TD with the attributes that the policy names (the host's hypervisor sets them)",
        )


def _judge_module(to: Judgement, td: TDReport, rules: TDXRules) -> None:
    remedy = "start the TD as the policy says (the host's hypervisor sets it), or name this value in the policy"
    to.one_of("XFAM", rules.xfam, td.xfam.to_bytes(8, "big"), remedy=remedy)
    module = "load a TDX module that the policy names"
    to.one_of("MRSIGNERSEAM", rules.mrsignerseam, td.mrsigner_seam, remedy=module)
    to.one_of("SEAM attributes", rules.seam_attributes, td.seam_attributes, remedy=module)
    if rules.min_tee_tcb_svn:
        low = [
            f"byte {index} is {seen}, needed {needed}"
            for index, (seen, needed) in enumerate(zip(td.tee_tcb_svn, rules.min_tee_tcb_svn, strict=True))
            if seen < needed
        ]
        to.require(
            "TEE TCB SVN",
            not low,
            expected=rules.min_tee_tcb_svn,
            seen="; ".join(low) or td.tee_tcb_svn,
            remedy="load a newer TDX module and microcode on the host, then restart the TD",
        )
