"""What is kept of refusals: a flood is counted, replayed evidence is noise, and only who proved itself waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.bundle import EvidenceBundle
from adyton.attest.ratls import make_certificate
from adyton.keyserver import record_limits
from adyton.keyserver.record_limits import MAX_GENUINE_PER_MINUTE, MAX_NOISE_PER_MINUTE, MAX_PER_PLATFORM, RefusalLimits
from adyton.keyserver.service import KeyService
from adyton.keystore import audit_facts
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import NOT_KEPT, EnclaveKey, Refusal, ReleaseRequest
from adyton.release.shown_program import explain_message
from adyton.server.process import server_identity
from adyton.values import Measurement
from tests.support.owner_world import RUNTIME_PARTS, World, make_world, now
from tests.support.release_by_hand import entries, wait_until
from tests.support.run_keys import RUN_KEY

MINUTE_MS = 60_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform that one of her approvals names."""
    with make_world(tmp_path) as found:
        found.approve(found.program(argument="approved.py"))
        yield found


@pytest.fixture
def service(world: World) -> Iterator[KeyService]:
    """Her key server's decisions, at a time that stands still."""
    at = now()
    found = world.service(clock=lambda: at)
    yield found
    found.close()


def refusal(
    world: World,
    service: KeyService,
    signed: SignedManifest,
    *,
    evidence: bytes | None = None,
    name: str = "weights",
    tdx: bool = False,
) -> Refusal:
    """A refusal over Adyton's protocol, with this evidence or that of the program itself."""
    nonce, _ = service.challenge()
    request = ReleaseRequest(
        nonce, EnclaveKey().public_bytes, signed.manifest_sha256, (name,), EvidenceBundle(), run_key=RUN_KEY
    )
    binding = request.report_data(server_identity(world.home))
    quote = world.enclave(signed, tdx=tdx).quote(binding) if evidence is None else evidence
    found = service.release(replace(request, evidence=EvidenceBundle(cpu=quote)), "peer").result(60).refusal
    assert found is not None
    return found


def candidates(world: World) -> list[tuple[Measurement, str]]:
    """The programs that wait for the owner."""
    with world.store.read() as view:
        return [(item.measurement, item.tee) for item in view.candidates()]


# --- the bounds ---------------------------------------------------------------------------------------------------


def test_refusals_each_platform_has_its_share_of_a_minute() -> None:
    """One platform cannot use up another's share, nor all of them the record; the next minute is another."""
    limits = RefusalLimits()
    assert sum(limits.may_keep("a", 0) for _ in range(MAX_PER_PLATFORM + 5)) == MAX_PER_PLATFORM
    assert limits.may_keep("b", 0)
    assert sum(limits.may_keep(None, 0) for _ in range(MAX_NOISE_PER_MINUTE + 7)) == MAX_NOISE_PER_MINUTE
    kept = sum(limits.may_keep(f"c{number}", 0) for number in range(MAX_GENUINE_PER_MINUTE))
    assert kept == MAX_GENUINE_PER_MINUTE - MAX_PER_PLATFORM - 1
    assert limits.may_keep("a", MINUTE_MS)
    assert limits.may_keep(None, MINUTE_MS)


def test_refusals_left_out_are_summed_up_when_their_minute_is_over() -> None:
    """The sum is given until it is recorded, and that of an unfinished minute when all are asked for."""
    limits = RefusalLimits()
    for _ in range(MAX_NOISE_PER_MINUTE + 7):
        limits.may_keep(None, 0)
    assert limits.sums(1) == []
    sums = limits.sums(MINUTE_MS)
    assert sums == [{"refused_without_evidence": 7, "minute": 0}]
    assert limits.sums(MINUTE_MS) == sums
    limits.recorded(sums)
    assert limits.sums(None) == []
    for _ in range(MAX_PER_PLATFORM + 2):
        limits.may_keep("a", 5 * MINUTE_MS)
    assert limits.sums(None) == [{"refused_on_genuine_platforms": 2, "minute": 5}]


# --- what is noise ------------------------------------------------------------------------------------------------


def test_replayed_evidence_is_noise_and_waits_for_nothing(world: World, service: KeyService) -> None:
    """One genuine quote seen somewhere, sent again and again, fills no record and makes no program wait."""
    signed = world.program()
    stolen = world.enclave(signed).quote(bytes(64))
    found = [refusal(world, service, signed, evidence=stolen) for _ in range(MAX_NOISE_PER_MINUTE + 10)]
    assert len(entries(world, "denial")) == MAX_NOISE_PER_MINUTE
    assert [item.denial for item in found[MAX_NOISE_PER_MINUTE:]] == [NOT_KEPT] * 10
    assert "only counts this" in found[-1].remedy
    assert "audit show" not in found[-1].remedy
    assert candidates(world) == []
    assert refusal(world, service, signed).denial.startswith("d-")
    assert candidates(world) == [(signed.measurement, world.tee)]


