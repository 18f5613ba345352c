"""Every rule about machine, firmware and switches has two twins, both validly signed: one meets it, one breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from adyton.attest.appraise import Claims, appraise
from adyton.attest.assess import verify_evidence
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.policy.hosts import sign_hosts
from adyton.attest.report import VerifiedReport
from adyton.errors import AppraisalFailed
from tests.faults.attest.test_policy_faults import MILAN, sgx_policy, tdx_policy
from tests.support.amd_factory import LAUNCH, SNPScenario
from tests.support.evidence_factory import FMSPC, NOW, REPORT_DATA, Scenario, level

PPID, PIID, CHIP = bytes(range(16)), bytes(range(16, 32)), bytes(range(64))
LATER, PAST = "2026-02-01", "2026-01-01"
SIGNER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\7")
MIN_TCB = {
    "Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219},
    "Genoa": {"bootloader": 10, "tee": 0, "snp": 28, "microcode": 90},
    "Turin": {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81},
}

Rules = dict[str, Any]
Spoil = Callable[[Any], None]


def nothing(_: Any) -> None:
    """Leave the scenario as it is."""


def fields(**values: bytes | int) -> Spoil:
    """Set fields of a SEV-SNP report."""
    return lambda scenario: scenario.fields.update(values)


def body(**values: bytes | int) -> Spoil:
    """Set fields of an enclave's or TD's report."""
    return lambda scenario: scenario.body.update(values)


def pck(**values: Any) -> Spoil:
    """Set what the PCK certificate says."""
    return lambda scenario: scenario.platform.update(values)


def advisories(*names: str) -> Spoil:
    """A platform that is up to date, with these advisories."""
    return lambda scenario: scenario.tcb_info.update(tcbLevels=[level([5] * 16, 13, "UpToDate", advisories=names)])


def genoa(**rules: Any) -> Rules:
    """A policy with these rules for Genoa."""
    return {"snp": {"products": {"Genoa": rules}}}


def signed(until: str, entry: str) -> Rules:
    """A policy with a signed list of one machine."""
    document = {"until": until, "ppids": [{"id": PPID.hex(), "until": entry, "note": "rack 4"}]}
    key = SIGNER.public_key().public_bytes_raw().hex()
    return {"hosts": {"signed": [{"key": key, "envelope": sign_hosts(document, SIGNER)}]}}


def host(kind: str, identifier: bytes, until: str = LATER) -> Rules:
    """A policy with one machine."""
    return {"hosts": {kind: [{"id": identifier.hex(), "until": until, "note": "rack 4"}]}}


def _another_masked_chip(scenario: SNPScenario) -> None:
    scenario.hardware_id = CHIP[::-1]
    scenario.fields["chip_id"] = bytes(64)


@dataclass(frozen=True)
class Rule:
    """One rule: the policy, a twin that meets it and a twin that breaks it (or another policy that the same breaks)."""

    name: str
    kind: str
    policy: Rules
    check: str
    breaks: Spoil = nothing
    meets: Spoil = nothing
    broken: Rules | None = None


RULES = [
    Rule("chip-id", "Genoa", host("chip_ids", CHIP), "host", broken=host("chip_ids", CHIP[::-1])),
    Rule("chip-id-turin", "Turin", host("chip_ids", bytes(range(8))), "host", broken=host("chip_ids", CHIP)),
    Rule("chip-id-masked", "Genoa", host("chip_ids", CHIP), "host", _another_masked_chip, fields(chip_id=bytes(64))),
    Rule("chip-id-ended", "Genoa", host("chip_ids", CHIP), "host", broken=host("chip_ids", CHIP, PAST)),
    Rule("id-of-another-maker", "Genoa", host("chip_ids", CHIP), "host", broken=host("ppids", PPID)),
    Rule("ppid", "sgx", host("ppids", PPID), "host", pck(ppid=PIID)),
    Rule("ppid-ended", "tdx", host("ppids", PPID), "host", broken=host("ppids", PPID, PAST)),
    Rule("piid", "tdx", host("piids", PIID), "host", pck(instance_id=PPID), pck(instance_id=PIID)),
    Rule("piid-not-certified", "sgx", host("piids", PIID), "host", pck(configuration=None), pck(instance_id=PIID)),
    Rule("signed-list", "sgx", signed(LATER, LATER), "host", pck(ppid=PIID)),
    Rule("signed-list-ended", "sgx", signed(LATER, LATER), "host", broken=signed(PAST, LATER)),
    Rule("signed-entry-ended", "sgx", signed(LATER, LATER), "host", broken=signed(LATER, PAST)),
    Rule(
        "registry",
        "tdx",
        {"hosts": {"registries": [{"provider": "gcp", "ppids": [PPID.hex()], "until": LATER}]}},
        "host registry",
        pck(ppid=PIID),
    ),
    Rule(
        "registry-ended",
        "tdx",
        {"hosts": {"registries": [{"provider": "gcp", "ppids": [PPID.hex()], "until": LATER}]}},
        "host registry",
        broken={"hosts": {"registries": [{"provider": "gcp", "ppids": [PPID.hex()], "until": PAST}]}},
    ),
    *(
        Rule(
            f"platform-{name}",
            "Genoa",
            genoa(platform_info={"require": [name]}),
            "platform info",
            fields(platform_info=0xFF & ~(1 << bit)),
            fields(platform_info=1 << bit),
        )
        for bit, name in enumerate(
            ("smt", "tsme", "ecc", "rapl_off", "ciphertext_hiding", "alias_check", "iommu_write_safe", "tio")
        )
    ),
    Rule(
        "platform-forbidden",
        "Genoa",
        genoa(platform_info={"forbid": ["smt"]}),
        "platform info",
        fields(platform_info=0x21),
        fields(platform_info=0x20),
    ),
    Rule(
        "platform-unknown-bit",
        "Genoa",
        genoa(platform_info={"require": ["alias_check"]}),
        "platform info",
        fields(platform_info=0x20 | 1 << 8),
    ),
    *(
        Rule(
            f"guest-{name}",
            "Genoa",
            genoa(guest_policy={"require": [name]}) | {"allow_migration": True, "allow_debug": True},
            "guest policy",
            fields(policy=0x20000 | 0x3FF0000 & ~(1 << bit)),
            fields(policy=0x20000 | 1 << bit),
        )
        for name, bit in {
            "smt": 16,
            "migrate_ma": 18,
            "debug": 19,
            "single_socket": 20,
            "cxl": 21,
            "aes256_xts": 22,
            "rapl_off": 23,
            "ciphertext_hiding": 24,
            "page_swap_off": 25,
        }.items()
    ),
    Rule(
        "guest-forbidden",
        "Genoa",
        genoa(guest_policy={"forbid": ["cxl"]}),
        "guest policy",
        fields(policy=0x20000 | 1 << 21),
    ),
    Rule(
        "guest-unknown-bit",
        "Genoa",
        genoa(guest_policy={"forbid": ["cxl"]}),
        "guest policy",
        fields(policy=0x30000 | 1 << 26),
        fields(policy=0x30000 | 0x13A),
    ),
    Rule(
        "launch-mitigation",
        "Turin",
        {"snp": {"min_launch_mitigation": 0b11}},
        "mitigation vector at launch",
        fields(launch_mitigations=0b101, current_mitigations=0b111),
        fields(launch_mitigations=0b111),
    ),
    Rule(
        "current-mitigation-of-the-product",
        "Genoa",
        genoa(min_current_mitigation=1 << 63),
        "mitigation vector at current",
        fields(launch_mitigations=1 << 63),
        fields(current_mitigations=1 << 63),
    ),
    Rule(
        "mitigations-of-an-old-report",
        "Genoa",
        genoa(min_current_mitigation=1),
        "mitigation vector at current",
        fields(version=3, current_mitigations=1),
        fields(current_mitigations=1),
    ),
    Rule(
        "firmware",
        "Genoa",
        genoa(min_firmware="1.55.40"),
        "firmware version",
        fields(
            current_major=1,
            current_minor=55,
            current_build=39,
            committed_major=1,
            committed_minor=55,
            committed_build=40,
        ),
        fields(current_major=1, current_minor=56, committed_major=1, committed_minor=55, committed_build=40),
    ),
    Rule(
        "firmware-not-committed",
        "Genoa",
        genoa(min_firmware="1.58"),
        "firmware version",
        fields(current_major=1, current_minor=58, committed_major=1, committed_minor=55),
        fields(current_major=2, committed_major=1, committed_minor=58),
    ),
    Rule(
        "launch-tcb",
        "Genoa",
        genoa(min_launch_tcb=MIN_TCB["Genoa"]),
        "minimum TCB at launch",
        fields(launch_tcb=bytes([10, 0, 0, 0, 0, 0, 27, 90])),
    ),
    Rule("milan", "Milan", {"snp": {"products": {"Milan": MILAN}}}, "product accepted", broken={}),
    Rule(
        "milan-ended",
        "Milan",
        {"snp": {"products": {"Milan": MILAN}}},
        "product accepted",
        broken={"snp": {"products": {"Milan": {"accept_until": PAST, "reason": "a test"}}}},
    ),
    Rule(
        "product-not-named",
        "Genoa",
        genoa(),
        "product accepted",
        broken={"snp": {"products": {"Turin": {}}}},
    ),
    Rule(
        "td-attribute",
        "tdx",
        {"tdx": {"td_attributes": {"require": ["pks"], "forbid": ["perfmon"]}}},
        "TD attributes",
        body(td_attributes=1 << 28 | 1 << 30 | 1 << 63),
        body(td_attributes=1 << 28 | 1 << 30),
    ),
    Rule("xfam", "tdx", {"tdx": {"xfam": ["00000000000602e7"]}}, "XFAM", body(xfam=0x602E6)),
    Rule(
        "mrsignerseam",
        "tdx",
        {"tdx": {"mrsignerseam": ["00" * 48]}},
        "MRSIGNERSEAM",
        broken={"tdx": {"mrsignerseam": ["11" * 48]}},
    ),
    Rule(
        "seam-attributes",
        "tdx",
        {"tdx": {"seam_attributes": ["00" * 8]}},
        "SEAM attributes",
        broken={"tdx": {"seam_attributes": ["01" + "00" * 7]}},
    ),
    Rule(
        "tee-tcb-svn",
        "tdx",
        {"tdx": {"min_tee_tcb_svn": "030102" + "00" * 13}},
        "TEE TCB SVN",
        broken={"tdx": {"min_tee_tcb_svn": "030103" + "00" * 13}},
    ),
    *(
        Rule(f"{kind}-fmspc", kind, {kind: {"fmspc": [FMSPC.hex()]}}, "FMSPC", broken={kind: {"fmspc": ["ff" * 6]}})
        for kind in ("sgx", "tdx")
    ),
    *(
        Rule(
            f"{kind}-{name}",
            kind,
            {kind: {"pck": {name: True}}},
            f"PCK configuration: {words}",
            pck(**breaks),
            pck(**meets),
        )
        for kind in ("sgx", "tdx")
        for name, words, breaks, meets in (
            ("static_platform", "static platform", {}, {"configuration": (False, True, True)}),
            ("static_platform", "static platform", {"configuration": None}, {"configuration": (False, True, True)}),
            ("smt_disabled", "SMT", {}, {"configuration": (True, True, False)}),
            ("smt_disabled", "SMT", {"configuration": None}, {"configuration": (True, True, False)}),
            ("memory_integrity", "memory integrity", {}, {"sgx_type": 2}),
        )
    ),
    Rule("servicing-ended", "sgx", {}, "servicing", advisories("INTEL-DOC-10001"), advisories("INTEL-DOC-10000")),
]


def report_of(kind: str, spoil: Spoil) -> VerifiedReport:
    """A scenario of a product of AMD's, or of sgx or tdx; changed, signed and verified."""
    scenario: Any
    if kind in MIN_TCB:
        scenario = SNPScenario(product=kind)
    else:
        scenario = Scenario(tdx=True, version=5, td_size=648) if kind == "tdx" else Scenario()
    spoil(scenario)
    built = scenario.built()
    raw = built.report if kind in MIN_TCB else built.quote
    return verify_evidence(parse_evidence(raw), built.collateral, built.roots, built.now)


