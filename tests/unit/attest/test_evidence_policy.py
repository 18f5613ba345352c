"""The policy as a value: plain data and back, refusals by name, composition."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from adyton.attest import dcap, sgx
from adyton.attest.appraise import Claims, appraise
from adyton.attest.evidence_policy import Policy
from adyton.attest.policy.hosts import sign_hosts
from adyton.attest.policy.rules import Exemption, SignerRule
from adyton.attest.report import VerifiedReport
from adyton.attest.snp import TCBVersion
from adyton.attest.status import TCBStatus
from adyton.errors import AppraisalFailed, UsageError
from adyton.values import Digest, Measurement
from tests.support.evidence_factory import MRENCLAVE, MRSIGNER, NOW, REPORT_DATA, Scenario, level

SIGNER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
SIGNED = sign_hosts({"until": "2027-01-31", "ppids": [{"id": "ab" * 16, "until": "2027-01-31"}]}, SIGNER)
EVERYTHING: dict[str, Any] = {
    "tees": ["sgx", "sim-tdx:" + "ab" * 32, "sim:" + "cd" * 32, "snp", "tdx"],
    "statuses": ["SWHardeningNeeded", "UpToDate"],
    "exemptions": [{"name": "INTEL-SA-00615", "owner": "alice", "until": "2027-01-31T23:59:59+00:00", "reason": "LVI"}],
    "measurements": ["11" * 32, "22" * 48],
    "workloads": ["33" * 32],
    "signers": [{"mrsigner": "44" * 32, "isv_prod_id": 1, "min_isv_svn": 2}],
    "any_program": True,
    "allow_debug": True,
    "allow_provisioning_keys": True,
    "allow_missing_report_data": True,
    "max_collateral_age_days": 7,
    "min_evaluation_number": 17,
    **{name: ["55" * 48] for name in ("rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrconfigids", "mrowners")},
    **{name: ["66" * 48] for name in ("mrownerconfigs", "mrseams", "service_tds")},
    "allow_sept_ve": True,
    "allow_migration": True,
    "min_tcb": {
        "Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219},
        "Turin": {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81},
    },
    "allow_missing_crl": True,
    "snp": {
        "host_data": ["77" * 32],
        "id_key_digests": ["88" * 48],
        "author_key_digests": ["99" * 48],
        "family_ids": ["aa" * 16],
        "image_ids": ["bb" * 16],
        "max_vmpl": 1,
        "min_guest_svn": 2,
        "allow_smt": False,
        "require_single_socket": True,
        "require_alias_check": True,
        "min_launch_mitigation": 7,
        "min_current_mitigation": 1 << 63,
        "products": {
            "Milan": {"accept_until": "2027-01-31T23:59:59+00:00", "reason": "our own rack"},
            "Turin": {
                "platform_info": {"require": ["alias_check", "ecc"], "forbid": ["smt"]},
                "guest_policy": {"require": ["page_swap_off"]},
                "min_firmware": "1.58.0",
                "min_launch_tcb": {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81},
                "min_launch_mitigation": 3,
                "min_current_mitigation": 63,
            },
        },
    },
    "sgx": {"channel": "early", "fmspc": ["00a0b0c0d0e0"], "pck": {"smt_disabled": True}},
    "tdx": {
        "channel": "standard",
        "fmspc": ["00a0b0c0d0e0"],
        "pck": {"static_platform": True, "smt_disabled": True, "memory_integrity": True},
        "td_attributes": {"require": ["sept_ve_disable"], "forbid": ["perfmon"]},
        "xfam": ["00000000000602e7"],
        "mrsignerseam": ["00" * 48],
        "seam_attributes": ["00" * 8],
        "min_tee_tcb_svn": "0301" + "00" * 14,
    },
    "hosts": {
        "chip_ids": [{"id": "ee" * 64, "until": "2027-01-31T23:59:59+00:00", "note": "rack 4"}],
        "ppids": [{"id": "ee" * 16, "until": "2027-01-31T23:59:59+00:00"}],
        "piids": [{"id": "ff" * 16, "until": "2027-01-31T23:59:59+00:00"}],
        "signed": [{"key": SIGNER.public_key().public_bytes_raw().hex(), "envelope": SIGNED}],
        "registries": [
            {"provider": "gcp", "ppids": ["ee" * 16], "until": "2027-01-31T23:59:59+00:00", "note": "asked"}
        ],
    },
    "tracked": [{"name": "mrseams", "owner": "alice", "until": "2027-01-31T23:59:59+00:00", "reason": "new modules"}],
    "profile": "strict-2026",
    "relaxed": [{"name": "smt", "owner": "alice", "until": "2027-01-31T23:59:59+00:00", "reason": "rack 4"}],
    "physical": "trusted-site",
    "any_of": [{"measurements": ["cc" * 32]}, {"tees": ["tdx"], "rtmr3": ["dd" * 48]}],
}


def good_report(**changes: Any) -> VerifiedReport:
    """A verified SGX report under the test root."""
    scenario = Scenario()
    for name, value in changes.items():
        setattr(scenario, name, value)
    built = scenario.built()
    return dcap.verify(sgx.parse_quote(built.quote), built.collateral, built.roots, built.now)


def _looking() -> Policy:
    return Policy.from_dict({"tees": ["sgx"], "any_program": True, "allow_missing_report_data": True})


def test_policy_with_everything_round_trips() -> None:
    """Every name survives the way to plain data and back."""
    policy = Policy.from_dict(EVERYTHING)
    assert policy.to_dict() == EVERYTHING
    assert Policy.from_dict(policy.to_dict()) == policy


def test_policy_of_the_documented_toml_is_read() -> None:
    """The example in the module's docstring is a policy."""
    policy = Policy.from_dict(
        tomllib.loads(
            """
            tees = ["sgx"]
            [[signers]]
            mrsigner = "4444444444444444444444444444444444444444444444444444444444444444"
            isv_prod_id = 1
            min_isv_svn = 3
            [[exemptions]]
            name = "INTEL-SA-00615"
            owner = "alice@example.org"
            until = 2027-01-31
            """
        )
    )
    assert policy.signers == (SignerRule(mrsigner=Digest(b"\x44" * 32), isv_prod_id=1, min_isv_svn=3),)
    assert policy.exemptions[0].until == datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"tee": ["sgx"]}, "names"),
        ({"tees": ["sim"]}, "tees"),
        ({"tees": ["sim:abc"]}, "tees"),
        ({"tees": "sgx"}, "tees"),
        ({"tees": [1]}, "tees"),
        ({"statuses": ["Fine"]}, "statuses"),
        ({"statuses": ["Revoked"]}, "statuses"),
        ({"statuses": ["NotSupported"]}, "statuses"),
        ({"exemptions": [{"name": "Revoked", "owner": "a", "until": "2027-01-01"}]}, "statuses"),
        ({"exemptions": [{"name": "INTEL-SA-1", "until": "2027-01-01"}]}, "exemptions.owner"),
        ({"exemptions": [{"name": "INTEL-SA-1", "owner": "a"}]}, "exemptions.until"),
        ({"exemptions": [{"name": "INTEL-SA-1", "owner": "a", "until": "2027-01-01T00:00:00"}]}, "exemptions.until"),
        ({"exemptions": [{"name": "anything", "owner": "a", "until": "2027-01-01"}]}, "exemptions.name"),
        ({"measurements": ["11"]}, "measurement"),
        ({"rtmr3": ["11" * 32]}, "rtmr3"),
        ({"signers": [{"mrsigner": "44" * 32, "isv_prod_id": 1}]}, "signers.min_isv_svn"),
        ({"signers": [{"mrsigner": "44" * 32, "isv_prod_id": True, "min_isv_svn": 0}]}, "signers.isv_prod_id"),
        ({"allow_debug": 1}, "allow_debug"),
        ({"max_collateral_age_days": -1}, "max_collateral_age_days"),
        ({"min_tcb": {"Rome": {}}}, "min_tcb"),
        ({"min_tcb": {"Milan": {"bootloader": 1}}}, "min_tcb.Milan.tee"),
        ({"snp": {"max_vmpl": 4}}, "snp.max_vmpl"),
        ({"snp": {"host_data": ["11"]}}, "snp.host_data"),
        ({"snp": {"min_current_mitigation": 1 << 64}}, "snp.min_current_mitigation"),
        ({"snp": {"min_current_mitigation": "0x1ffffffffffffffff"}}, "snp.min_current_mitigation"),
        ({"snp": {"products": {"Rome": {}}}}, "snp.products"),
        ({"snp": {"products": {"Milan": {"accept_until": "2027-01-01"}}}}, "snp.products.Milan"),
        ({"snp": {"products": {"Genoa": {"min_firmware": "1"}}}}, "snp.products.Genoa.min_firmware"),
        ({"snp": {"products": {"Genoa": {"min_firmware": "1.256"}}}}, "snp.products.Genoa.min_firmware"),
        ({"snp": {"products": {"Genoa": {"min_launch_tcb": {"fmc": 1}}}}}, "snp.products.Genoa.min_launch_tcb"),
        ({"snp": {"products": {"Genoa": {"platform_info": {"require": ["ht"]}}}}}, "platform_info.require"),
        (
            {"snp": {"products": {"Genoa": {"guest_policy": {"require": ["smt"], "forbid": ["smt"]}}}}},
            "snp.products.Genoa.guest_policy",
        ),
        ({"tdx": {"channel": "late"}}, "tdx.channel"),
        ({"tdx": {"channel": ["early"]}}, "tdx.channel"),
        ({"tdx": {"xfam": ["602e7"]}}, "tdx.xfam"),
        ({"tdx": {"min_tee_tcb_svn": "03"}}, "tdx.min_tee_tcb_svn"),
        ({"tdx": {"td_attributes": {"require": ["page_swap_off"]}}}, "tdx.td_attributes.require"),
        ({"sgx": {"xfam": []}}, "sgx"),
        ({"sgx": {"pck": {"smt_disabled": "yes"}}}, "sgx.pck.smt_disabled"),
        ({"hosts": {}}, "hosts"),
        ({"hosts": {"ppids": []}}, "hosts"),
        ({"hosts": {"ppids": [{"id": "00" * 16, "until": "2027-01-01"}]}}, "hosts.ppids.id"),
        ({"hosts": {"ppids": [{"id": "ab" * 8, "until": "2027-01-01"}]}}, "hosts.ppids.id"),
        ({"hosts": {"chip_ids": [{"id": "ab" * 16, "until": "2027-01-01"}]}}, "hosts.chip_ids.id"),
        ({"hosts": {"chip_ids": [{"id": "ab" * 64}]}}, "hosts.chip_ids.until"),
        ({"hosts": {"registries": [{"provider": "aws", "ppids": [], "until": "2027-01-01"}]}}, "registries.provider"),
        ({"hosts": {"signed": [{"key": "ab" * 32}]}}, "hosts.signed"),
        ({"hosts": {"signed": [{"key": "ab" * 32, "envelope": SIGNED}] * 17}}, "hosts.signed"),
        ({"hosts": {"signed": [{"key": "ab" * 32, "envelope": SIGNED}]}}, "hosts.signed: signature"),
        ({"tracked": [{"name": "statuses", "owner": "a"}]}, "tracked.name"),
        ({"tracked": [{"name": "min_tcb", "owner": "a"}]}, "tracked.name"),
        ({"tracked": [{"name": "hosts"}]}, "tracked.owner"),
        ({"profile": "strict-2025"}, "profile"),
        ({"physical": "a rack\nverdict            ACCEPTED"}, "physical"),
        ({"physical": ""}, "physical"),
        ({"relaxed": [{"name": "debug", "owner": "a", "until": "2027-01-01"}]}, "relaxed.name"),
        ({"exemptions": [{"name": "INTEL-DOC-10001", "owner": "a", "until": "2027-01-01"}]}, "exemptions"),
        ({"require_report_data": True}, "names"),
        ({"any_of": []}, "any_of"),
        ({"any_of": [{"any_of": [{"any_of": [{"any_of": [{"any_of": [{}]}]}]}]}]}, "any_of"),
    ],
)
def test_policy_that_is_wrong_is_refused_by_name(document: dict[str, Any], named: str) -> None:
    """Unknown names, wrong types and what can never be accepted are refused, naming the line."""
    with pytest.raises(UsageError) as caught:
        Policy.from_dict(document)
    assert named in (caught.value.check or "")


