"""Every line of an approval, and that it alone refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from adyton.attest.assess import verify_evidence
from adyton.attest.evidence import parse_evidence
from adyton.attest.guest import MUST_COVER, SNPGuest, TDXGuest
from adyton.attest.report import VerifiedReport
from adyton.attest.roots import TrustRoots
from adyton.collateral.verifier import VerifiedEvidence, Verifier
from adyton.dates import is_over, parse_end
from adyton.errors import UsageError
from adyton.keyserver.decide import Denial, Grant, Request, decide, evidence_policy
from adyton.keyserver.dry_run import dry_run
from adyton.keyserver.refusal_texts import owner_reason, told_reason
from adyton.keystore.approval import APPROVED, PENDING, REVOKED, Approval, StoredApproval
from adyton.keystore.audit import MAX_BODY_BYTES, canonical
from adyton.keystore.audit_facts import Lease
from adyton.keystore.current_facts import Usage
from adyton.sim.chip import simulated_guest
from adyton.sim.platform import SimPlatform
from adyton.values import Digest, Measurement
from tests.support.amd_factory import LAUNCH, REPORT_DATA, SNPScenario
from tests.support.owner_world import FixedCollateral, World, make_world, now

BINDING = bytes(range(64))
NOTHING_USED = Usage(0, 0, None)


@dataclass
class Case:
    """One request against one approval; everything fits until a test changes one thing."""

    report: VerifiedReport
    stored: StoredApproval
    request: Request
    usage: Usage
    now: datetime

    def decide(self) -> Grant | Denial:
        """The decision."""
        return decide(self.request, self.report, [self.stored], lambda _id: self.usage, self.now)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A world whose platform does not change."""
    with make_world(tmp_path_factory.mktemp("decide")) as world:
        yield world


def verified(collateral: FixedCollateral, quote: bytes, platform: SimPlatform) -> VerifiedReport:
    """What a verifier with this collateral says about a quote."""
    found = Verifier(collateral).verify(quote, {platform.root_fingerprint}, now())
    assert isinstance(found, VerifiedEvidence)
    return found.report


def report_of(world: World, **changes: Any) -> VerifiedReport:
    """A verified report of the usual program, with other fields or on another platform."""
    platform = changes.pop("platform", world.platform)
    signed = world.program()
    quote = world.enclave(signed, platform=platform, **changes).quote(BINDING)
    return verified(FixedCollateral(platform), quote, platform)


def case_of(world: World, *, report: VerifiedReport | None = None, **changes: Any) -> Case:
    """A request that is granted, unless `changes` to the approval stand in the way."""
    signed = world.program()
    approval = world.approval(signed.measurement, **changes)
    stored = StoredApproval("a-1", APPROVED, 1, approval, now())
    request = Request(
        key="weights", run="r", protocol="adyton", report_data=BINDING, manifest_sha256=signed.manifest_sha256
    )
    return Case(report or report_of(world), stored, request, NOTHING_USED, now())


def failing(decided: Grant | Denial) -> list[str]:
    """The names of the lines that refuse."""
    assert isinstance(decided, Denial)
    return [line.name for line in decided.judged[0].failed]


def test_decide_everything_fits_grants(base: World) -> None:
    """The case that all others change in one thing is granted."""
    decided = case_of(base).decide()
    assert isinstance(decided, Grant)
    assert decided.key == "weights"
    assert decided.renews is None
    assert decided.claims.bound


def _launched(digest: bytes) -> SNPGuest:
    return SNPGuest(launch_digest=Measurement(digest), launch_digest_covers=MUST_COVER)


OTHER_SIGNER = Digest(b"\x07" * 32)


def _state(state: str) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.stored = replace(case.stored, state=state)

    return change


