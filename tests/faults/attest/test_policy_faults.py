"""Named faults of genuine evidence: each is refused by one requirement of the policy, and accepted without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from adyton.attest import amd, appraise, dcap, snp
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.report import VerifiedReport
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote
from adyton.check import Check
from adyton.errors import AppraisalFailed
from tests.support.amd_factory import LAUNCH, SNPScenario
from tests.support.evidence_factory import MRENCLAVE, MRSIGNER, NOW, REPORT_DATA, Scenario, level

OTHER32, OTHER48 = "11" * 32, "11" * 48
MIN_TCB = {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}}


def sgx_policy(**changes: Any) -> dict[str, Any]:
    """What the good SGX scenario meets."""
    return {"tees": ["sgx"], "measurements": [MRENCLAVE.hex()]} | changes


def tdx_policy(**changes: Any) -> dict[str, Any]:
    """What the good TDX scenario meets."""
    scenario = Scenario(tdx=True, version=4)
    mrtd = scenario.body["mrtd"]
    return {"tees": ["tdx"], "measurements": [bytes(mrtd).hex() if isinstance(mrtd, bytes) else ""]} | changes


def snp_policy(**changes: Any) -> dict[str, Any]:
    """What the good SEV-SNP scenario meets."""
    return {"tees": ["snp"], "measurements": [LAUNCH.hex()], "min_tcb": MIN_TCB} | changes


@dataclass(frozen=True)
class Fault:
    """One requirement that is not met."""

    name: str
    check: str
    policy: dict[str, Any]
    spoil: Callable[[Any], None] = field(default=lambda _: None)
    report_data: bytes | None = REPORT_DATA


def _set(where: str, name: str, value: object) -> Callable[[Any], None]:
    return lambda scenario: getattr(scenario, where).__setitem__(name, value)


def _debug(scenario: Scenario) -> None:
    scenario.debug()


def _hardening(scenario: Scenario) -> None:
    scenario.tcb_info["tcbLevels"] = [level([5] * 16, 13, "SWHardeningNeeded", advisories=("TEST-SA-5",))]


def _out_of_date(scenario: Scenario) -> None:
    scenario.tcb_info["tcbLevels"] = [level([5] * 16, 13, "OutOfDate")]


def _simulated(scenario: Scenario) -> None:
    scenario.simulated = True


def _no_crl(scenario: SNPScenario) -> None:
    scenario.crl = False


ENDED = {"name": "TEST-SA-5", "owner": "alice", "until": "2026-01-14"}
SEPT = 1 << 28

SGX_FAULTS = [
    Fault("tee-not-named", "TEE", sgx_policy(tees=["tdx"])),
    Fault("simulated-is-not-sgx", "TEE", sgx_policy(), _simulated),
    Fault("status-not-accepted", "TCB status", sgx_policy(), _out_of_date),
    Fault("advisory-not-exempted", "advisory TEST-SA-5", sgx_policy(statuses=["SWHardeningNeeded"]), _hardening),
    Fault(
        "advisory-exemption-ended",
        "advisory TEST-SA-5",
        sgx_policy(statuses=["SWHardeningNeeded"], exemptions=[ENDED]),
        _hardening,
    ),
    Fault("debug-bit", "debug", sgx_policy(), _debug),
    Fault("no-program-named", "program", {"tees": ["sgx"]}),
    Fault("measurement-differs", "measurement", sgx_policy(measurements=[OTHER32])),
    Fault("workload-differs", "workload", sgx_policy(workloads=[OTHER32])),
    Fault(
        "signer-differs",
        "signer",
        sgx_policy(signers=[{"mrsigner": OTHER32, "isv_prod_id": 7, "min_isv_svn": 3}]),
    ),
    Fault(
        "product-differs",
        "signer",
        sgx_policy(signers=[{"mrsigner": MRSIGNER.hex(), "isv_prod_id": 8, "min_isv_svn": 3}]),
    ),
    Fault(
        "svn-too-low",
        "signer",
        sgx_policy(signers=[{"mrsigner": MRSIGNER.hex(), "isv_prod_id": 7, "min_isv_svn": 4}]),
    ),
    Fault("provisioning-key", "enclave attributes", sgx_policy(), _set("body", "flags", 0x15)),
    Fault("not-initialised", "enclave attributes", sgx_policy(), _set("body", "flags", 0x4)),
    Fault("collateral-too-old", "age of the collateral", sgx_policy(max_collateral_age_days=9)),
    Fault("data-set-too-old", "TCB evaluation data number", sgx_policy(min_evaluation_number=21)),
    Fault("report-data-differs", "report data", sgx_policy(), report_data=bytes(64)),
    Fault("report-data-not-given", "report data", sgx_policy(require_report_data=True), report_data=None),
]

TDX_FAULTS = [
    *(Fault(f"rtmr{n}-differs", f"RTMR{n}", tdx_policy(**{f"rtmr{n}": [OTHER48]})) for n in range(4)),
    Fault("mrtd-differs", "measurement", tdx_policy(measurements=[OTHER48])),
    Fault("td-workload-differs", "workload", tdx_policy(workloads=[OTHER32])),
    Fault("mrconfigid-differs", "MRCONFIGID", tdx_policy(mrconfigids=[OTHER48])),
    Fault("mrowner-differs", "MROWNER", tdx_policy(mrowners=[OTHER48])),
    Fault("mrownerconfig-differs", "MROWNERCONFIG", tdx_policy(mrownerconfigs=[OTHER48])),
    Fault("mrseam-differs", "MRSEAM", tdx_policy(mrseams=[OTHER48])),
    Fault("td-debug", "debug", tdx_policy(), _debug),
    Fault("sept-ve", "TD attributes: SEPT_VE_DISABLE", tdx_policy(), _set("body", "td_attributes", 0)),
    Fault("migratable", "TD attributes: MIGRATABLE", tdx_policy(), _set("body", "td_attributes", SEPT | 1 << 29)),
    Fault("unknown-bit", "TD attributes: known bits", tdx_policy(), _set("body", "td_attributes", SEPT | 1 << 40)),
    Fault("service-td", "service TDs", tdx_policy(), _set("body", "mrservicetd", bytes(47) + b"\x01")),
]

SNP_FAULTS = [
    Fault("launch-differs", "measurement", snp_policy(measurements=[OTHER48])),
    Fault("no-minimum-named", "minimum TCB", snp_policy(min_tcb={})),
    Fault("tcb-below-minimum", "minimum TCB", snp_policy(min_tcb={"Milan": MIN_TCB["Milan"] | {"microcode": 220}})),
    Fault("committed-below-minimum", "minimum TCB", snp_policy(), _set("fields", "committed_tcb", bytes(8))),
    Fault("no-crl", "certificates checked for revocation", snp_policy(), _no_crl),
    Fault("host-data-differs", "host data", snp_policy(snp={"host_data": [OTHER32]})),
    Fault("id-key-differs", "id key", snp_policy(snp={"id_key_digests": [OTHER48]})),
    Fault("author-key-not-enabled", "author key", snp_policy(snp={"author_key_digests": ["00" * 48]})),
    Fault("family-differs", "family id", snp_policy(snp={"family_ids": ["11" * 16]})),
    Fault("image-differs", "image id", snp_policy(snp={"image_ids": ["11" * 16]})),
    Fault("vmpl-too-high", "privilege level (VMPL)", snp_policy(), _set("fields", "vmpl", 1)),
    Fault("guest-svn-too-low", "guest SVN", snp_policy(snp={"min_guest_svn": 2})),
    Fault("migration-agent", "guest policy: migration agent", snp_policy(), _set("fields", "policy", 0x70000)),
    Fault("smt", "guest policy: SMT", snp_policy(snp={"allow_smt": False})),
    Fault("single-socket", "guest policy: single socket", snp_policy(snp={"require_single_socket": True})),
    Fault(
        "alias-check",
        "platform: alias check",
        snp_policy(snp={"require_alias_check": True}),
        _set("fields", "platform_info", 1),
    ),
    Fault("snp-debug", "debug", snp_policy(), _set("fields", "policy", 0xB0000)),
]

FAULTS = [
    *(("sgx", fault) for fault in SGX_FAULTS),
    *(("tdx", fault) for fault in TDX_FAULTS),
    *(("snp", fault) for fault in SNP_FAULTS),
]


def report_of(kind: str, fault: Fault) -> VerifiedReport:
    """The spoilt scenario, signed and verified."""
    if kind == "snp":
        snp_scenario = SNPScenario()
        fault.spoil(snp_scenario)
        report = snp_scenario.built()
        return amd.verify(snp.parse_report(report.report), report.collateral, report.roots, report.now)
    scenario = Scenario()
    if kind == "tdx":
        scenario = Scenario(tdx=True, version=5, td_size=648)
    fault.spoil(scenario)
    built = scenario.built()
    evidence = parse_evidence(built.quote)
    if not isinstance(evidence, SGXQuote | TDXQuote):
        raise TypeError(kind)
    return dcap.verify(evidence, built.collateral, built.roots, built.now)


@pytest.mark.parametrize(("kind", "fault"), FAULTS, ids=[f"{kind}-{fault.name}" for kind, fault in FAULTS])
def test_policy_fault_is_refused_by_its_requirement_alone(
    kind: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly one requirement is not met, it says what repairs it, and without it the evidence is accepted."""
    report = report_of(kind, fault)
    policy = Policy.from_dict(fault.policy)
    with pytest.raises(AppraisalFailed) as caught:
        appraise.appraise(report, policy, NOW, report_data=fault.report_data)
    assert [reason.name for reason in caught.value.failed] == [fault.check]
    assert all(reason.remedy for reason in caught.value.failed)
    judgement: Any = vars(appraise)["_Judgement"]
    require = judgement.require

    def lenient(self: Any, name: str, ok: bool, **rest: Any) -> None:
        require(self, name, ok or name == fault.check, **rest)

    monkeypatch.setattr(judgement, "require", lenient)
    claims = appraise.appraise(report, policy, NOW, report_data=fault.report_data)
    assert claims.bound == (fault.report_data is not None)