def policy_of(kind: str, rules: Rules) -> Policy:
    """The rules, beside what the scenario meets."""
    if kind in MIN_TCB:
        return Policy.from_dict({"tees": ["snp"], "measurements": [LAUNCH.hex()], "min_tcb": MIN_TCB} | rules)
    return Policy.from_dict((tdx_policy if kind == "tdx" else sgx_policy)(**rules))


def judged(kind: str, rules: Rules, spoil: Spoil = nothing) -> Claims:
    """Judge the scenario by the rules."""
    return appraise(report_of(kind, spoil), policy_of(kind, rules), NOW, report_data=REPORT_DATA)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_accepts_the_twin_that_meets_it_and_refuses_the_other(rule: Rule) -> None:
    """The two twins differ in one thing; the refusal names the rule alone, what was seen, and what to do."""
    assert judged(rule.kind, rule.policy, rule.meets).bound
    with pytest.raises(AppraisalFailed) as caught:
        judged(rule.kind, rule.policy if rule.broken is None else rule.broken, rule.breaks)
    (failed,) = caught.value.failed
    assert failed.name == rule.check
    shown = failed.to_dict()
    assert shown["expected"]
    assert shown["seen"]
    assert shown["remedy"]
    assert shown["seen"] != shown["expected"]


def test_refusal_of_an_unlisted_machine_gives_the_line_to_add() -> None:
    """The id that was seen and the line with it, ready to be copied; an entry that ended says when."""
    with pytest.raises(AppraisalFailed) as caught:
        judged("sgx", host("ppids", PIID))
    shown = caught.value.failed[0].to_dict()
    assert PPID.hex() in str(shown["seen"])
    assert f'[[hosts.ppids]] id = "{PPID.hex()}", until = YYYY-MM-DD' in str(shown["remedy"])
    with pytest.raises(AppraisalFailed) as caught:
        judged("sgx", host("ppids", PPID, PAST))
    assert "ended 2026-01-01" in str(caught.value.failed[0].seen)
    with pytest.raises(AppraisalFailed) as caught:
        judged("sgx", {"hosts": {"registries": [{"provider": "gcp", "ppids": [PIID.hex()], "until": LATER}]}})
    assert f"confidential-host-registry/{PPID.hex()}" in str(caught.value.failed[0].remedy)