def test_empty_policy_accepts_nothing() -> None:
    """An empty policy refuses, and the reasons say what it lacks."""
    with pytest.raises(AppraisalFailed) as caught:
        appraise(good_report(), Policy(), NOW, report_data=REPORT_DATA)
    assert {reason.name for reason in caught.value.failed} == {"TEE", "program"}


def test_policy_with_any_program_accepts_any_but_says_so() -> None:
    """Only the named switch accepts whatever runs."""
    policy = Policy.from_dict({"tees": ["sgx"], "any_program": True})
    assert isinstance(appraise(good_report(), policy, NOW, report_data=REPORT_DATA), Claims)


def test_policy_alternatives_inherit_and_one_must_be_met() -> None:
    """`any_of`: the outer requirements hold for each alternative; the closest alternative gives the reasons."""
    report = good_report()
    outer: dict[str, Any] = {"tees": ["sgx"], "min_evaluation_number": 1}
    met = {"measurements": [MRENCLAVE.hex()]}
    signer = {"signers": [{"mrsigner": MRSIGNER.hex(), "isv_prod_id": 7, "min_isv_svn": 9}]}
    both = Policy.from_dict(outer | {"any_of": [signer, met]})
    assert appraise(report, both, NOW, report_data=REPORT_DATA).bound
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, Policy.from_dict(outer | {"any_of": [signer]}), NOW, report_data=REPORT_DATA)
    assert [reason.name for reason in caught.value.failed] == ["signer"]
    strict = Policy.from_dict(outer | {"min_evaluation_number": 99, "any_of": [met]})
    with pytest.raises(AppraisalFailed) as caught:
        appraise(report, strict, NOW, report_data=REPORT_DATA)
    assert [reason.name for reason in caught.value.failed] == ["TCB evaluation data number"]


