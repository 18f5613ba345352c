"""Policies about firmware and switches over real SEV-SNP reports: what real machines meet, and what they do not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adyton.attest import amd, snp
from adyton.attest.appraise import Claims, appraise
from adyton.attest.evidence_policy import Policy
from adyton.attest.policy.attacks import outcomes
from adyton.attest.report import VerifiedReport
from adyton.attest.roots import TrustRoots
from adyton.errors import AppraisalFailed
from tests.unit.attest.test_snp import collateral_of

pytestmark = pytest.mark.shared_vectors

LOWEST = {
    "Milan": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0},
    "Genoa": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0},
    "Turin": {"fmc": 0, "bootloader": 0, "tee": 0, "snp": 0, "microcode": 0},
}


@pytest.fixture(scope="module")
def reports(shared_vectors: Path) -> dict[str, VerifiedReport]:
    """The recorded reports under AMD's own roots, by file name, each verified at its time."""
    folder = shared_vectors / "evidence"
    found = {}
    for entry in json.loads((folder / "INDEX.json").read_text())["entries"]:
        if entry["kind"] == "snp-report" and entry.get("expected") == "valid":
            raw, now = (folder / entry["file"]).read_bytes(), datetime.fromtimestamp(entry["verify_at"], UTC)
            report = amd.verify(snp.parse_report(raw), collateral_of(folder, entry), TrustRoots(), now)
            found[Path(entry["file"]).name.partition(".")[0]] = report
    return found


def judged(report: VerifiedReport, **rules: Any) -> Claims:
    """Judge by these rules for every product, at the time of the evidence."""
    products = {"Milan": {"accept_until": "2040-01-01", "reason": "a test"}, "Genoa": {}, "Turin": {}}
    document = {
        "tees": ["snp"],
        "measurements": [str(report.measurement)],
        "min_tcb": LOWEST,
        "allow_missing_crl": True,
        "allow_debug": True,
        "snp": {"max_vmpl": 3, "products": {name: own | rules for name, own in products.items()}},
    }
    return appraise(report, Policy.from_dict(document), report.verified_at, report_data=report.report_data)


def refused(report: VerifiedReport, **rules: Any) -> list[str]:
    """What the rules refuse."""
    with pytest.raises(AppraisalFailed) as caught:
        judged(report, **rules)
    return [check.name for check in caught.value.failed]


def test_real_turin_meets_the_rules_of_newer_firmware(reports: dict[str, VerifiedReport]) -> None:
    """All six mitigations, the alias check and the safe IOMMU are there. SMT is on, ciphertext hiding off."""
    turin = reports["turin-v5-microsoft"]
    switches = {"require": ["smt", "ecc", "alias_check", "iommu_write_safe"], "forbid": ["tsme", "tio"]}
    assert judged(turin, platform_info=switches, min_current_mitigation=63, min_launch_mitigation=63).bound
    assert judged(turin, min_firmware="1.55.65").bound
    assert refused(turin, min_firmware="1.58") == ["firmware version"]
    assert refused(turin, min_current_mitigation=64) == ["mitigation vector at current"]
    assert refused(turin, platform_info={"require": ["ciphertext_hiding"]}) == ["platform info"]
    assert refused(turin, guest_policy={"require": ["page_swap_off"]}) == ["guest policy"]


def test_real_genoa_is_below_the_floors_of_2025(reports: dict[str, VerifiedReport]) -> None:
    """It has the alias check, runs with SMT, and states no mitigation; nothing is called excluded."""
    genoa = reports["genoa-v3-microsoft"]
    assert judged(genoa, platform_info={"require": ["alias_check", "smt"]}, min_firmware="1.55.40").bound
    assert refused(genoa, platform_info={"forbid": ["smt"]}) == ["platform info"]
    assert refused(genoa, min_current_mitigation=1) == ["mitigation vector at current"]
    told = {item.attack.name: item for item in outcomes(genoa, Policy())}
    assert told["RMPocalypse"].standing == "not excluded"
    assert "snp (reported) is 23, needed 27" in told["RMPocalypse"].why
    assert told["BadRAM"].standing == "reported fixed by"


def test_no_real_machine_here_meets_the_strict_profile(reports: dict[str, VerifiedReport]) -> None:
    """Of all nine, each is refused, and each by rules that can be relaxed by name."""
    assert len(reports) == 9
    for report in reports.values():
        policy = Policy.from_dict(
            {
                "tees": ["snp"],
                "measurements": [str(report.measurement)],
                "min_tcb": LOWEST,
                "allow_missing_crl": True,
                "profile": "strict-2026",
            }
        )
        with pytest.raises(AppraisalFailed) as caught:
            appraise(report, policy, report.verified_at, report_data=report.report_data)
        names = {check.name for check in caught.value.failed}
        assert {"strict-2026: platform ciphertext_hiding", "strict-2026: guest page_swap_off"} <= names


def test_every_real_report_is_told_apart_by_its_chip(reports: dict[str, VerifiedReport]) -> None:
    """A VCEK names a chip, a VLEK none; every bit of the platforms has a name."""
    for name, report in reports.items():
        chip = report.platform["chip_id"]
        assert (chip is None or any(bytes(chip))) if isinstance(chip, bytes | None) else False, name
        assert judged(report, platform_info={"forbid": ["tio"]}).bound
