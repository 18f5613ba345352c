"""Named faults of Nitro documents: each is validly signed, refused by one check, and accepted without that check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from adyton.attest.appraise import Policy, appraise
from adyton.attest.checks import Checks
from adyton.attest.nitro.document import parse_document
from adyton.attest.nitro.verify import CLOCK_SKEW, verify
from adyton.attest.report import VerifiedReport
from adyton.attest.workload_register import states
from adyton.errors import AppraisalFailed, BadChain, EvidenceError, MalformedQuote, Mismatch, Stale
from adyton.values import Measurement
from tests.faults.attest.test_dcap_faults import disable
from tests.support.nitro_factory import IMAGE, LONG, NONCE, NOW, BuiltDocument, NitroScenario

PAST = (LONG[0], NOW - timedelta(seconds=1))
FUTURE = (NOW + timedelta(seconds=1), LONG[1])
ZEROS = bytes(48)


@dataclass(frozen=True)
class Fault:
    """One way to spoil a scenario."""

    name: str
    spoil: Callable[[NitroScenario], None]
    check: str
    error: type[EvidenceError]
    tpm: bool = False


def _set(path: str, value: object) -> Callable[[NitroScenario], None]:
    def spoil(scenario: NitroScenario) -> None:
        holder, _, field = path.partition(".")
        target = getattr(scenario, holder) if field else scenario
        if isinstance(target, dict):
            target[field] = value
        else:
            setattr(target, field or holder, value)

    return spoil


VALID = "valid when the document was made"
FAULTS = [
    Fault("wrong-root", _set("pinned", False), "Nitro root CA: pinned", BadChain),
    Fault("root-is-no-ca", _set("root.may_sign", False), "Nitro root CA: extensions", BadChain),
    Fault("root-path-length", _set("root.path_length", 1), "Nitro root CA: path length", BadChain),
    Fault("region-is-no-ca", _set("region.ca", False), "Nitro CA 1: extensions", BadChain),
    Fault("region-with-strange-extension", _set("region.strange", True), "Nitro CA 1: extensions", BadChain),
    Fault("region-of-another-issuer", _set("region.issuer", "somebody"), "Nitro CA 1: issuer", BadChain),
    Fault("region-signed-by-another", _set("region.signer", "other"), "Nitro CA 1: signature", BadChain),
    Fault("region-path-length", _set("region.path_length", 0), "Nitro CA 1: path length", BadChain),
    Fault("instance-may-not-sign", _set("instance.may_sign", False), "Nitro CA 2: extensions", BadChain),
    Fault("instance-of-another-issuer", _set("instance.issuer", "somebody"), "Nitro CA 2: issuer", BadChain),
    Fault("instance-signed-by-another", _set("instance.signer", "other"), "Nitro CA 2: signature", BadChain),
    Fault("leaf-is-a-ca", _set("leaf.ca", True), "Nitro leaf: extensions", BadChain),
    Fault("leaf-may-not-sign", _set("leaf.may_sign", False), "Nitro leaf: extensions", BadChain),
    Fault("leaf-of-another-issuer", _set("leaf.issuer", "somebody"), "Nitro leaf: issuer", BadChain),
    Fault("leaf-signed-by-another", _set("leaf.signer", "other"), "Nitro leaf: signature", BadChain),
    Fault("root-expired", _set("root.window", PAST), f"Nitro root CA: {VALID}", Stale),
    Fault("region-not-yet-valid", _set("region.window", FUTURE), f"Nitro CA 1: {VALID}", Stale),
    Fault("instance-expired", _set("instance.window", PAST), f"Nitro CA 2: {VALID}", Stale),
    Fault("leaf-expired", _set("leaf.window", PAST), f"Nitro leaf: {VALID}", Stale),
    Fault("leaf-not-yet-valid", _set("leaf.window", FUTURE), f"Nitro leaf: {VALID}", Stale),
    Fault(
        "from-the-future",
        _set("now", NOW - CLOCK_SKEW - timedelta(seconds=1)),
        "document: not from the future",
        Stale,
    ),
    Fault("signed-by-another", _set("signer", "another leaf"), "document: signature", BadChain),
]


def build(fault: Fault) -> BuiltDocument:
    """The spoilt scenario, signed."""
    scenario = NitroScenario(tpm=fault.tpm)
    fault.spoil(scenario)
    return scenario.built()


def judged(built: BuiltDocument, checks: Checks | None = None) -> VerifiedReport:
    """Verify what was built."""
    return verify(parse_document(built.raw), built.roots, built.now, checks=checks)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nitro_fault_is_refused_by_its_check_and_by_no_other(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fault is refused by the check that it is made for, and accepted with that check alone disabled."""
    built = build(fault)
    with pytest.raises(fault.error) as caught:
        judged(built)
    assert caught.value.check == fault.check
    assert caught.value.expected
    assert caught.value.remedy
    disable(monkeypatch, fault.check)
    assert judged(built).tee == "nitro"