def test_policy_alternative_that_names_the_default_keeps_it() -> None:
    """An alternative that says `allow_debug = false` or the default statuses is not loosened from outside."""
    outer: dict[str, Any] = {"tees": ["sgx"], "allow_debug": True, "statuses": ["OutOfDate", "UpToDate"]}
    inner: dict[str, Any] = {"any_program": True, "allow_debug": False, "statuses": ["UpToDate"]}
    policy = Policy.from_dict(outer | {"any_of": [inner]})
    (effective,) = policy.alternatives()
    assert not effective.allow_debug
    assert effective.statuses == {TCBStatus.UP_TO_DATE}
    assert effective.any_program
    assert Policy.from_dict(policy.to_dict()).to_dict() == policy.to_dict() == outer | {"any_of": [inner]}
    (loose,) = Policy.from_dict(outer | {"any_of": [{"any_program": True}]}).alternatives()
    assert loose.allow_debug


def test_policy_exemptions_end() -> None:
    """An exemption counts until its last instant and not a second longer; the claims end with it."""
    scenario = Scenario()
    scenario.tcb_info["tcbLevels"] = [level([5] * 16, 13, "SWHardeningNeeded", advisories=("TEST-SA-5",))]
    built = scenario.built()
    report = dcap.verify(sgx.parse_quote(built.quote), built.collateral, built.roots, built.now)
    for until, accepted in ((NOW, True), (NOW.replace(second=1), True), (NOW.replace(hour=11), False)):
        exemption = Exemption(name="TEST-SA-5", owner="alice", until=until)
        status = Exemption(name="SWHardeningNeeded", owner="bob", until=until)
        policy = Policy(
            tees=frozenset({"sgx"}), measurements=frozenset({Measurement(MRENCLAVE)}), exemptions=(exemption, status)
        )
        if accepted:
            claims = appraise(report, policy, NOW, report_data=REPORT_DATA)
            assert claims.valid_until == until
            assert {item.owner for item in claims.exemptions} == {"alice", "bob"}
        else:
            with pytest.raises(AppraisalFailed) as caught:
                appraise(report, policy, NOW, report_data=REPORT_DATA)
            assert any("ended" in str(reason.to_dict()["seen"]) for reason in caught.value.failed)