def _approval(**changes: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.stored = replace(case.stored, approval=case.stored.approval.changed(**changes))

    return change


def _request(**changes: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.request = replace(case.request, **changes)

    return change


def _usage(usage: Usage, **changes: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.usage = usage
        _approval(**changes)(case)

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(_state(PENDING), "approval", id="pending"),
        pytest.param(_state(REVOKED), "approval", id="revoked"),
        pytest.param(_approval(expires_at=now() - timedelta(seconds=1)), "end of the approval", id="expired"),
        pytest.param(_request(protocol="ra-tls"), "protocol", id="protocol"),
        pytest.param(_approval(manifest_sha256=Digest(b"m" * 32)), "manifest", id="manifest"),
        pytest.param(_approval(measurement=Measurement(b"x" * 32)), "workload", id="measurement"),
        pytest.param(_approval(tees=("sgx",)), "TEE", id="tee"),
        pytest.param(_approval(tees=("sim:" + "0" * 64,)), "TEE", id="other-root"),
        pytest.param(
            _approval(measurement=None, mrsigner=OTHER_SIGNER, isv_prod_id=0, min_isv_svn=0), "signer", id="signer"
        ),
        pytest.param(_request(report_data=bytes(64)), "report data", id="binding"),
        pytest.param(_request(report_data=None), "report data", id="no-binding"),
        pytest.param(_usage(Usage(3, 0, None), max_runs=3), "number of runs", id="runs"),
        pytest.param(_usage(Usage(3, 2, None), max_active=2), "runs at a time", id="leases"),
        pytest.param(_approval(tcb_statuses=("OutOfDate",)), "TCB status", id="status-not-named"),
    ],
)
def test_decide_one_line_differs_it_alone_refuses(base: World, change: Callable[[Case], None], line: str) -> None:
    """Each line of an approval refuses on its own, and nothing else does."""
    case = case_of(base)
    change(case)
    assert failing(case.decide()) == [line]


def test_decide_another_key_asked_is_denied_without_approvals(base: World) -> None:
    """An approval for one key opens no other."""
    case = case_of(base)
    case.request = replace(case.request, key="photo")
    decided = case.decide()
    assert isinstance(decided, Denial)
    assert decided.judged == ()


def test_decide_no_approvals_is_denied(base: World) -> None:
    """An empty policy means nobody."""
    case = case_of(base)
    assert isinstance(decide(case.request, case.report, [], lambda _id: NOTHING_USED, now()), Denial)


def test_decide_debug_enclave_refused_unless_allowed(base: World) -> None:
    """A debug enclave gets the key only where the approval says so."""
    report = report_of(base, debug=True)
    assert failing(case_of(base, report=report).decide()) == ["debug"]
    assert isinstance(case_of(base, report=report, allow_debug=True).decide(), Grant)


def test_decide_older_svn_of_the_signer_is_refused(base: World) -> None:
    """By signer: a lower SVN than the lowest accepted one is refused, that one and higher ones pass."""
    signed = base.program()
    by_signer = {"measurement": None, "mrsigner": signed.mrsigner, "isv_prod_id": 7, "min_isv_svn": 3}
    for svn, product, ok in ((2, 7, False), (3, 7, True), (4, 7, True), (4, 8, False)):
        report = report_of(base, isv_svn=svn, isv_prod_id=product)
        decided = case_of(base, report=report, **by_signer).decide()
        assert isinstance(decided, Grant) is ok, (svn, product)
        if not ok:
            assert failing(decided) == ["signer"]


def test_decide_out_of_date_platform_and_its_advisories(world: World) -> None:
    """After newer TCB info each of status and advisory refuses alone, and each can be accepted by name until a date."""
    world.platform.raise_tcb(advisories=("SIM-SA-00001",))
    report = report_of(world)
    accepted = {"SIM-SA-00001": now() + timedelta(days=1)}
    lapsed = {"SIM-SA-00001": now() - timedelta(days=1)}
    both = ("UpToDate", "OutOfDate")
    assert failing(case_of(world, report=report, advisories=accepted).decide()) == ["TCB status"]
    assert failing(case_of(world, report=report, tcb_statuses=both).decide()) == ["advisory SIM-SA-00001"]
    expired = case_of(world, report=report, tcb_statuses=both, advisories=lapsed)
    assert failing(expired.decide()) == ["advisory SIM-SA-00001"]
    assert isinstance(case_of(world, report=report, tcb_statuses=both, advisories=accepted).decide(), Grant)
    without_end = case_of(world, report=report, tcb_statuses=both, advisories={"SIM-SA-00001": None})
    assert isinstance(without_end.decide(), Grant)


def test_decide_revoked_platform_is_never_accepted(base: World) -> None:
    """An approval cannot even name the statuses that nothing may accept."""
    signed = base.program()
    for status in ("Revoked", "NotSupported", "Nonsense"):
        with pytest.raises(UsageError, match=status):
            base.approval(signed.measurement, tcb_statuses=(status,))


@pytest.fixture(scope="module")
def domain(base: World) -> VerifiedReport:
    """A verified report of the usual program in a simulated trust domain."""
    quote = base.enclave(base.program(), tdx=True).quote(BINDING)
    return verified(base.collateral, quote, base.platform)


def _guest(**changes: bytes) -> TDXGuest:
    values: dict[str, Any] = {name: Measurement(value) for name, value in changes.items()}
    return replace(simulated_guest(), **values)


def test_decide_confidential_machine_needs_its_guest_image(base: World, domain: VerifiedReport) -> None:
    """A TDX-shaped report is granted by workload and guest image together, and each register alone refuses."""
    tee = f"sim-tdx:{base.platform.root_fingerprint}"
    assert isinstance(case_of(base, report=domain, tees=(tee,)).decide(), Grant)
    for name, line in (("mrtd", "measurement"), ("rtmr0", "RTMR0"), ("rtmr1", "RTMR1"), ("rtmr2", "RTMR2")):
        other = case_of(base, report=domain, tees=(tee,), guest_images=(_guest(**{name: b"g" * 48}),))
        assert failing(other.decide()) == [line]
    with pytest.raises(UsageError, match="guest image"):
        base.approval(base.program().measurement, tees=("tdx",))


def test_decide_registers_of_two_guest_images_are_never_mixed(base: World, domain: VerifiedReport) -> None:
    """One image's kernel with another's command line is neither image."""
    tee = f"sim-tdx:{base.platform.root_fingerprint}"
    halves = (_guest(rtmr1=b"a" * 48), _guest(rtmr2=b"b" * 48))
    assert failing(case_of(base, report=domain, tees=(tee,), guest_images=halves).decide()) in (["RTMR1"], ["RTMR2"])
    whole = (*halves, simulated_guest())
    assert isinstance(case_of(base, report=domain, tees=(tee,), guest_images=whole).decide(), Grant)


@pytest.mark.parametrize("old", ["measured", "another", "none"])
def test_decide_approval_that_pins_the_firmware_only_releases_nothing(
    base: World, domain: VerifiedReport, old: str
) -> None:
    """Approvals made before guest images were pinned whole: loaded, and refused with the reason and the remedy."""
    tee = f"sim-tdx:{base.platform.root_fingerprint}"
    guests = {"measured": (domain.measurement,), "another": (Measurement(b"g" * 48),), "none": ()}[old]
    case = case_of(base, report=domain, tees=(tee,), guest_images=(), guests=guests)
    case.stored = replace(case.stored, approval=Approval.from_dict(case.stored.approval.to_dict()))
    decided = case.decide()
    assert failing(decided) == ["guest image", *(["measurement"] if old == "another" else [])]
    assert isinstance(decided, Denial)
    line = decided.judged[0].failed[0]
    assert "RTMR1" in str(line.expected)
    assert ("firmware only" in str(line.seen)) is (old != "none")
    assert "--rtmr1" in str(line.remedy)
    told = owner_reason(decided, domain, "d-1")
    assert told.check == ("guest image" if old != "another" else "measurement of the program")


def test_decide_raw_report_data_has_keys_on_sim_only(base: World, domain: VerifiedReport) -> None:
    """A manifest whose program signs what it likes: released in the simulated enclave, in no trust domain."""
    assert isinstance(case_of(base, raw_report_data=True).decide(), Grant)
    tee = f"sim-tdx:{base.platform.root_fingerprint}"
    case = case_of(base, report=domain, tees=(tee,), raw_report_data=True)
    assert failing(case.decide()) == ["report data of the program"]


def test_decide_run_with_a_lease_asks_again_for_free(base: World) -> None:
    """Within its lease a run is not counted again, however used up the limits are."""
    until = int((now() + timedelta(minutes=5)).timestamp() * 1000)
    own = Lease(until, "r-1")
    case = case_of(base, max_runs=1, max_active=1)
    case.usage = Usage(1, 1, own)
    decided = case.decide()
    assert isinstance(decided, Grant)
    assert decided.renews == "r-1"
    assert int(decided.lease_until.timestamp() * 1000) == until


def test_decide_lease_ends_with_the_approval(base: World) -> None:
    """No lease outlives the approval it rests on, of which the last second counts whole."""
    end = now() + timedelta(seconds=90)
    decided = case_of(base, expires_at=end, lease_s=3600).decide()
    assert isinstance(decided, Grant)
    assert decided.lease_until == end + timedelta(seconds=1)
    assert is_over(end, decided.lease_until)


@pytest.mark.parametrize("since_end_s", [0, 0.5, 0.999])
def test_decide_lease_of_the_last_second_has_a_length(base: World, since_end_s: float) -> None:
    """A lease that is over when it begins would count for nothing: every run could have the key in that second."""
    end = now().replace(microsecond=0)
    case = case_of(base, expires_at=end, lease_s=3600)
    case.now = end + timedelta(seconds=since_end_s)
    decided = case.decide()
    assert isinstance(decided, Grant)
    assert decided.lease_until > case.now


def test_decide_lease_ends_before_an_approval_to_the_end_of_time(base: World) -> None:
    """The last second of the calendar is no reason to fail."""
    case = case_of(base, expires_at=parse_end("9999-12-31", "--expires"), lease_s=60)
    decided = case.decide()
    assert isinstance(decided, Grant)
    assert decided.lease_until == case.now + timedelta(seconds=60)


def test_decide_several_approvals_the_closest_explains(base: World) -> None:
    """Of several approvals the one for this very program is explained, not one for another."""
    case = case_of(base, tees=("sgx",))
    other = replace(case.stored, id="a-2", approval=case.stored.approval.changed(measurement=Measurement(b"y" * 32)))
    decided = decide(case.request, case.report, [other, case.stored], lambda _id: NOTHING_USED, now())
    assert isinstance(decided, Denial)
    assert [judged.approval.id for judged in decided.judged] == ["a-1", "a-2"]


def test_grant_made_by_hand_is_refused(base: World) -> None:
    """Nothing but `decide` can make a grant."""
    decided = case_of(base).decide()
    assert isinstance(decided, Grant)
    with pytest.raises(UsageError, match="decide only"):
        replace(decided, made_by=None)


def test_told_reason_says_what_was_shown_and_nothing_of_the_owners(base: World) -> None:
    """The far side's text is made of its own evidence: the approvals are no argument of it."""
    report = report_of(base)
    told = told_reason(report, ("weights",), "adyton", "d-1", for_this_request=True)
    assert report.measurement.hex() in told.seen
    assert "TCB status UpToDate" in told.seen
    assert "adyton audit show d-1" in told.remedy
    stray = told_reason(report, ("weights",), "adyton", "d-1", for_this_request=False)
    assert stray.check == "report data"


def test_owner_reason_of_an_out_of_date_platform_names_status_and_remedy(world: World) -> None:
    """The owner reads what about an approved program's platform is refused."""
    world.platform.raise_tcb()
    denial = case_of(world, report=report_of(world)).decide()
    assert isinstance(denial, Denial)
    reason = owner_reason(denial, report_of(world), "d-1")
    assert (reason.check, reason.expected, reason.seen) == ("TCB status", "UpToDate", "OutOfDate")
    assert "d-1" in (reason.remedy or "")


def test_decide_other_simulated_root_is_refused_before_any_approval(base: World, tmp_path: Any) -> None:
    """Evidence under a root that no approval names does not verify at all."""
    from adyton.errors import BadChain

    other = SimPlatform.create(tmp_path / "other")
    quote = base.enclave(base.program(), platform=other).quote(BINDING)
    with pytest.raises(BadChain, match="not trusted"):
        Verifier(base.collateral).verify(quote, {base.platform.root_fingerprint}, now())


def test_decide_sev_snp_program_is_known_by_guest_and_manifest(base: World) -> None:
    """SEV-SNP has no register for a workload: guest image and manifest stand for it, and an approval must have both."""
    signed = base.program()
    image = _launched(b"g" * 48)
    approval = base.approval(
        signed.measurement, tees=("snp",), guest_images=(image,), manifest_sha256=signed.manifest_sha256
    )
    (policy,) = evidence_policy(approval, "snp").alternatives()
    assert (policy.measurements, policy.workloads) == (frozenset({image.launch_digest}), frozenset())
    for missing in ({"manifest_sha256": None}, {"guest_images": ()}):
        with pytest.raises(UsageError):
            approval.changed(**missing)


@pytest.fixture(scope="module")
def snp_reports() -> Callable[..., VerifiedReport]:
    """Verified SEV-SNP reports, with some fields changed."""
    collateral = SNPScenario().built().collateral

    def report(**fields: bytes | int) -> VerifiedReport:
        scenario = SNPScenario()
        scenario.fields |= fields
        roots = TrustRoots(amd={"Milan": Digest(hashlib.sha256(collateral.ark).digest())})
        return verify_evidence(parse_evidence(scenario.report()), collateral, roots, scenario.now)

    return report


@pytest.fixture
def snp_case(base: World, snp_reports: Callable[..., VerifiedReport]) -> Case:
    """A request from an SEV-SNP guest that is granted; a test changes one thing."""
    lowest = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
    case = case_of(
        base,
        report=snp_reports(),
        tees=("snp",),
        guest_images=(_launched(LAUNCH),),
        manifest_sha256=base.program().manifest_sha256,
        evidence={"min_tcb": {"Milan": lowest}},
    )
    case.now = SNPScenario().now
    case.request = replace(case.request, report_data=REPORT_DATA)
    return case


def test_decide_sev_snp_grants_guest_and_manifest(snp_case: Case) -> None:
    """The case that all others change in one thing: known guest, known manifest, bound report."""
    decided = snp_case.decide()
    assert isinstance(decided, Grant)
    assert decided.claims.bound


def test_decide_sev_snp_names_the_open_acpi_tables(snp_case: Case) -> None:
    """Beside the lines that hold, the verdict says what the owner left open."""
    decided = snp_case.decide()
    assert isinstance(decided, Grant)
    (line,) = [check for check in decided.claims.checks if check.name == "ACPI tables of the host"]
    assert line.ok
    assert "left open" in str(line.seen)


def test_decide_sev_snp_workload_measurement_plays_no_part(snp_case: Case) -> None:
    """No register of an SEV-SNP report holds a workload: what identifies the program is the manifest."""
    _approval(measurement=Measurement(b"x" * 48))(snp_case)
    assert isinstance(snp_case.decide(), Grant)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(_approval(guest_images=(_launched(b"g" * 48),)), "measurement", id="another-guest"),
        pytest.param(_approval(guest_images=(), guests=(Measurement(LAUNCH),)), "guest image", id="firmware-only"),
        pytest.param(
            _approval(guest_images=(simulated_guest(),), guests=(Measurement(LAUNCH),)), "guest image", id="tdx-guest"
        ),
        pytest.param(_approval(raw_report_data=True), "report data of the program", id="raw-report-data"),
        pytest.param(_approval(manifest_sha256=Digest(b"m" * 32)), "manifest", id="another-manifest"),
        pytest.param(_request(manifest_sha256=Digest(b"m" * 32)), "manifest", id="another-manifest-asked"),
        pytest.param(_request(manifest_sha256=None), "manifest", id="no-manifest-named"),
        pytest.param(_approval(tees=("tdx",)), "TEE", id="another-tee"),
        pytest.param(_request(report_data=bytes(64)), "report data", id="binding"),
        pytest.param(_request(report_data=None), "report data", id="no-binding"),
        pytest.param(_approval(evidence={}), "minimum TCB", id="no-minimum"),
        pytest.param(_state(REVOKED), "approval", id="revoked"),
    ],
)
def test_decide_sev_snp_one_line_differs_it_alone_refuses(
    snp_case: Case, change: Callable[[Case], None], line: str
) -> None:
    """Under SEV-SNP guest image and manifest are the whole identity of the program: each alone refuses."""
    change(snp_case)
    assert failing(snp_case.decide()) == [line]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"measurement": b"h" * 48}, "measurement"),
        ({"report_data": b"r" * 64}, "report data"),
        ({"policy": 0x30000 | 1 << 19}, "debug"),
        ({"vmpl": 3}, "privilege level (VMPL)"),
    ],
)
def test_decide_sev_snp_another_report_is_refused(
    snp_case: Case, snp_reports: Callable[..., VerifiedReport], fields: dict[str, bytes | int], line: str
) -> None:
    """A genuine report of another guest, for another key, of a debug guest or from within the guest is refused."""
    snp_case.report = snp_reports(**fields)
    assert failing(snp_case.decide()) == [line]