def test_machine_under_a_vlek_is_in_no_list() -> None:
    """A provider's key hides the chip, also where the list has an entry for every chip that there is."""
    scenario = SNPScenario(vlek=True)
    built = scenario.built()
    report = verify_evidence(parse_evidence(built.report), built.collateral, built.roots, built.now)
    rules = host("chip_ids", CHIP) | {"snp": {"products": {"Milan": MILAN}}}
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, policy_of("Milan", rules), NOW, report_data=REPORT_DATA)
    (failed,) = caught.value.failed
    assert failed.name == "host"
    assert "hides" in str(failed.seen)


@pytest.mark.parametrize(
    ("kind", "name", "rules"),
    [
        ("sgx", "hosts", host("ppids", PIID)),
        ("tdx", "mrseams", {"mrseams": ["11" * 48]}),
        ("tdx", "fmspc", {"tdx": {"fmspc": ["ff" * 6]}}),
        ("Genoa", "platform_info", genoa(platform_info={"require": ["tio"]})),
    ],
)
def test_tracked_rule_warns_with_a_date_until_its_end(kind: str, name: str, rules: Rules) -> None:
    """Accepted with a dated warning that says what was seen; after the end of the tracking it refuses."""
    tracked = {"name": name, "owner": "alice"}
    (warned,) = judged(kind, rules | {"tracked": [tracked]}).warned
    assert warned.at == NOW
    shown = warned.to_dict()
    assert shown["seen"]
    assert shown["at"] == "2026-01-15T12:00:00Z"
    assert judged(kind, rules | {"tracked": [tracked | {"until": "2026-01-15"}]}).warned[0].until is not None
    with pytest.raises(AppraisalFailed):
        judged(kind, rules | {"tracked": [tracked | {"until": "2026-01-14"}]})
    with pytest.raises(AppraisalFailed):
        judged(kind, rules)


