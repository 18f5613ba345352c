"""An assessment as text for people, as JSON for programs, and as EAR-style claims for clients of other verifiers.

The text answers six questions: genuine? which platform? up to date? which program? debug? bound to this key? A refusal
adds the expected value, the seen value and the remedy of every failed check.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.names import TRUSTED
from adyton.attest.nitro.document import NitroDocument
from adyton.attest.nitro.verify import PROGRAM_PCR
from adyton.attest.policy.attacks import outcomes
from adyton.attest.policy.judge_amd import amd_shortfalls
from adyton.attest.policy.judge_boot import ACPI_CHECK
from adyton.attest.policy.profile import STRICT_2026
from adyton.attest.report import WORKLOAD_PCR
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.status import TCBStatus
from adyton.attest.tdx import TDXQuote
from adyton.attest.tpm.document import TPMQuote
from adyton.check import Check, text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.attest.assess import Assessment
    from adyton.attest.evidence import Evidence
    from adyton.attest.policy.attacks import Outcome
    from adyton.attest.report import VerifiedReport
    from adyton.attest.shortfall import Shortfall

_WIDTH: Final = 18
_VENDORS: Final = {"snp": "AMD", "nitro": "Amazon", "nitrotpm": "Amazon"}
"""Whose root it is, where it is not Intel's."""
_TEE_NAMES: Final = {
    "sgx": "Intel SGX",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "nitro": "AWS Nitro Enclave",
    "nitrotpm": "AWS instance with a NitroTPM",
    "tpm": "a TPM (measured boot)",
    "az-snp": "Azure confidential machine on AMD SEV-SNP",
    "az-tdx": "Azure confidential machine on Intel TDX",
    "sim": "simulated SGX",
    "sim-tdx": "simulated TDX",
    "sim-tpm": "simulated TPM (measured boot)",
}
_STATUS_WORDS: Final = {
    TCBStatus.UP_TO_DATE: "all known fixes are in place",
    TCBStatus.SW_HARDENING_NEEDED: "the platform is fixed; the program itself needs mitigations",
    TCBStatus.CONFIGURATION_NEEDED: "a BIOS setting leaves the platform exposed",
    TCBStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: "a BIOS setting and the program leave it exposed",
    TCBStatus.OUT_OF_DATE: "fixes are missing",
    TCBStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: "fixes are missing, and a BIOS setting leaves it exposed",
    TCBStatus.TD_RELAUNCH_ADVISED: "the TDX module was updated; this TD still runs on the old one",
    TCBStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED: "this TD runs on an old TDX module, and a setting exposes it",
    TCBStatus.REVOKED: "the vendor has revoked its trust in this platform",
    TCBStatus.NOT_SUPPORTED: "the platform is older than anything that the vendor vouches for",
    TCBStatus.NOT_STATED: "AMD states no status; the policy's minimum versions decide",
}
_PROGRAM_CHECKS: Final = frozenset(
    {
        "program",
        "measurement",
        "workload",
        "signer",
        "RTMR0",
        "RTMR1",
        "RTMR2",
        "RTMR3",
        "MRCONFIGID",
        "MROWNER",
        "MROWNERCONFIG",
        "host data",
        "id key",
        "author key",
        "family id",
        "image id",
        "guest SVN",
        "boot applications",
        "boot: named",
        "paravisor: named",
        "event log",
        "PCR ",
    }
)
_CURRENCY_CHECKS: Final = (
    "TCB status",
    "advisory ",
    "minimum TCB",
    "age of the collateral",
    "age of the document",
    "TCB evaluation",
    "TCB channel",
    "TEE TCB SVN",
    "firmware version",
    "mitigation vector",
    "servicing",
    "product accepted",
    f"{STRICT_2026}: versions",
    f"{STRICT_2026}: firmware",
    f"{STRICT_2026}: TCB channel",
)
_FIRMWARE_ONLY: Final = (
    "a launch measurement alone covers the machine's firmware: it says nothing of the kernel and what runs on it,"
    " so it releases no key without a guest image document that says what it covers"
)
_SIMULATED: Final = "it proves the protocol and protects nothing from whoever runs the machine"


def tee_of(assessment: Assessment) -> str:
    """The verified TEE. Where the evidence is not genuine, the TEE by the form of the evidence."""
    if assessment.report is not None:
        return assessment.report.tee
    if isinstance(assessment.evidence, NitroDocument):
        return assessment.evidence.tee
    if isinstance(assessment.evidence, SGXQuote):
        return "sgx"
    return _form(assessment.evidence)