def test_policy_faults_cover_every_requirement() -> None:
    """Every requirement that an appraisal judges has a fault."""
    judged: set[str] = set()
    everything = {
        "sgx": sgx_policy(workloads=[MRENCLAVE.hex()], max_collateral_age_days=30, min_evaluation_number=1),
        "tdx": tdx_policy(),
        "snp": snp_policy(),
    }
    for kind, document in everything.items():
        report = report_of(kind, Fault("good", "", {}))
        claims = appraise.appraise(report, Policy.from_dict(document), NOW, report_data=REPORT_DATA)
        judged |= {check.name for check in claims.checks}
    judged.discard("verified at the time of appraisal")
    judged.discard(appraise.ACPI_CHECK)  # it always holds: it says what the policy left open
    assert judged <= {fault.check for _, fault in FAULTS}


def test_appraisal_long_after_verification_is_refused() -> None:
    """A verified report is judged while it is fresh: what was valid then may not be now."""
    report = report_of("sgx", Fault("good", "", {}))
    with pytest.raises(AppraisalFailed) as caught:
        appraise.appraise(report, Policy.from_dict(sgx_policy()), NOW + timedelta(minutes=11), report_data=REPORT_DATA)
    assert [reason.name for reason in caught.value.failed] == ["verified at the time of appraisal"]
    assert all(isinstance(reason, Check) for reason in caught.value.failed)
