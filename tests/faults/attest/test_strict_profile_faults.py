"""The profile strict-2026, and what a verdict under it says of the published attacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adyton.attest import explain
from adyton.attest.appraise import appraise
from adyton.attest.assess import assess
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.policy.attacks import ATTACKS, Attack, Floor, outcomes
from adyton.attest.policy.profile import RELAXABLE, floors_of
from adyton.errors import AppraisalFailed
from tests.faults.attest.test_platform_policy_faults import (
    CHIP,
    LATER,
    PPID,
    Spoil,
    fields,
    host,
    nothing,
    policy_of,
    report_of,
)
from tests.faults.attest.test_policy_faults import MILAN, sgx_policy
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import NOW, REPORT_DATA, Scenario

GOOD: dict[str, Any] = {
    "platform_info": 1 << 3 | 1 << 4 | 1 << 5,
    "policy": 0x20000 | 1 << 23 | 1 << 24 | 1 << 25,
    **{f"{when}_{part}": number for when in ("current", "committed") for part, number in (("major", 1), ("minor", 58))},
    "current_mitigations": 0b111,
}
STRICT: dict[str, Any] = {"profile": "strict-2026"}


def good(scenario: SNPScenario) -> None:
    """A machine and a guest as the profile asks."""
    scenario.fields.update(GOOD)


def _with(**changes: Any) -> Spoil:
    return fields(**(GOOD | changes))


@pytest.mark.parametrize("product", ["Genoa", "Turin"])
def test_strict_profile_accepts_a_machine_that_meets_it(product: str) -> None:
    """Accepted, with a warning that no machine is listed; with the machine listed, without one."""
    report = report_of(product, good)
    claims = appraise(report, policy_of(product, STRICT), NOW, report_data=REPORT_DATA)
    assert [item.name for item in claims.warned] == ["hosts"]
    identifier = CHIP if product == "Genoa" else bytes(range(8))
    listed = policy_of(product, STRICT | host("chip_ids", identifier))
    assert appraise(report, listed, NOW, report_data=REPORT_DATA).warned == ()


FAULTS: list[tuple[str, str, Spoil]] = [
    ("alias_check", "platform alias_check", _with(platform_info=1 << 3 | 1 << 4)),
    ("ciphertext_hiding", "platform ciphertext_hiding", _with(platform_info=1 << 3 | 1 << 5)),
    ("rapl_off", "platform rapl_off", _with(platform_info=1 << 4 | 1 << 5)),
    ("smt", "platform smt", _with(platform_info=GOOD["platform_info"] | 1)),
    ("ciphertext_hiding", "guest ciphertext_hiding", _with(policy=GOOD["policy"] & ~(1 << 24))),
    ("page_swap_off", "guest page_swap_off", _with(policy=GOOD["policy"] & ~(1 << 25))),
    ("rapl_off", "guest rapl_off", _with(policy=GOOD["policy"] & ~(1 << 23))),
    ("smt", "guest smt", _with(policy=GOOD["policy"] | 1 << 16)),
    ("cxl", "guest cxl", _with(policy=GOOD["policy"] | 1 << 21)),
    ("", "guest debug and migration", _with(policy=GOOD["policy"] | 1 << 19)),
    ("", "guest debug and migration", _with(policy=GOOD["policy"] | 1 << 18)),
    ("", "VMPL", _with(vmpl=1)),
    ("firmware", "firmware", _with(committed_minor=57)),
    ("firmware", "firmware", _with(current_minor=57)),
    ("floors", "versions", _with(committed_tcb=bytes([10, 0, 0, 0, 0, 0, 26, 90]))),
    ("floors", "versions", _with(current_mitigations=0b110)),
]


@pytest.mark.parametrize(
    ("rule", "name", "spoil"), FAULTS, ids=[f"{name}-{n}" for n, (_, name, _s) in enumerate(FAULTS)]
)
def test_strict_profile_refuses_each_thing_by_itself_and_can_relax_it_until_a_day(
    rule: str, name: str, spoil: Spoil
) -> None:
    """One thing differs and its rule alone refuses; a relaxation with an owner accepts it until its end."""
    lowest = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}
    loose = STRICT | {
        "allow_debug": True,
        "allow_migration": True,
        "snp": {"max_vmpl": 3},
        "min_tcb": {"Genoa": lowest},
    }
    report = report_of("Genoa", spoil)
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, policy_of("Genoa", loose), NOW, report_data=REPORT_DATA)
    assert [item.name for item in caught.value.failed] == [f"strict-2026: {name}"]
    if not rule:
        return
    relaxed = {"name": rule, "owner": "alice", "until": LATER, "reason": "new machines are ordered"}
    claims = appraise(report, policy_of("Genoa", loose | {"relaxed": [relaxed]}), NOW, report_data=REPORT_DATA)
    assert {item.owner for item in claims.exemptions} == {"alice"}
    ended = loose | {"relaxed": [relaxed | {"until": "2026-01-14"}]}
    with pytest.raises(AppraisalFailed):
        appraise(report, policy_of("Genoa", ended), NOW, report_data=REPORT_DATA)


def test_strict_profile_refuses_milan_although_the_policy_answers_for_it() -> None:
    """The exemption of the policy is not enough: the profile has to be relaxed, too."""
    answered = {
        "snp": {"products": {"Milan": MILAN}},
        "min_tcb": {"Milan": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}},
    }

    def spoil(scenario: SNPScenario) -> None:
        scenario.fields.update(GOOD | {"version": 5, "current_mitigations": 0b1011})

    report = report_of("Milan", spoil)
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, policy_of("Milan", STRICT | answered), NOW, report_data=REPORT_DATA)
    names = {item.name for item in caught.value.failed}
    assert names == {"strict-2026: product", "strict-2026: versions"}
    assert "older than AMD's bulletins of 2026" in str(caught.value.failed[-1].seen)


def test_strict_profile_wants_the_early_channel_of_intel() -> None:
    """Collateral of another channel, or from a file, is refused; it can be relaxed."""
    built = Scenario().built()
    for channel, names in (
        ("early", []),
        ("standard", ["strict-2026: TCB channel"]),
        (None, ["strict-2026: TCB channel"]),
    ):
        collateral = replace(built.collateral, channel=channel)
        policy = Policy.from_dict(sgx_policy(**STRICT))
        judged = assess(parse_evidence(built.quote), collateral, built.roots, policy, NOW, report_data=REPORT_DATA)
        assert [check.name for check in judged.failed] == names


def test_every_rule_that_can_be_relaxed_is_a_rule() -> None:
    """No name is accepted in `relaxed` that relaxes nothing."""
    assert {rule for rule, _, _ in FAULTS if rule} | {"channel", "product"} == RELAXABLE


# --- what the verdict says ---------------------------------------------------------------------------------------


def standing(product: str, spoil: Spoil, attacks: tuple[Attack, ...] = ATTACKS) -> dict[str, str]:
    """What is said of each attack."""
    report = report_of(product, spoil)
    policy = policy_of(product, STRICT) if product != "sgx" else Policy.from_dict(sgx_policy(**STRICT))
    return {item.attack.name: item.standing for item in outcomes(report, policy, attacks)}


def test_no_attack_is_called_excluded_for_a_number_that_nobody_confirmed() -> None:
    """No floor of the table was read in the maker's own text, so the best that is said is: reported, not confirmed."""
    assert not any(floor.confirmed for attack in ATTACKS for floor in attack.floors)
    for product in ("Milan", "Genoa", "Turin"):
        found = standing(product, _with(version=5))
        assert "excluded" not in found.values()
    genoa = standing("Genoa", good)
    assert genoa["RMPocalypse"] == "reported fixed by"
    assert genoa["Heracles"] == "reported fixed by"
    assert genoa["MilanLaunchy and BadFuse"] == "not published for this product"
    assert {genoa[name] for name in ("STALEUS", "BreakFAST", "EntrySign", "TEE.fail", "DDRop")} == {"not excluded"}
    assert genoa["Fabricked"] == "not excluded"
    assert standing("Milan", nothing)["MilanLaunchy and BadFuse"] == "not excluded"