def _form(evidence: Evidence) -> str:
    if isinstance(evidence, TPMQuote):
        return "tpm"
    if isinstance(evidence, AzureEvidence):
        return f"az-{_form(evidence.hardware)}"
    return "tdx" if isinstance(evidence, TDXQuote) else "snp"


def _failed(checks: Iterable[Check], names: Iterable[str]) -> bool:
    wanted = tuple(names)
    return any(not check.ok and check.name.startswith(wanted) for check in checks)


def _genuine(assessment: Assessment) -> str:
    report = assessment.report
    if report is None:
        answer = (
            "NO     " if assessment.genuine is False else "?      could not be checked, the collateral is at fault: "
        )
        return answer + (assessment.error.message if assessment.error else "not verified")
    root = str(report.root_fingerprint)[:16]
    if report.tee.startswith("sim"):
        return f"yes    but simulated, under the root {root}…"
    if report.tee == "tpm":
        return f"yes    signatures and certificates lead to the TPM root {root}… that the policy names"
    vendor = _VENDORS.get(report.tee, "AMD" if report.tee.endswith("snp") else "Intel")
    return f"yes    signatures and certificates lead to {vendor}'s root {root}…"


def trust_note(tee: str) -> str | None:
    """Whom one trusts beside the processor's maker, in a few words. None where that is nobody."""
    if tee in TRUSTED:
        return f"{TRUSTED[tee]}: whoever controls it can read the guest's memory"
    if tee in ("tpm", "sim-tpm"):
        return "whoever runs the machine: a TPM measures the boot, and encrypts no memory"
    return None


def shortfalls(assessment: Assessment) -> tuple[Shortfall, ...]:
    """Every security version that is too low: by the maker's tables, or by the policy where the maker has none."""
    report = assessment.report
    if report is None:
        return ()
    found = dict.fromkeys(report.shortfalls)
    if isinstance(report.evidence, SNPReport):
        product = str(report.platform["product"])
        for alternative in assessment.policy.alternatives():
            minimum = alternative.min_tcb.get(product)
            if minimum is not None:
                found |= dict.fromkeys(amd_shortfalls(report.evidence, product, minimum))
    return tuple(found)


def attacks(assessment: Assessment) -> tuple[Outcome, ...]:
    """What the evidence shows of the published attacks, where the policy names a profile."""
    report = assessment.report
    profiled = [item for item in assessment.policy.alternatives() if item.profile is not None]
    return outcomes(report, profiled[0]) if report is not None and profiled else ()


def _platform(report: VerifiedReport) -> str:
    facts = report.platform
    if isinstance(report.evidence, TPMQuote):
        return f"{_TEE_NAMES[report.tee]}, firmware {facts['tpm_firmware']}, boot {facts['boots']}"
    if report.tee.endswith("snp"):
        place = f"provider {facts['provider']}" if facts["provider"] else f"chip {text(facts['chip_id'])[:16]}…"
        return f"{_TEE_NAMES[report.tee]} on {facts['product']}, {place}, signed with its {facts['certificate']}"
    if isinstance(report.evidence, NitroDocument):
        return f"{_TEE_NAMES[report.tee]}, {facts['module_id']}, document of {facts['document_time']}"
    parts = [f"{_TEE_NAMES[report.tee]}, FMSPC {text(facts['fmspc'])}, {facts['sgx_type']}"]
    if facts["smt"] is not None:
        parts.append("hyper-threading on" if facts["smt"] else "hyper-threading off")
    return ", ".join(parts)


def _up_to_date(assessment: Assessment, report: VerifiedReport) -> str:
    if isinstance(report.evidence, TPMQuote):
        return "?      a TPM does not say how up to date its machine is"
    if report.tee.endswith("snp"):
        answer = "NO    " if _failed(assessment.checks, ("minimum TCB",)) else "yes   "
        return f"{answer} {report.platform['reported_tcb']}; {_STATUS_WORDS[report.status]}"
    if isinstance(report.evidence, NitroDocument):
        answer = "NO    " if _failed(assessment.checks, ("age of the document",)) else "?     "
        return f"{answer} Amazon states no versions; its hypervisor is Amazon's to keep up to date"
    if report.status is TCBStatus.UP_TO_DATE:
        answer = "yes   "
    else:
        answer = "NO    " if _failed(assessment.checks, _CURRENCY_CHECKS) else "enough"
    found = f"{answer} {report.status.value}: {_STATUS_WORDS[report.status]}"
    if report.advisories:
        found += f" ({text(report.advisories)})"
    return found