def test_replayed_certificate_is_noise_and_waits_for_nothing(world: World, service: KeyService) -> None:
    """Over RA-TLS the evidence must be bound to the certificate's key, which the handshake proved."""
    signed = world.program()
    times = {"not_before": now() - timedelta(hours=1), "not_after": now() + timedelta(hours=1)}
    stolen = world.enclave(signed).quote(bytes(64))
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    name = "weights.keys.adyton-key-server"
    with_stolen = make_certificate(keys[0], lambda _report_data: stolen, **times)
    assert service.provision([with_stolen], name, "peer").result(60).refusal is not None
    assert candidates(world) == []
    own = make_certificate(keys[1], world.enclave(signed).quote, **times)
    assert service.provision([own], name, "peer").result(60).refusal is not None
    assert candidates(world) == [(signed.measurement, world.tee)]


def test_one_platform_cannot_fill_the_record(
    world: World, service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A genuine platform that asks again and again is counted, too, and the count is recorded at the stop."""
    monkeypatch.setattr(record_limits, "MAX_PER_PLATFORM", 3)
    signed = world.program()
    found = [refusal(world, service, signed).denial for _ in range(5)]
    assert found[3:] == [NOT_KEPT] * 2
    service.close()
    assert len(entries(world, "denial")) == 3
    (noise,) = entries(world, "noise")
    assert noise["refused_on_genuine_platforms"] == 2


def test_left_out_count_is_recorded_without_another_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a flood is over its sum is written though nobody asks any more."""
    monkeypatch.setattr("adyton.keyserver.decision_queue.IDLE_S", 0.02)
    monkeypatch.setattr(record_limits, "MAX_NOISE_PER_MINUTE", 1)
    times = [now()]
    service = world.service(clock=lambda: times[0])
    try:
        for _ in range(3):
            service.provision([b"no certificate"], None, "peer").result(60)
        assert entries(world, "noise") == []
        times[0] += timedelta(minutes=1)
        wait_until(lambda: bool(entries(world, "noise")))
    finally:
        service.close()
    (noise,) = entries(world, "noise")
    assert noise["refused_without_evidence"] == 2


# --- who waits ----------------------------------------------------------------------------------------------------


def test_candidates_are_bounded_and_the_last_to_ask_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a genuine platform can make programs without end; the list stays short."""
    monkeypatch.setattr(audit_facts, "MAX_CANDIDATES", 3)
    asked = [Measurement(bytes([number]) * 32) for number in range(5)]
    for at_ms, measurement in enumerate(asked):
        world.let_wait(measurement, at_ms=at_ms)
    world.let_wait(asked[2], denial="d-2", at_ms=9)
    assert [measurement for measurement, _ in candidates(world)] == [asked[2], asked[4], asked[3]]


def test_dismissed_candidate_waits_no_longer_and_that_is_recorded(world: World) -> None:
    """The owner can wave a program away."""
    measurement = Measurement(b"m" * 32)
    world.let_wait(measurement)
    with world.store.write() as change:
        assert not change.dismiss_candidate(measurement, "other", actor="alice")
        assert change.dismiss_candidate(measurement, "weights", actor="alice")
        assert not change.dismiss_candidate(measurement, "weights", actor="alice")
    assert candidates(world) == []
    (entry,) = entries(world, "candidate-dismissed")
    assert (entry["key"], entry["actor"]) == ("weights", "alice")


def show(service: KeyService, signed: SignedManifest, denial: str) -> bool:
    """The refused program shows itself, and that is worked out; False where it cannot be explained."""
    ticket = service.explainer.claim(denial)
    if ticket is None:
        return False
    parts = {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}
    service.explainer.take(ticket, explain_message(denial, signed.manifest_bytes, parts))
    wait_until(lambda: service.explainer.held == 0, within_s=120)
    return True


def test_tdx_program_waits_once_it_has_shown_itself(world: World, service: KeyService) -> None:
    """A TDX quote names its workload by a hash only: the program waits when its manifest proves what it is."""
    tee = world.tee.replace("sim:", "sim-tdx:")
    world.approve(world.program(), tees=(tee,))
    signed = world.program(argument="other.py")
    denial = refusal(world, service, signed, tdx=True).denial
    assert candidates(world) == []
    assert show(service, signed, denial)
    assert any("loader.argv" in line for line in entries(world, "explanation")[0]["changed"])
    assert candidates(world) == [(signed.measurement, tee)]


def test_tdx_program_with_replayed_evidence_or_approved_waits_for_nothing(world: World, service: KeyService) -> None:
    """Not one that shows evidence made for another request, nor the approved program refused for another reason."""
    tee = world.tee.replace("sim:", "sim-tdx:")
    signed = world.program()
    stolen = world.enclave(signed, tdx=True).quote(bytes(64))
    assert show(service, signed, refusal(world, service, signed, evidence=stolen).denial)
    assert candidates(world) == []
    world.approve(signed, tees=(tee,), protocols=("ra-tls",))
    assert show(service, signed, refusal(world, service, signed, tdx=True).denial)
    assert candidates(world) == []
    assert len(entries(world, "explanation")) == 2


def test_only_a_refusal_of_genuine_evidence_can_be_explained_once(world: World, service: KeyService) -> None:
    """Nothing is read of what cannot be explained."""
    signed = world.program()
    garbage = refusal(world, service, signed, evidence=b"garbage").denial
    for denial in ("d-nothing", NOT_KEPT, garbage):
        assert not show(service, signed, denial)
    denial = refusal(world, service, signed).denial
    assert show(service, signed, denial)
    assert not show(service, signed, denial)
    assert entries(world, "explanation")[0]["denial"] == denial
