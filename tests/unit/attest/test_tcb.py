"""TCB levels and their convergence, from tables: every status, also those that no real evidence has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adyton.attest import dcap, sgx, tdx
from adyton.attest.report import VerifiedReport
from adyton.attest.tcbinfo import parse_enclave_identity, parse_tcb_info
from adyton.errors import MalformedQuote
from tests.support.evidence_factory import Scenario, level, svn_level

ALL = [5] * 16
TDX_ALL = [3, 0] + [2] * 14
U, H, C, CH = "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"
OOD, OODC, REV, NOT = "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked", "NotSupported"
RELAUNCH, RELAUNCH_C = "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"


def judged(scenario: Scenario) -> VerifiedReport:
    """Verify a scenario."""
    built = scenario.built()
    parse = tdx.parse_quote if scenario.tdx else sgx.parse_quote
    return dcap.verify(parse(built.quote), built.collateral, built.roots, built.now)


@pytest.mark.parametrize("platform", [U, H, C, CH, OOD, OODC, REV])
@pytest.mark.parametrize("qe", [U, OOD, REV, NOT])
def test_sgx_status_is_lowered_by_its_quoting_enclave(platform: str, qe: str) -> None:
    """Platform and QE converge: an outdated QE makes the platform outdated, a revoked or unknown one decides."""
    scenario = Scenario()
    scenario.tcb_info["tcbLevels"] = [level(ALL, 13, platform, advisories=("TEST-SA-1",))]
    scenario.identity["tcbLevels"] = [svn_level(9 if qe == NOT else 8, U if qe == NOT else qe)]
    outdated = {U: OOD, H: OOD, C: OODC, CH: OODC}
    expected = {U: platform, OOD: outdated.get(platform, platform), REV: REV, NOT: NOT}[qe]
    if platform == REV:
        expected = REV
    report = judged(scenario)
    assert report.status == expected
    assert report.advisories == (() if expected == NOT else ("TEST-SA-1",))


@pytest.mark.parametrize("platform", [U, H, C, CH, OOD, OODC, REV])
@pytest.mark.parametrize("module", [U, OOD, REV, NOT])
def test_tdx_status_is_lowered_by_its_module(platform: str, module: str) -> None:
    """Platform and TDX module converge likewise."""
    scenario = Scenario(tdx=True, version=4)
    scenario.tcb_info["tcbLevels"] = [level(ALL, 13, platform, tdx=TDX_ALL)]
    row = svn_level(4 if module == NOT else 3, U if module == NOT else module, advisories=("TEST-SA-2",))
    scenario.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [row]
    outdated = {U: OOD, H: OOD, C: OODC, CH: OODC}
    expected = {U: platform, OOD: outdated.get(platform, platform), REV: REV, NOT: NOT}[module]
    assert judged(scenario).status == expected


@pytest.mark.parametrize(
    ("platform", "svn2", "qe", "expected"),
    [
        (U, [3, 1, 2], U, RELAUNCH),
        (H, [3, 1, 2], U, RELAUNCH),
        (C, [3, 1, 2], U, RELAUNCH_C),
        (CH, [4, 1, 9], U, RELAUNCH_C),
        (U, [2, 1, 2], U, OOD),
        (U, [3, 1, 1], U, NOT),
        (C, [2, 1, 2], U, OODC),
        (OOD, [3, 1, 2], U, OOD),
        (U, [3, 1, 2], OOD, OOD),
        (U, [3, 1, 2], REV, REV),
        (REV, [3, 1, 2], U, REV),
        (U, [0, 1, 2], U, NOT),
    ],
)
def test_tdx_relaunch_is_advised_where_it_helps(platform: str, svn2: list[int], qe: str, expected: str) -> None:
    """A TD on an outdated module: a relaunch is advised if the module loaded now is up to date."""
    scenario = Scenario(tdx=True, version=5, td_size=648)
    scenario.tcb_info["tcbLevels"] = [level(ALL, 13, platform, tdx=TDX_ALL)]
    scenario.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [svn_level(3, U), svn_level(2, OOD)]
    scenario.identity["tcbLevels"] = [svn_level(8, qe)]
    scenario.body["tee_tcb_svn"] = bytes([2, 1] + [2] * 14)
    scenario.body["tee_tcb_svn2"] = bytes(svn2 + [2] * 13)
    assert judged(scenario).status == expected


@pytest.mark.parametrize(("loaded", "expected"), [([3, 1], U), ([2, 1], REV)])
def test_tdx_module_that_is_loaded_now_must_not_be_revoked(loaded: list[int], expected: str) -> None:
    """A TD started on a good module runs on the one that is loaded now."""
    scenario = Scenario(tdx=True, version=5, td_size=648)
    scenario.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [svn_level(3, U), svn_level(2, REV)]
    scenario.body["tee_tcb_svn2"] = bytes(loaded + [2] * 14)
    assert judged(scenario).status == expected


def test_sgx_level_is_the_first_that_every_component_reaches() -> None:
    """Components and PCESVN all have to reach a level; the order in the document does not matter."""
    scenario = Scenario()
    rows = [
        level([9] + [5] * 15, 13, U),
        level(ALL, 14, U),
        level([5] * 15 + [4], 13, H, advisories=("TEST-SA-3",)),
        level([1] * 16, 1, OOD),
    ]
    for order in (rows, rows[::-1]):
        scenario.tcb_info["tcbLevels"] = order
        assert judged(scenario).status == H
    scenario.tcb_info["tcbLevels"] = rows[:2]
    report = judged(scenario)
    assert report.status == NOT
    assert report.tcb_date is None
    assert report.advisories == ()


def test_tdx_components_zero_and_one_are_the_modules_where_it_has_a_version() -> None:
    """With a module of version 1 and up the comparison starts at component 2."""
    scenario = Scenario(tdx=True, version=4)
    scenario.tcb_info["tcbLevels"] = [level(ALL, 13, U, tdx=[9, 9] + [2] * 14)]
    assert judged(scenario).status == U
    scenario.body["tee_tcb_svn"] = bytes([3, 0] + [2] * 14)
    assert judged(scenario).status == NOT


def test_advisories_are_of_platform_module_and_qe_together() -> None:
    """The union of the three, sorted, each once."""
    scenario = Scenario(tdx=True, version=4)
    scenario.tcb_info["tcbLevels"] = [level(ALL, 13, U, tdx=TDX_ALL, advisories=("TEST-SA-3", "TEST-SA-1"))]
    scenario.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [svn_level(3, U, advisories=("TEST-SA-2",))]
    scenario.identity["tcbLevels"] = [svn_level(8, U, advisories=("TEST-SA-1",))]
    assert judged(scenario).advisories == ("TEST-SA-1", "TEST-SA-2", "TEST-SA-3")


def _info(change: Any, *, is_tdx: bool = False) -> str:
    document = Scenario(tdx=is_tdx).tcb_info
    change(document)
    return json.dumps(document)


SPOILT_INFO: dict[str, Any] = {
    "version-1": lambda d: d.update(version=1),
    "version-4": lambda d: d.update(version=4),
    "version-true": lambda d: d.update(version=True),
    "version-float": lambda d: d.update(version=3.0),
    "id-unknown": lambda d: d.update(id="NITRO"),
    "id-missing": lambda d: d.pop("id"),
    "id-in-version-2": lambda d: d.update(version=2),
    "type-1": lambda d: d.update(tcbType=1),
    "fmspc-short": lambda d: d.update(fmspc="00"),
    "fmspc-not-hex": lambda d: d.update(fmspc="zz" * 6),
    "fmspc-unicode-digits": lambda d: d.update(fmspc="\u0661" * 12),
    "date-without-zone": lambda d: d.update(issueDate="2026-01-01T00:00:00"),
    "date-impossible": lambda d: d.update(issueDate="2026-02-30T00:00:00Z"),
    "levels-none": lambda d: d.update(tcbLevels=[]),
    "levels-no-list": lambda d: d.update(tcbLevels={}),
    "levels-twice": lambda d: d["tcbLevels"].append(d["tcbLevels"][0]),
    "status-unknown": lambda d: d["tcbLevels"][0].update(tcbStatus="Fine"),
    "status-of-relaunch": lambda d: d["tcbLevels"][0].update(tcbStatus=RELAUNCH),
    "component-256": lambda d: d["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][3].update(svn=256),
    "component-negative": lambda d: d["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][3].update(svn=-1),
    "components-15": lambda d: d["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop(),
    "components-17": lambda d: d["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].append({"svn": 0}),
    "pcesvn-65536": lambda d: d["tcbLevels"][0]["tcb"].update(pcesvn=65536),
    "advisories-no-list": lambda d: d["tcbLevels"][0].update(advisoryIDs="TEST-SA-1"),
    "module-in-sgx": lambda d: d.update(tdxModule={}),
}


@pytest.mark.parametrize("name", sorted(SPOILT_INFO))
def test_tcb_info_that_is_wrong_is_malformed(name: str) -> None:
    """Signed or not: what does not have the form is refused."""
    with pytest.raises(MalformedQuote):
        parse_tcb_info(_info(SPOILT_INFO[name]))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("tdxModule"),
        lambda d: d["tdxModule"].update(mrsigner="00"),
        lambda d: d["tdxModuleIdentities"].append(d["tdxModuleIdentities"][0]),
        lambda d: d["tdxModuleIdentities"][0].update(tcbLevels=[]),
        lambda d: d["tdxModuleIdentities"][0]["tcbLevels"].append(d["tdxModuleIdentities"][0]["tcbLevels"][0]),
        lambda d: d["tdxModuleIdentities"][0]["tcbLevels"][0].update(tcbStatus=H),
        lambda d: d["tcbLevels"][0]["tcb"].pop("tdxtcbcomponents"),
    ],
)
def test_tdx_tcb_info_that_is_wrong_is_malformed(change: Any) -> None:
    """The TDX part has a form too."""
    with pytest.raises(MalformedQuote):
        parse_tcb_info(_info(change, is_tdx=True))


def test_tcb_info_of_version_2_is_read() -> None:
    """The older form: no id, components by name, SGX only."""
    document = Scenario().tcb_info
    del document["id"]
    document["version"] = 2
    document["tcbLevels"] = [
        {
            "tcb": {f"sgxtcbcomp{index:02}svn": 5 for index in range(1, 17)} | {"pcesvn": 13},
            "tcbDate": "2025-06-01T00:00:00Z",
            "tcbStatus": U,
        }
    ]
    assert parse_tcb_info(json.dumps(document)).levels[0].sgx == bytes(ALL)
    scenario = Scenario()
    scenario.tcb_info = document
    assert judged(scenario).status == U


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version=1),
        lambda d: d.update(isvprodid=65536),
        lambda d: d.update(mrsigner="00" * 31),
        lambda d: d.update(attributes="00"),
        lambda d: d.update(tcbLevels=[]),
        lambda d: d["tcbLevels"][0].update(tcbStatus=H),
        lambda d: d.pop("nextUpdate"),
    ],
)
def test_enclave_identity_that_is_wrong_is_malformed(change: Any) -> None:
    """The identity has a form too."""
    document = Scenario().identity
    change(document)
    with pytest.raises(MalformedQuote):
        parse_enclave_identity(json.dumps(document))


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '{"a":NaN}', "[]", "", '{"a":1.0}', "null", '{"a":1} x'])
def test_signed_documents_are_read_strictly(text: str) -> None:
    """Duplicate keys, floating point, other roots than an object, trailing text."""
    with pytest.raises(MalformedQuote):
        parse_tcb_info(text)
