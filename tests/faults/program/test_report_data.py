"""A program that was taken over asks for evidence that Adyton's own protocols would take, and gets none.

It may ask over any 64 bytes; whoever took it over hands the evidence to the host, which speaks to the key server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.assess import verify_evidence
from adyton.attest.bundle import EvidenceBundle
from adyton.attest.evidence import parse_evidence
from adyton.attest.guest import MUST_COVER, SNPGuest
from adyton.attest.ratls import make_certificate
from adyton.collateral.verifier import VerifiedEvidence
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.runtime.evidence import program_evidence
from adyton.server.process import server_identity
from adyton.values import Measurement
from tests.mount import world as mounts
from tests.support.amd_factory import LAUNCH, NOW, SNPScenario
from tests.support.owner_world import World, make_world, now
from tests.support.release_by_hand import reason
from tests.support.run_keys import RUN_KEY

RAW = "[adyton]\ninsecure__raw_report_data = true\n"


class Asked(NamedTuple):
    """A request that lacks its evidence, and what that must be over."""

    request: ReleaseRequest
    report_data: bytes


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a simulated platform."""
    with make_world(tmp_path) as found:
        yield found


def asked(world: World, service: KeyService, signed: SignedManifest) -> Asked:
    """The attacker's own request, in the name of a manifest of his choice."""
    nonce, _ = service.challenge()
    request = ReleaseRequest(
        nonce, EnclaveKey().public_bytes, signed.manifest_sha256, ("weights",), EvidenceBundle(), run_key=RUN_KEY
    )
    return Asked(request, request.report_data(server_identity(world.home)))


def answered(service: KeyService, asked: Asked, evidence: bytes) -> Answered:
    """What the key server says to it."""
    return service.release(replace(asked.request, evidence=EvidenceBundle(cpu=evidence)), "attacker").result(60)


# --- SEV-SNP: no register names the workload ----------------------------------------------------------------------


class TestAMD:
    """The key server's verifier, with the test AMD's root in place of AMD's."""

    __test__ = False

    def __init__(self) -> None:
        self._built = SNPScenario().built()

    def verify(self, raw: bytes, _sim_roots: Any, at: datetime) -> VerifiedEvidence:
        """As `Verifier.verify`."""
        built = self._built
        return VerifiedEvidence(
            verify_evidence(parse_evidence(raw), built.collateral, built.roots, at), built.collateral
        )


@pytest.fixture
def victim(world: World) -> SignedManifest:
    """An owner's program, approved in a SEV-SNP guest."""
    signed = world.program()
    world.approve(
        signed,
        tees=("snp",),
        guest_images=(SNPGuest(launch_digest=Measurement(LAUNCH), launch_digest_covers=MUST_COVER),),
        manifest_sha256=signed.manifest_sha256,
        evidence={
            "min_tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}},
            "snp": {"products": {"Milan": {"accept_until": "2040-01-01T00:00:00+00:00", "reason": "a test"}}},
        },
    )
    return signed


@pytest.fixture
def snp_service(world: World) -> Iterator[KeyService]:
    """Her key server."""
    found = world.service(verifier=TestAMD(), clock=lambda: NOW)  # type: ignore[arg-type]
    yield found
    found.close()


@pytest.mark.mount
def test_program_of_an_snp_guest_gets_no_evidence_in_another_manifests_name(
    world: World, victim: SignedManifest, snp_service: KeyService, tmp_path: Path
) -> None:
    """A program of the host's, in the approved guest, asks over the release protocol's report data of the victim."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")
    attack = asked(world, snp_service, victim)
    folder = tmp_path / "run"
    (folder / "out").mkdir(parents=True)
    (folder / "chosen").write_bytes(attack.report_data)
    script = "cat /chosen > /dev/attestation/user_report_data; cat /dev/attestation/quote > /out/quote"
    spec = mounts.shell(
        script,
        snp=True,
        trusted=["chosen"],
        mounts=[["chroot", "/chosen", "file:chosen"], ["encrypted", "/out", "file:out"]],
    )
    result = mounts.run(folder, spec)
    assert result.status == 0, result.err
    report = mounts.decrypt(folder, "out/quote")
    assert parse_evidence(report).report_data != attack.report_data
    refusal = answered(snp_service, attack, report).refusal
    assert refusal is not None
    assert refusal.check == "report data"
    assert "release" not in world.kinds()


def test_the_same_guest_gets_the_key_for_evidence_that_its_runtime_asked_for(
    world: World, victim: SignedManifest, snp_service: KeyService
) -> None:
    """The approval is a real one: evidence over the protocol's report data, which only the runtime can ask for."""
    honest = asked(world, snp_service, victim)
    assert answered(snp_service, honest, mounts.snp_report(honest.report_data)).granted is not None
    assert "release" in world.kinds()


# --- enclaves and trust domains -----------------------------------------------------------------------------------


@pytest.fixture
def service(world: World) -> Iterator[KeyService]:
    """Her key server."""
    found = world.service()
    yield found
    found.close()


@pytest.mark.parametrize("tdx", [False, True])
def test_program_cannot_make_itself_another_run(world: World, service: KeyService, tdx: bool) -> None:
    """An approved program that was taken over asks for its own key again, past the one run that it may have."""
    signed = world.program()
    tee = world.tee.replace("sim:", "sim-tdx:") if tdx else world.tee
    world.approve(signed, tees=(tee,))
    source = world.enclave(signed, tdx=tdx)
    attack = asked(world, service, signed)
    theirs = program_evidence(source, signed.manifest, signed.measurement).over(attack.report_data)
    refusal = answered(service, attack, theirs).refusal
    assert refusal is not None
    assert refusal.check == "report data"
    again = asked(world, service, signed)
    assert answered(service, again, source.quote(again.report_data)).granted is not None


def ra_tls(world: World, service: KeyService, signed: SignedManifest) -> Answered:
    """The program makes an RA-TLS certificate of its own, and the host connects with it."""
    evidence = program_evidence(world.enclave(signed), signed.manifest, signed.measurement)
    window = {"not_before": now() - timedelta(hours=1), "not_after": datetime(2100, 1, 1, tzinfo=UTC)}
    certificate = make_certificate(ec.generate_private_key(ec.SECP384R1()), evidence.over, **window)
    return service.provision([certificate], None, "attacker").result(60)


def test_program_cannot_speak_ra_tls_in_the_runtimes_place(world: World, service: KeyService) -> None:
    """Its evidence is over a hash of what the certificate needs."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    refusal = ra_tls(world, service, signed).refusal
    assert refusal is not None
    assert refusal.check == "report data"
    assert "release" not in world.kinds()


def test_raw_report_data_gives_the_programs_own_key_and_no_other(world: World, service: KeyService) -> None:
    """In `sim`, where the manifest says so, MRENCLAVE still names the program: another's key it never gets."""
    victim, raw = world.program(), world.program(argument="raw.py", tables=RAW)
    world.approve(victim, protocols=("ra-tls", "adyton"))
    refusal = ra_tls(world, service, raw).refusal
    assert refusal is not None
    attack = asked(world, service, victim)
    theirs = program_evidence(world.enclave(raw), raw.manifest, raw.measurement).over(attack.report_data)
    assert parse_evidence(theirs).report_data == attack.report_data
    refusal = answered(service, attack, theirs).refusal
    assert refusal is not None
    assert reason(world)["check"] == "measurement of the program"
    assert "release" not in world.kinds()
    world.approve(raw, protocols=("ra-tls",), raw_report_data=True, version="v2")
    assert ra_tls(world, service, raw).payload is not None