def test_nitro_faults_cover_every_check() -> None:
    """Every check that a verification makes has a fault here, or a test of its own below."""
    checks = Checks()
    judged(NitroScenario().built(), checks)
    assert {check.name for check in checks.done} - {fault.check for fault in FAULTS} == {
        "Nitro CA 2: path length",  # nothing may be below it but the leaf: no bundle can break it
        "PCR 0: present",
    }


@pytest.mark.parametrize(("tpm", "number"), [(False, 0), (True, 4)])
def test_nitro_document_without_the_pcr_of_its_program_is_refused(tpm: bool, number: int) -> None:
    """A document that leaves out what names the program."""
    scenario = NitroScenario(tpm=tpm)
    del scenario.pcrs[number]
    with pytest.raises(Mismatch) as caught:
        judged(scenario.built())
    assert caught.value.check == f"PCR {number}: present"


def test_nitro_leaf_of_another_curve_is_refused() -> None:
    """A leaf of P-256 never signs with ES384."""
    scenario = NitroScenario()
    scenario.leaf.curve = "P-256"
    with pytest.raises(BadChain) as caught:
        judged(scenario.built())
    assert caught.value.check == "Nitro leaf: extensions"


# --- what the policy judges


def policy(tpm: bool = False, **more: object) -> Policy:
    """A policy that the unspoilt scenario meets."""
    named = {"tees": ["nitrotpm" if tpm else "nitro"], "measurements": [IMAGE.hex()]}
    return Policy.from_dict(named | more)


def refused(scenario: NitroScenario, rules: Policy, report_data: bytes | None = NONCE) -> list[str]:
    """The names of the requirements that are not met."""
    built = scenario.built()
    try:
        appraise(judged(built), rules, built.now, report_data=report_data)
    except AppraisalFailed as error:
        return [check.name for check in error.failed]
    return []


@pytest.mark.parametrize("tpm", [False, True])
def test_nitro_document_that_meets_its_policy_is_accepted(tpm: bool) -> None:
    """The scenarios are good before they are spoilt, by measurement and by PCR."""
    assert refused(NitroScenario(tpm=tpm), policy(tpm)) == []
    by_pcr = Policy.from_dict({"tees": ["nitrotpm" if tpm else "nitro"], "pcrs": {"4" if tpm else "0": [IMAGE.hex()]}})
    assert refused(NitroScenario(tpm=tpm), by_pcr) == []


@pytest.mark.parametrize("zeros", [(0, 1, 2), (0,), (1,), (2,)])
def test_debug_enclave_is_refused_whatever_the_policy_allows(zeros: tuple[int, ...]) -> None:
    """Zeros in PCR 0, 1 or 2: anybody could have started anything there."""
    scenario = NitroScenario()
    scenario.pcrs.update(dict.fromkeys(zeros, ZEROS))
    rules = Policy.from_dict({"tees": ["nitro"], "any_program": True, "allow_debug": True})
    assert refused(scenario, rules) == ["PCR 0 to 2"]
    strict = Policy.from_dict({"tees": ["nitro"], "any_program": True})
    assert refused(scenario, strict) == ["debug", "PCR 0 to 2"]


def test_report_data_is_compared_and_its_absence_refuses() -> None:
    """The nonce counts. Without one the user data count. A caller with nothing to compare is refused where told so."""
    assert refused(NitroScenario(), policy(), None) == ["report data"]
    assert refused(NitroScenario(), policy(), b"another") == ["report data"]
    assert refused(NitroScenario(), policy(), b"user data") == ["report data"]
    without = NitroScenario()
    without.members["nonce"] = None
    assert refused(without, policy(), b"user data") == []
    assert refused(without, policy(), NONCE) == ["report data"]
    without.members["user_data"] = None
    assert refused(without, policy(), b"user data") == ["report data"]