def _currency_details(report: VerifiedReport) -> str | None:
    if report.tcb_date is None or report.evaluation_number is None:
        return None
    return f"TCB level of {report.tcb_date:%Y-%m-%d}, by data set {report.evaluation_number}"


def _answer(assessment: Assessment, names: Iterable[str]) -> str:
    return "NO    " if _failed(assessment.checks, names) else "yes   "


def _program(assessment: Assessment, report: VerifiedReport) -> list[tuple[str, str]]:
    answer = _answer(assessment, _PROGRAM_CHECKS)
    if assessment.policy.any_program and not assessment.policy.names_program:
        answer = "any   "
    if isinstance(report.evidence, SGXQuote):
        return [
            ("which program?", f"{answer} MRENCLAVE {report.measurement}"),
            ("", f"       signer {report.mrsigner}, product {report.isv_prod_id}, SVN {report.isv_svn}"),
        ]
    if report.rtmrs is not None:
        return [
            ("which program?", f"{answer} MRTD {report.measurement}"),
            ("", f"       RTMR3 {report.rtmrs[3].hex()}"),
        ]
    if report.pcrs is not None:
        if isinstance(report.evidence, NitroDocument):
            first, *more = _shown_pcrs(report)
            return [("which program?", f"{answer} {first}"), *(("", f"       {line}") for line in more)]
        what = "all PCRs" if isinstance(report.evidence, TPMQuote) else "paravisor"
        return [
            ("which program?", f"{answer} PCR 4 {report.pcrs[4].hex()}"),
            ("", f"       PCR {WORKLOAD_PCR} {report.pcrs[WORKLOAD_PCR].hex()} (workload)"),
            ("", f"       {what} {report.measurement}"),
        ]
    return [
        ("which program?", f"{answer} launch measurement {report.measurement}"),
        ("", f"       {_FIRMWARE_ONLY}"),
    ]


def _shown_pcrs(report: VerifiedReport) -> list[str]:
    """The PCRs that tell programs apart: those of the program first, then each other one that is not zero."""
    pcrs = report.pcrs or {}
    first = PROGRAM_PCR.get(report.tee, 0)
    others = [number for number in sorted(pcrs) if number != first and any(pcrs[number])]
    return [f"PCR {number} {pcrs[number].hex()}" for number in (first, *others) if number in pcrs]


def _bound(assessment: Assessment) -> str:
    if assessment.report_data is None:
        return "?      not compared: nothing was given to compare the report data with"
    ok = not _failed(assessment.checks, ("report data",))
    return "yes    the report data is the one expected" if ok else "NO     the report data is another one"


def lines(assessment: Assessment) -> list[tuple[str, str]]:
    """Pairs of question and answer, in order. An empty question continues the one before."""
    report = assessment.report
    found = [("judged as of", f"{assessment.now:%Y-%m-%d %H:%M:%S} UTC"), ("genuine?", _genuine(assessment))]
    if report is not None:
        if report.tee.startswith("sim"):
            found.append(("", f"       {_SIMULATED}"))
        found.append(("which platform?", _platform(report)))
        note = trust_note(report.tee)
        if note is not None:
            found.append(("whom to trust?", note))
        found.append(("up to date?", _up_to_date(assessment, report)))
        details = _currency_details(report)
        if details is not None:
            found.append(("", f"       {details}"))
        found += _program(assessment, report)
        if any(check.name == ACPI_CHECK for check in assessment.checks):
            found.append(("", "       with any ACPI tables of the host, which can attack the guest through them"))
        if report.debug:
            answer = "NO     refused" if _failed(assessment.checks, ("debug",)) else "YES    allowed by the policy"
            found.append(("debug?", f"{answer}: whoever runs the machine can read its memory"))
        else:
            found.append(("debug?", "no"))
        found.append(("bound to this key?", _bound(assessment)))
    return found


def _verdict(assessment: Assessment) -> str:
    claims = assessment.claims
    if claims is not None:
        until = f"{claims.valid_until:%Y-%m-%d %H:%M} UTC"
        owners = "; ".join(
            f"{item.name} exempted by {item.owner} until {item.until:%Y-%m-%d}" for item in claims.exemptions
        )
        trusted = TRUSTED.get(claims.report.tee)
        trust = f", if you trust {trusted}" if trusted else ""
        return f"ACCEPTED by the policy{trust}, good until {until}" + (f" ({owners})" if owners else "")
    count = len(assessment.failed)
    return "REFUSED: " + ("one check failed" if count == 1 else f"{count} checks failed")