def test_policy_names_its_simulated_roots() -> None:
    """The simulated roots come from the named TEEs, in alternatives too."""
    policy = Policy.from_dict({"tees": ["sim:" + "ab" * 32], "any_of": [{"tees": ["sim-tdx:" + "cd" * 32]}]})
    assert policy.sim_roots == {Digest(b"\xab" * 32), Digest(b"\xcd" * 32)}


def test_simulated_evidence_is_accepted_only_by_its_root() -> None:
    """`sim` counts only with the fingerprint of its root."""
    report = good_report(simulated=True)
    assert report.tee == "sim"
    right = {"tees": [report.tee_with_root], "measurements": [MRENCLAVE.hex()]}
    assert appraise(report, Policy.from_dict(right), NOW, report_data=REPORT_DATA).tee == report.tee_with_root
    wrong = right | {"tees": ["sim:" + "ab" * 32, "sgx", f"sim-tdx:{report.root_fingerprint}"]}
    with pytest.raises(AppraisalFailed):
        appraise(report, Policy.from_dict(wrong), NOW, report_data=REPORT_DATA)


def test_revoked_status_is_never_accepted() -> None:
    """Not even a policy made by hand gets past Revoked or NotSupported."""
    with pytest.raises(UsageError):
        Policy(statuses=frozenset({TCBStatus.REVOKED}))
    scenario = Scenario()
    scenario.tcb_info["tcbLevels"] = [level([5] * 16, 13, "Revoked")]
    built = scenario.built()
    report = dcap.verify(sgx.parse_quote(built.quote), built.collateral, built.roots, built.now)
    policy = Policy.from_dict({"tees": ["sgx"], "measurements": [MRENCLAVE.hex()]})
    with pytest.raises(AppraisalFailed, match="TCB status"):
        appraise(report, policy, NOW, report_data=REPORT_DATA)


def test_verified_reports_and_claims_are_made_by_their_makers_only() -> None:
    """Nobody else can make the objects that stand for a verification."""
    report = good_report()
    values = {name: getattr(report, name) for name in VerifiedReport.__slots__ if name != "made_by"}
    with pytest.raises(UsageError):
        VerifiedReport(**values, made_by=object())
    claims = appraise(report, _looking(), NOW, report_data=None)
    assert not claims.bound
    parts = {name: getattr(claims, name) for name in Claims.__slots__ if name != "made_by"}
    with pytest.raises(UsageError):
        Claims(**parts, made_by=object())


def test_report_data_of_another_length_is_a_mistake_of_the_caller() -> None:
    """Nothing is padded or cut silently."""
    policy = Policy.from_dict({"tees": ["sgx"], "any_program": True})
    with pytest.raises(UsageError):
        appraise(good_report(), policy, NOW, report_data=bytes(32))


def test_minimum_tcb_of_turin_has_an_fmc() -> None:
    """Turin's TCB has one part more."""
    assert Policy.from_dict(EVERYTHING).min_tcb["Turin"] == TCBVersion(1, 1, 4, 81, fmc=1)