def test_dry_run_sev_snp_says_yes_with_the_manifest(base: World, snp_case: Case) -> None:
    """A dry run of an SEV-SNP report needs the manifest that the program would name, and then can grant."""
    with base.store.write() as change:
        change.add_approval(snp_case.stored.approval, actor="test")
    verified = VerifiedEvidence(snp_case.report, SNPScenario().built().collateral)

    def granted(manifest_sha256: Digest | None) -> bool:
        (found,) = dry_run(
            base.store,
            lambda *_args: verified,
            b"",
            key="weights",
            protocol="adyton",
            manifest_sha256=manifest_sha256,
            now=snp_case.now,
        )
        return found.granted

    assert granted(snp_case.request.manifest_sha256)
    assert not granted(Digest(b"m" * 32))
    assert not granted(None)


def test_decide_further_requirements_refuse_on_their_own(base: World) -> None:
    """What stands under `evidence` is judged like every other line, and cannot loosen what the approval says."""
    assert failing(case_of(base, evidence={"min_evaluation_number": 99}).decide()) == ["TCB evaluation data number"]
    assert isinstance(case_of(base, evidence={"min_evaluation_number": 1}).decide(), Grant)
    signed = base.program()
    loosening: dict[str, Any]
    for loosening in ({"any_program": True}, {"allow_debug": True}, {"require_report_data": False}, {"nosuch": 1}):
        with pytest.raises(UsageError):
            base.approval(signed.measurement, evidence=loosening)