def to_text(assessment: Assessment) -> str:
    """The assessment as text: about a dozen short lines. The last is the verdict."""
    found = [f"{question:<{_WIDTH}} {answer}" for question, answer in lines(assessment)]
    found += [f"  {outcome}" for outcome in attacks(assessment)]
    for warned in assessment.claims.warned if assessment.claims is not None else ():
        until = f", refused after {warned.until:%Y-%m-%d}" if warned.until is not None else ""
        found.append(f"  warning of {warned.at:%Y-%m-%d}{until}: {warned.name}")
        found.append(f"    expected {text(warned.expected)}")
        found.append(f"    seen     {text(warned.seen)}")
        found.append(f"    do       {warned.remedy}")
    for check in assessment.failed:
        found.append(f"  failed: {check.name}")
        if check.expected is not None:
            found.append(f"    expected {text(check.expected)}")
        if check.seen is not None:
            found.append(f"    seen     {text(check.seen)}")
        if check.remedy is not None:
            found.append(f"    do       {check.remedy}")
    found.append(f"{'verdict':<{_WIDTH}} {_verdict(assessment)}")
    return "\n".join(found)


def _evidence_dict(evidence: Evidence) -> dict[str, Any]:
    """The members of the evidence itself. Trust them only where `genuine` is true."""
    if isinstance(evidence, TPMQuote | AzureEvidence):
        found = (
            {"measurement": evidence.attest.pcr_digest.hex(), "debug": False}
            if isinstance(evidence, TPMQuote)
            else _evidence_dict(evidence.hardware)
        )
        pcrs = {str(index): value.hex() for index, value in enumerate(evidence.pcrs)}
        return found | {"pcrs": pcrs, "report_data": evidence.report_data.hex()}
    if isinstance(evidence, SGXQuote):
        report = evidence.report
        found = {
            "measurement": report.mrenclave.hex(),
            "mrenclave": report.mrenclave.hex(),
            "mrsigner": report.mrsigner.hex(),
            "isv_prod_id": report.isv_prod_id,
            "isv_svn": report.isv_svn,
            "attributes": report.attributes.hex(),
        }
    elif isinstance(evidence, TDXQuote):
        td = evidence.report
        found = {
            "measurement": td.mrtd.hex(),
            "mrtd": td.mrtd.hex(),
            **{f"rtmr{index}": value.hex() for index, value in enumerate(td.rtmrs)},
            "mrseam": td.mrseam.hex(),
            "mrsignerseam": td.mrsigner_seam.hex(),
            "seam_attributes": td.seam_attributes.hex(),
            "tee_tcb_svn": td.tee_tcb_svn.hex(),
            "td_attributes": f"{td.td_attributes:016x}",
            "xfam": f"{td.xfam:016x}",
        }
    elif isinstance(evidence, NitroDocument):
        found = {
            "measurement": evidence.pcrs.get(PROGRAM_PCR[evidence.tee], b"").hex(),
            "pcrs": {"sha384": {str(number): value.hex() for number, value in sorted(evidence.pcrs.items())}},
            "public_key": None if evidence.public_key is None else evidence.public_key.hex(),
            "user_data": None if evidence.user_data is None else evidence.user_data.hex(),
            "nonce": None if evidence.nonce is None else evidence.nonce.hex(),
        }
    else:
        found = {
            "measurement": evidence.measurement.hex(),
            "host_data": evidence.field("host_data").hex(),
            "guest_policy": f"{evidence.policy:016x}",
            "guest_svn": evidence.number("guest_svn"),
            "vmpl": evidence.number("vmpl"),
            "chip_id": evidence.chip_id.hex(),
        }
    debug = evidence.report.debug if isinstance(evidence, (SGXQuote, TDXQuote)) else evidence.debug
    return found | {"debug": debug, "report_data": evidence.report_data.hex()}


