"""What a refused platform lacks: component, version seen and needed, date, advisory, and what repairs it."""

from __future__ import annotations

from typing import Any

from adyton.attest import dcap
from adyton.attest.evidence import parse_evidence
from adyton.attest.report import VerifiedReport
from adyton.attest.sgx import SGXQuote
from adyton.attest.status import TCBStatus
from adyton.attest.tdx import TDXQuote
from tests.support.evidence_factory import Scenario, level, svn_level

NAMES = [{"category": "BIOS", "type": "Early Microcode Update"}, {"category": "OS/VMM", "type": "SGX Late Microcode"}]


def verified(scenario: Scenario) -> VerifiedReport:
    """The scenario, signed and verified."""
    built = scenario.built()
    evidence = parse_evidence(built.quote)
    if not isinstance(evidence, SGXQuote | TDXQuote):
        raise TypeError
    return dcap.verify(evidence, built.collateral, built.roots, built.now)


def short(scenario: Scenario) -> list[tuple[Any, ...]]:
    """Part, component, seen and needed of everything that is too low."""
    return [(item.part, item.component, item.seen, item.needed) for item in verified(scenario).shortfalls]


def td(**changes: Any) -> Scenario:
    """A TD of TDX 1.5."""
    return Scenario(tdx=True, version=5, td_size=648, **changes)


def test_platform_that_is_up_to_date_lacks_nothing() -> None:
    """No level is named where no fix is missing."""
    assert verified(Scenario()).shortfalls == ()
    assert verified(td()).shortfalls == ()


def test_platform_names_the_components_that_are_low() -> None:
    """Only the low ones: the words of the maker, the date of the level to reach, the advisories of the one reached."""
    scenario = Scenario()
    for row in scenario.tcb_info["tcbLevels"]:
        for item, words in zip(row["tcb"]["sgxtcbcomponents"], NAMES, strict=False):
            item.update(words)
    scenario.platform["components"] = [4, 5, 5, 4] + [5] * 12
    scenario.platform["pce_svn"] = 12
    report = verified(scenario)
    assert report.status is TCBStatus.OUT_OF_DATE
    first, third, pce = report.shortfalls
    assert (first.part, first.component, first.seen, first.needed) == (
        "platform",
        "SGX component 1 (BIOS: Early Microcode Update)",
        4,
        5,
    )
    assert "BIOS" in first.remedy
    assert first.to_dict()["date"] == "2025-06-01T00:00:00Z"
    assert first.advisories == ("TEST-SA-1",)
    assert (third.component, third.seen) == ("SGX component 4", 4)
    assert (pce.component, pce.seen, pce.needed) == ("PCESVN", 12, 13)


def test_quoting_enclave_alone_is_named_alone() -> None:
    """A platform that is up to date is not blamed for its quoting enclave."""
    scenario = Scenario()
    scenario.qe["isv_svn"] = 7
    report = verified(scenario)
    assert report.status is TCBStatus.OUT_OF_DATE
    (only,) = report.shortfalls
    assert (only.part, only.seen, only.needed, only.advisories) == ("QE", 7, 8, ("TEST-SA-2",))
    assert "quoting enclave" in only.remedy


def test_module_alone_is_named_alone_and_a_loaded_one_asks_for_a_restart() -> None:
    """The TDX module is named only where it is the one that is low; where a newer one is loaded, a restart repairs."""
    scenario = td()
    scenario.body["tee_tcb_svn"] = scenario.body["tee_tcb_svn2"] = bytes([2, 1] + [2] * 14)
    report = verified(scenario)
    (only,) = report.shortfalls
    assert (only.part, only.component, only.seen, only.needed) == ("module", "ISVSVN of TDX_01", 2, 3)
    assert "load a newer TDX module" in only.remedy
    scenario.body["tee_tcb_svn2"] = bytes([3, 1] + [2] * 14)
    report = verified(scenario)
    assert report.status is TCBStatus.TD_RELAUNCH_ADVISED
    (only,) = report.shortfalls
    assert "restart the TD" in only.remedy


def test_tdx_component_is_named_and_the_module_is_not() -> None:
    """A low TDX component beside a module that is up to date: today's refusal would have blamed the module."""
    scenario = td()
    scenario.body["tee_tcb_svn"] = scenario.body["tee_tcb_svn2"] = bytes([3, 1, 1] + [2] * 13)
    assert short(scenario) == [("platform", "TDX component 3", 1, 2)]


def test_platform_below_every_level_is_compared_with_the_one_to_reach() -> None:
    """NotSupported names what is low, too; there are no advisories, since no level was reached."""
    scenario = Scenario()
    scenario.platform["components"] = [1] + [5] * 15
    report = verified(scenario)
    assert report.status is TCBStatus.NOT_SUPPORTED
    (only,) = report.shortfalls
    assert (only.seen, only.needed, only.advisories) == (1, 5, ())


def test_level_without_an_up_to_date_one_above_it_lacks_no_version() -> None:
    """SWHardeningNeeded at the top: no version repairs that."""
    scenario = Scenario()
    scenario.tcb_info["tcbLevels"] = [
        level([5] * 16, 13, "SWHardeningNeeded", advisories=("TEST-SA-5",)),
        level([3] * 16, 11, "OutOfDate"),
    ]
    assert verified(scenario).shortfalls == ()
    scenario.platform["components"] = [4] * 16
    assert [item[3] for item in short(scenario)] == [5] * 16


def test_words_of_components_that_are_no_short_text_are_left_out() -> None:
    """They only inform: odd ones neither refuse the document nor reach a terminal."""
    scenario = Scenario()
    tops = scenario.tcb_info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"]
    tops[0] |= {"category": "\x1b[2J", "type": "x"}
    tops[1] |= {"category": 7}
    tops[2] |= {"category": "x" * 65}
    scenario.platform["components"] = [4] * 3 + [5] * 13
    assert {item.component for item in verified(scenario).shortfalls} == {f"SGX component {n}" for n in (1, 2, 3)}


def test_levels_of_the_qe_that_are_all_old_name_the_newest() -> None:
    """Where no level is up to date, the newest is the one to reach."""
    scenario = Scenario()
    scenario.identity["tcbLevels"] = [svn_level(9, "OutOfDate"), svn_level(6, "OutOfDate")]
    assert short(scenario) == [("QE", "ISVSVN", 8, 9)]
