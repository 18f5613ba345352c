"""What a policy leaves open: each line that opens something is named, and closing it takes the name away."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from adyton.attest.evidence_policy import Policy
from adyton.attest.policy.open import DANGERS, accepts_nothing, left_open, never_excluded

NOW = datetime(2026, 11, 27, tzinfo=UTC)
GENOA = {"bootloader": 10, "tee": 0, "snp": 27, "microcode": 86}
HOSTS = {"ppids": [{"id": "ab" * 16, "until": "2027-01-01"}]}
PCK = {"smt_disabled": True, "memory_integrity": True}
CLOSED: dict[str, Any] = {
    "tees": ["sgx", "tdx", "snp"],
    "workloads": ["11" * 32],
    "rtmr0": ["11" * 48],
    "rtmr1": ["11" * 48],
    "rtmr2": ["11" * 48],
    "min_tcb": {"Genoa": GENOA},
    "max_collateral_age_days": 7,
    "hosts": HOSTS,
    "profile": "strict-2026",
    "sgx": {"pck": PCK},
    "tdx": {"pck": PCK},
}
BARE = {"profile": None}


def names(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Danger and name of what is open."""
    kept = {name: value for name, value in document.items() if value is not None}
    return [(item.danger, item.name) for item in left_open(Policy.from_dict(kept), NOW)]


def test_policy_that_leaves_nothing_open_has_no_line() -> None:
    """The policy that all others here change in one thing."""
    assert names(CLOSED) == []


EXEMPTION = {"name": "INTEL-SA-00615", "owner": "alice", "until": "2027-01-31"}
RIM_EXEMPTION = {"sha256": "ab" * 32, "owner": "alice", "until": "2027-01-31"}
SWITCHES = {"platform_info": {"require": ["alias_check", "ciphertext_hiding", "rapl_off"], "forbid": ["smt"]}}
SWITCHES |= {"guest_policy": {"require": ["page_swap_off"]}}


@pytest.mark.parametrize(
    ("change", "danger", "name"),
    [
        ({"allow_debug": True}, "critical", "allow_debug"),
        ({"any_program": True}, "critical", "any_program"),
        ({"allow_missing_report_data": True}, "critical", "allow_missing_report_data"),
        ({"tees": ["sgx", "sim:" + "ab" * 32]}, "critical", "tees"),
        ({"tees": ["sgx", "sim-tpm:" + "ab" * 32]}, "critical", "tees"),
        ({"tees": ["sgx", "tpm"]}, "critical", "tees: tpm"),
        ({"tees": ["az-snp"], "allow_missing_crl": True}, "high", "allow_missing_crl"),
        ({"tees": ["az-tdx"], "allow_sept_ve": True}, "high", "allow_sept_ve"),
        ({"gpus": {"simulated_roots": ["ab" * 32]}}, "critical", "gpus.simulated_roots"),
        ({"gpus": {"allow_devtools": True}}, "critical", "gpus.allow_devtools"),
        ({"gpus": {"allow_missing_ocsp": True}}, "high", "gpus.allow_missing_ocsp"),
        ({"gpus": {"rim_exemptions": [RIM_EXEMPTION]}}, "medium", "gpus.rim_exemptions"),
        ({"rtmr1": None}, "critical", "rtmr0, rtmr1, rtmr2"),
        ({"measurements": ["11" * 48]}, "high", "measurements"),
        (
            {"signers": [{"mrsigner": "44" * 32, "isv_prod_id": 1, "min_isv_svn": 3}]},
            "medium",
            "signers",
        ),
        ({"allow_provisioning_keys": True}, "medium", "allow_provisioning_keys"),
        ({"allow_migration": True}, "high", "allow_migration"),
        ({"allow_sept_ve": True}, "high", "allow_sept_ve"),
        ({"allow_missing_crl": True}, "high", "allow_missing_crl"),
        ({"statuses": ["UpToDate", "OutOfDate"]}, "critical", "statuses: OutOfDate"),
        ({"statuses": ["SWHardeningNeeded"]}, "medium", "statuses: SWHardeningNeeded"),
        ({"exemptions": [EXEMPTION]}, "medium", "exemptions: INTEL-SA-00615"),
        ({"exemptions": [EXEMPTION | {"until": "2028-01-31"}]}, "high", "exemptions: INTEL-SA-00615"),
        ({"relaxed": [EXEMPTION | {"name": "smt"}]}, "medium", "relaxed: smt"),
        ({"tracked": [{"name": "mrseams", "owner": "alice"}]}, "medium", "tracked: mrseams"),
        ({"hosts": None}, "high", "hosts"),
        (
            {"hosts": {"registries": [{"provider": "gcp", "ppids": ["ab" * 16], "until": "2027-01-01"}]}},
            "low",
            "hosts",
        ),
        ({"max_collateral_age_days": None}, "medium", "max_collateral_age_days"),
        ({"sgx": {"pck": PCK | {"smt_disabled": False}}}, "low", "sgx.pck.smt_disabled"),
        ({"tdx": {"pck": PCK | {"memory_integrity": False}}}, "low", "tdx.pck.memory_integrity"),
        ({"snp": {"max_vmpl": 1}}, "high", "snp.max_vmpl"),
        (
            {
                "min_tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 29, "microcode": 222}},
                "snp": {"products": {"Milan": {"accept_until": "2027-01-01", "reason": "a test"}}},
            },
            "critical",
            "snp.products.Milan",
        ),
    ],
)
def test_each_thing_left_open_is_named_by_itself(change: dict[str, Any], danger: str, name: str) -> None:
    """One line more or less opens one thing."""
    assert names(CLOSED | change) == [(danger, name)]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "profile"),
        ({"min_tcb": {"Genoa": GENOA | {"snp": 26}}}, "min_tcb.Genoa"),
        ({"sgx": {"pck": PCK}}, "sgx.channel"),
        (
            {"snp": {"products": {"Genoa": SWITCHES | {"platform_info": {"forbid": ["smt"]}}}}},
            "Genoa: platform alias_check",
        ),
        ({"snp": {"products": {"Genoa": SWITCHES | {"guest_policy": {}}}}}, "Genoa: guest page_swap_off"),
        (
            {"snp": {"products": {"Genoa": SWITCHES | {"platform_info": {"require": ["alias_check"]}}}}},
            "Genoa: SMT",
        ),
    ],
)
def test_without_a_profile_its_rules_are_looked_for_one_by_one(change: dict[str, Any], name: str) -> None:
    """What the profile would have asked for is named, unless the policy asks for it itself."""
    early = {"sgx": {"pck": PCK, "channel": "early"}, "tdx": {"pck": PCK, "channel": "early"}}
    own = CLOSED | {"profile": None, "snp": {"products": {"Genoa": SWITCHES}}} | early
    assert [found for _, found in names(own)] == ["profile"]
    assert name in [found for _, found in names(own | change)]


