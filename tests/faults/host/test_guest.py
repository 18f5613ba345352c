"""A host boots a guest of its own under the firmware that was approved, and says in RTMR3 what it likes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.attest.bundle import EvidenceBundle
from adyton.attest.guest import TDXGuest
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from adyton.sim.chip import SimEnclave, simulated_guest
from adyton.values import Measurement
from tests.support.owner_world import World, make_world
from tests.support.release_by_hand import reason
from tests.support.run_keys import RUN_KEY


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform."""
    with make_world(tmp_path) as found:
        yield found


@pytest.fixture
def service(world: World) -> Iterator[KeyService]:
    """Her key server."""
    found = world.service()
    yield found
    found.close()


def ask(world: World, service: KeyService, signed: SignedManifest, **registers: bytes) -> Answered:
    """The host's guest asks in the program's name; RTMR3 says what an honest guest's would."""
    nonce, _ = service.challenge()
    request = ReleaseRequest(
        nonce, EnclaveKey().public_bytes, signed.manifest_sha256, ("weights",), EvidenceBundle(), run_key=RUN_KEY
    )
    honest = world.enclave(signed, tdx=True)
    hostile = SimEnclave(honest._machine, honest._key, honest._body.replace(**registers))
    quote = hostile.quote(request.report_data(server_identity(world.home)))
    return service.release(replace(request, evidence=EvidenceBundle(cpu=quote)), "host").result(60)


@pytest.mark.parametrize(
    ("register", "check"),
    [("mrtd", "measurement of the program"), ("rtmr0", "RTMR0"), ("rtmr1", "RTMR1"), ("rtmr2", "RTMR2")],
)
def test_another_guest_gets_no_key(world: World, service: KeyService, register: str, check: str) -> None:
    """Other firmware, other ACPI tables, another kernel, another command line or initrd."""
    signed = world.program()
    world.approve(signed, tees=(world.tee.replace("sim:", "sim-tdx:"),))
    refusal = ask(world, service, signed, **{register: b"h" * 48}).refusal
    assert refusal is not None
    assert reason(world)["check"] == check
    assert "release" not in world.kinds()
    assert ask(world, service, signed).granted is not None


def test_parts_of_two_approved_guests_are_no_guest(world: World, service: KeyService) -> None:
    """The kernel of one image under the command line of another: each approved, and not together."""
    signed = world.program()
    other = TDXGuest(
        mrtd=simulated_guest().mrtd,
        rtmr0=simulated_guest().rtmr0,
        rtmr1=Measurement(b"k" * 48),
        rtmr2=Measurement(b"c" * 48),
    )
    world.approve(signed, tees=(world.tee.replace("sim:", "sim-tdx:"),), guest_images=(simulated_guest(), other))
    for registers in ({"rtmr1": other.rtmr1.raw}, {"rtmr2": other.rtmr2.raw}):
        assert ask(world, service, signed, **registers).refusal is not None
    assert ask(world, service, signed, rtmr1=other.rtmr1.raw, rtmr2=other.rtmr2.raw).granted is not None