def test_command_line_that_was_added_is_refused() -> None:
    """PCR 12 of a NitroTPM must be zeros, unless the policy names its value (GHSA-xrv8-2pf5-f3q7)."""
    scenario = NitroScenario(tpm=True)
    scenario.pcrs[12] = IMAGE
    assert refused(scenario, policy(tpm=True)) == ["PCR 12"]
    assert refused(scenario, policy(tpm=True, pcrs={"12": [IMAGE.hex()]})) == []
    del scenario.pcrs[12]
    assert refused(scenario, policy(tpm=True)) == ["PCR 12"]
    assert refused(scenario, policy(tpm=True, pcrs={"12": [ZEROS.hex()]})) == ["PCR 12"]


def test_system_extension_that_was_added_is_refused() -> None:
    """PCR 13 of a NitroTPM has the same rule as PCR 12."""
    scenario = NitroScenario(tpm=True)
    scenario.pcrs[13] = IMAGE
    assert refused(scenario, policy(tpm=True)) == ["PCR 13"]
    assert refused(scenario, policy(tpm=True, pcrs={"13": [IMAGE.hex()]})) == []


def test_workload_alone_pins_no_boot() -> None:
    """The host boots its own guest with a NitroTPM, and puts the approved workload into PCR 15."""
    workload = Measurement(b"w" * 32)
    scenario = NitroScenario(tpm=True)
    scenario.pcrs[4] = b"\1" * 48
    scenario.pcrs[15] = states(workload, bank="sha384")[2]
    alone: dict[str, Any] = {"tees": ["nitrotpm"], "workloads": [workload.hex()]}
    assert refused(scenario, Policy.from_dict(alone)) == ["boot: named"]
    seven = Policy.from_dict(alone | {"pcrs": {"7": [IMAGE.hex()]}})
    assert refused(scenario, seven) == ["boot: named"]
    four = Policy.from_dict(alone | {"pcrs": {"4": [IMAGE.hex()]}})
    assert refused(scenario, four) == ["PCR 4"]


def test_pcr_that_the_policy_names_is_compared_and_must_be_there() -> None:
    """Another value, an absent register, and the one of two allowed values."""
    assert refused(NitroScenario(), policy(pcrs={"1": [ZEROS.hex()]})) == ["PCR 1"]
    assert refused(NitroScenario(), policy(pcrs={"31": [ZEROS.hex()]})) == ["PCR 31"]
    assert refused(NitroScenario(), policy(pcrs={"1": [ZEROS.hex(), IMAGE.hex()], "9": [ZEROS.hex()]})) == []


def test_old_document_is_refused_unless_the_policy_says_how_old() -> None:
    """A document counts until its certificate ends, or as long as the policy says."""
    scenario = NitroScenario(now=NOW + timedelta(hours=3, seconds=1))
    assert refused(scenario, policy()) == ["age of the document"]
    assert refused(scenario, policy(max_document_age_s=4 * 3600)) == []
    scenario.now = NOW + timedelta(seconds=61)
    assert refused(scenario, policy(max_document_age_s=60)) == ["age of the document"]
    assert refused(scenario, policy()) == []


def test_workload_of_a_nitrotpm_stands_in_pcr_15() -> None:
    """Only its register with both events is the workload's. An enclave has no register for it."""
    workload = Measurement(b"w" * 32)
    named: dict[str, Any] = {"workloads": [workload.hex()]}
    scenario = NitroScenario(tpm=True)
    assert refused(scenario, policy(tpm=True, **named)) == ["workload"]
    half, whole = states(workload, bank="sha384")[1:]
    for value, missing in ((half, ["workload"]), (whole, []), (whole[:-1] + b"x", ["workload"])):
        scenario.pcrs[15] = value
        assert refused(scenario, policy(tpm=True, **named)) == missing
    del scenario.pcrs[15]
    assert refused(scenario, policy(tpm=True, **named)) == ["workload"]
    enclave = NitroScenario()
    enclave.pcrs[15] = whole
    assert refused(enclave, policy(tpm=False, **named)) == ["workload"]


def test_enclave_and_nitrotpm_are_different_platforms() -> None:
    """A policy for one never accepts the other."""
    assert "TEE" in refused(NitroScenario(tpm=True), policy())
    assert "TEE" in refused(NitroScenario(), policy(tpm=True))


def test_document_with_registers_of_both_kinds_does_not_parse() -> None:
    """A signed document that could be read as either."""
    scenario = NitroScenario()
    scenario.members["nitrotpm_pcrs"] = scenario.pcrs
    with pytest.raises(MalformedQuote):
        judged(scenario.built())