@pytest.mark.parametrize("width", [1, 400])
def test_denial_of_any_number_of_approvals_fits_the_record(base: World, width: int) -> None:
    """The closest approvals are listed, all others counted, and each text is cut: a refusal is always recorded."""
    case = case_of(base)
    tees = tuple(f"sim:{number:064x}" for number in range(width))
    states = (APPROVED, REVOKED, PENDING)
    stored = [
        StoredApproval(
            f"a-{number}",
            states[number % 3],
            1,
            base.approval(Measurement(number.to_bytes(32, "big")), tees=tees, version=f"v{number}"),
            now(),
        )
        for number in range(900)
    ]
    near = replace(case.stored, id="a-near", state=REVOKED)
    denial = decide(case.request, case.report, [*stored, near], lambda _id: NOTHING_USED, now())
    assert isinstance(denial, Denial)
    told = denial.to_dict()
    assert len(told["approvals"]) == 20
    assert told["more"] == 881
    assert told["approvals"][0]["approval"] == "a-near"
    assert [item["state"] for item in told["approvals"]].count(REVOKED) == 1
    assert len(canonical({"detail": told})) < MAX_BODY_BYTES // 2
    texts = [str(value) for item in told["approvals"] for line in item["failed"] for value in line.values()]
    assert (max(map(len, texts)) == 300) is (width > 1)