def to_dict(assessment: Assessment) -> dict[str, Any]:
    """The assessment as JSON data, with byte strings in hex and times in UTC."""
    report, claims, error = assessment.report, assessment.claims, assessment.error
    found: dict[str, Any] = {
        "tee": tee_of(assessment),
        "verdict": assessment.verdict,
        "genuine": assessment.genuine,
        "status": report.status.value if report else None,
        "advisories": list(report.advisories) if report else [],
        **_evidence_dict(assessment.evidence),
        "bound": None if assessment.report_data is None else not _failed(assessment.checks, ("report data",)),
        "verified_at": text(assessment.now),
    }
    if report is not None:
        found |= {
            "tee_with_root": report.tee_with_root,
            "root": str(report.root_fingerprint),
            "part_statuses": {name: status.value for name, status in report.part_statuses.items()},
            "tcb_date": text(report.tcb_date) if report.tcb_date else None,
            "tcb_evaluation_data_number": report.evaluation_number,
            "collateral_issued_at": text(report.issued_at) if report.issued_at else None,
            "expires_at": text(report.expires_at),
            "revocation_checked": report.revocation_checked,
            "platform": {
                name: value if isinstance(value, (int, str, type(None))) else text(value)
                for name, value in report.platform.items()
            },
        }
        if report.tee.startswith("sim"):
            found["warning"] = _SIMULATED
        elif report.tee == "snp":
            found["warning"] = _FIRMWARE_ONLY
        if report.tee in TRUSTED:
            found["trust"] = TRUSTED[report.tee]
        found["tcb_shortfalls"] = [item.to_dict() for item in shortfalls(assessment)]
        known = attacks(assessment)
        if known:
            found["attacks"] = [outcome.to_dict() for outcome in known]
    if claims is not None:
        found["warnings"] = [item.to_dict() for item in claims.warned]
        found["valid_until"] = text(claims.valid_until)
        found["exemptions"] = [
            {"name": item.name, "owner": item.owner, "until": text(item.until)} for item in claims.exemptions
        ]
    if error is not None:
        found["error"] = error.details()
    found["checks"] = [check.to_dict() for check in assessment.checks]
    return found


_AFFIRMING, _WARNING, _CONTRAINDICATED, _UNRECOGNIZED = 2, 32, 96, 97
_TIERS: Final = ((_CONTRAINDICATED, "contraindicated"), (_WARNING, "warning"), (_AFFIRMING, "affirming"))


def trust_vector(assessment: Assessment) -> dict[str, int]:
    """The AR4SI trustworthiness vector: 2 affirming, 32 warning, 96 and up contraindicated, 0 no claim."""
    report, checks = assessment.report, assessment.checks
    if report is None:
        return {"instance-identity": _UNRECOGNIZED, "hardware": _UNRECOGNIZED}
    if _failed(checks, _CURRENCY_CHECKS):
        hardware = _CONTRAINDICATED
    elif report.status in (TCBStatus.UP_TO_DATE, TCBStatus.NOT_STATED) and not report.tee.startswith(("sim", "tpm")):
        hardware = _AFFIRMING
    else:
        hardware = _WARNING
    if assessment.policy.names_program:
        executables = _CONTRAINDICATED if _failed(checks, _PROGRAM_CHECKS) else _AFFIRMING
    else:
        executables = 0
    others = [
        check
        for check in checks
        if not check.ok
        and check.name not in _PROGRAM_CHECKS
        and not check.name.startswith((*_CURRENCY_CHECKS, "debug", "PCR "))
    ]
    return {
        "instance-identity": _AFFIRMING,
        "configuration": _CONTRAINDICATED if others else _AFFIRMING,
        "executables": executables,
        "hardware": hardware,
        "runtime-opaque": _CONTRAINDICATED if report.debug else _AFFIRMING,
    }


def ear_claims(assessment: Assessment, *, verifier: str) -> dict[str, Any]:
    """An attestation result as a claims set in the manner of EAR (draft-ietf-rats-ear, profile of RFC 9711).

    `verifier` is the name of this verifier. The status is the worst tier of the vector. A refusal is always
    contraindicated.
    """
    vector = trust_vector(assessment)
    status = next((name for limit, name in _TIERS if max(vector.values()) >= limit), "none")
    if assessment.claims is None:
        status = "contraindicated"
    policy = json.dumps(assessment.policy.to_dict(), sort_keys=True, separators=(",", ":")).encode()
    return {
        "eat_profile": "tag:github.com,2023:veraison/ear",
        "iat": int(assessment.now.timestamp()),
        "ear.verifier-id": {"developer": "Adyton", "build": verifier},
        "submods": {
            tee_of(assessment): {
                "ear.status": status,
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": f"sha256:{hashlib.sha256(policy).hexdigest()}",
                "ear.adyton.result": {name: value for name, value in to_dict(assessment).items() if name != "checks"},
            }
        },
    }