def test_claims_end_with_the_entry_of_the_machine() -> None:
    """A machine that is listed until a day is accepted until that day, and the same holds for a tracked breach."""
    tracked = {"tracked": [{"name": "hosts", "owner": "alice", "until": "2026-01-16"}]}
    answers = {"hosts": {"registries": [{"provider": "gcp", "ppids": [PPID.hex()], "until": "2026-01-16"}]}}
    for rules in (
        host("ppids", PPID, "2026-01-16"),
        signed("2026-01-16", LATER),
        answers,
        host("ppids", PIID) | tracked,
    ):
        assert f"{judged('sgx', rules).valid_until:%Y-%m-%d}" == "2026-01-16"


def test_end_of_servicing_updates_warns_and_end_of_servicing_refuses_whatever_is_exempted() -> None:
    """DOC-10000 needs no exemption and is shown; DOC-10001 refuses although the status is UpToDate."""
    (warned,) = judged("sgx", {}, advisories("INTEL-DOC-10000")).warned
    assert warned.name == "servicing"
    for status in ("SWHardeningNeeded", "UpToDate"):

        def spoil(scenario: Scenario, status: str = status) -> None:
            row = level([5] * 16, 13, status, advisories=("INTEL-DOC-10000", "INTEL-DOC-10001"))
            scenario.tcb_info["tcbLevels"] = [row]

        with pytest.raises(AppraisalFailed) as caught:
            judged("sgx", {"statuses": ["UpToDate", "SWHardeningNeeded"]}, spoil)
        assert [item.name for item in caught.value.failed] == ["servicing"]


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
@pytest.mark.parametrize(("channel", "accepted"), [("early", True), ("standard", False), (None, False)])
def test_early_channel_is_what_the_store_recorded(kind: str, channel: str | None, accepted: bool) -> None:
    """Collateral of the standard channel, and such whose channel nobody recorded, is refused; `standard` takes any."""
    built = (Scenario(tdx=True, version=5, td_size=648) if kind == "tdx" else Scenario()).built()
    collateral = replace(built.collateral, channel=channel)
    report = verify_evidence(parse_evidence(built.quote), collateral, built.roots, built.now)
    assert appraise(report, policy_of(kind, {kind: {"channel": "standard"}}), NOW, report_data=REPORT_DATA).bound
    policy = policy_of(kind, {kind: {"channel": "early"}})
    if accepted:
        assert appraise(report, policy, NOW, report_data=REPORT_DATA).bound
        return
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, policy, NOW, report_data=REPORT_DATA)
    assert [item.name for item in caught.value.failed] == ["TCB channel"]


def test_accepted_product_ends_the_claims() -> None:
    """What was accepted until a day is not good any longer than that."""
    rules = {"snp": {"products": {"Milan": {"accept_until": "2026-01-16", "reason": "a test"}}}}
    claims = judged("Milan", rules)
    assert claims.valid_until - NOW < timedelta(days=2)
    assert claims.exemptions[0].name == "product Milan"


@pytest.mark.parametrize("kind", ["sgx", "tdx", "Genoa", "Turin"])
def test_evidence_without_expected_report_data_is_refused(kind: str) -> None:
    """Genuine evidence that is compared with nothing may be anybody's: only a policy that says so accepts it."""
    report = report_of(kind, nothing)
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, policy_of(kind, {}), NOW, report_data=None)
    assert [item.name for item in caught.value.failed] == ["report data"]
    looking = policy_of(kind, {"allow_missing_report_data": True})
    assert not appraise(report, looking, NOW, report_data=None).bound
    with pytest.raises(AppraisalFailed):
        appraise(report, looking, NOW, report_data=bytes(64))