def test_ended_exemptions_open_nothing() -> None:
    """What has ended accepts nothing any more."""
    assert names(CLOSED | {"exemptions": [EXEMPTION | {"until": "2026-01-01"}]}) == []
    assert names(CLOSED | {"tracked": [{"name": "hosts", "owner": "a", "until": "2026-01-01"}]}) == []


def test_alternatives_are_looked_at_each_and_told_once() -> None:
    """An alternative that opens something is named; what two open is one line."""
    inner = [{"allow_debug": True}, {"allow_debug": True, "any_program": True}]
    assert names(CLOSED | {"any_of": inner}) == [("critical", "allow_debug"), ("critical", "any_program")]


def test_lines_come_in_order_of_danger() -> None:
    """The worst first."""
    found = [danger for danger, _ in names({"tees": ["tdx", "snp"], "any_program": True, "min_tcb": {"Genoa": GENOA}})]
    assert found == sorted(found, key=lambda danger: [*DANGERS].index(danger))  # type: ignore[arg-type]
    assert found[0] == "critical"
    assert found[-1] == "low"


def test_policy_that_accepts_nothing_is_told_so() -> None:
    """Nothing is open where nothing is accepted; it may be a mistake."""
    assert accepts_nothing(Policy())
    assert accepts_nothing(Policy.from_dict({"tees": ["sgx"]}))
    assert not accepts_nothing(Policy.from_dict(CLOSED))
    enclave = {"pcrs": {"0": ["11" * 48]}}
    assert not accepts_nothing(Policy.from_dict({"tees": ["nitro"], **enclave}))
    assert accepts_nothing(Policy.from_dict({"tees": ["nitrotpm"], **enclave}))


def test_attacks_that_no_evidence_excludes_are_named_by_tee() -> None:
    """Physical ones on every TEE, those without a number on theirs."""
    sgx = never_excluded(Policy.from_dict({"tees": ["sgx"]}))
    snp = never_excluded(Policy.from_dict({"tees": ["snp"]}))
    assert "TEE.fail (physical)" in sgx
    assert "STALEUS" not in sgx
    assert {"STALEUS", "Fabricked", "MilanLaunchy and BadFuse", "DDRop (physical)"} <= set(snp)
    assert "RMPocalypse" not in snp
    assert never_excluded(Policy.from_dict({"tees": ["az-snp"]})) == snp