def test_attack_is_excluded_by_a_confirmed_number_only_where_the_report_reaches_it() -> None:
    """With a confirmed floor the verdict says excluded; below it, or with a withdrawn one, it does not."""
    confirmed = Floor(product="Genoa", source="AMD-SB-0000", date="2026-01-01", confirmed=True, min_tcb={"snp": 28})
    (attack,) = (item for item in ATTACKS if item.name == "RMPocalypse")
    for floors, said in (
        ((confirmed,), "excluded"),
        ((replace(confirmed, min_tcb={"snp": 29}),), "not excluded"),
        ((replace(confirmed, withdrawn="2026-02-02"),), "not excluded"),
        ((confirmed, replace(confirmed, confirmed=False)), "reported fixed by"),
        ((replace(confirmed, confirmed=False),), "reported fixed by"),
        ((), "not excluded"),
    ):
        found = standing("Genoa", good, (replace(attack, floors=floors),))
        assert found == {"RMPocalypse": said}


def test_every_floor_has_a_source_and_a_date() -> None:
    """A number without a source is nobody's."""
    for attack in ATTACKS:
        for floor in attack.floors:
            assert floor.source
            assert len(floor.date) == len("2026-01-01")
    assert [len(floors_of(product)) for product in ("Milan", "Genoa", "Turin")] == [1, 1, 0]


def test_verdict_names_physical_attacks_and_where_the_machine_stands() -> None:
    """They are never excluded; the note of the listed machine is shown, or the words of the policy."""
    report = report_of("sgx", nothing)
    for rules, words in (
        ({}, "nothing says where the machine stands"),
        ({"physical": "trusted-site"}, "trusted-site"),
        (host("ppids", PPID), "rack 4"),
    ):
        found = outcomes(report, Policy.from_dict(sgx_policy(**STRICT, **rules)))
        physical = [item for item in found if item.attack.physical]
        assert {item.attack.name for item in physical} == {"TEE.fail", "Battering RAM", "WireTap", "DDRop"}
        assert all(item.standing == "not excluded" and words in item.why for item in physical)


def test_text_and_json_of_a_verdict_have_the_attacks_under_a_profile_only() -> None:
    """A line each; nothing is added where no profile is named."""
    built = SNPScenario(product="Genoa").built()

    def judged(rules: dict[str, Any]) -> Any:
        policy = policy_of("Genoa", rules)
        return assess(parse_evidence(built.report), built.collateral, built.roots, policy, NOW, report_data=REPORT_DATA)

    strict, plain = judged(STRICT), judged({})
    assert "TEE.fail: not excluded (it takes hands on the machine" in explain.to_text(strict)
    assert {item["attack"] for item in explain.to_dict(strict)["attacks"]} >= {"TEE.fail", "STALEUS"}
    assert "TEE.fail" not in explain.to_text(plain)
    assert "attacks" not in explain.to_dict(plain)
    assert explain.to_dict(plain)["warnings"] == []
