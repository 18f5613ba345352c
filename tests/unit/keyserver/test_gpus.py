"""Keys for a program with GPUs: the real verifier behind the release, and evidence that is not this run's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.bundle import DevicePart, EvidenceBundle, gpu_nonce
from adyton.attest.devices import Device, device_digest
from adyton.collateral.downloads import Downloads
from adyton.collateral.gpu_verifier import GPUVerifier
from adyton.collateral.gpus import GPUDownloads
from adyton.collateral.nvidia import OCSPClient, RIMClient
from adyton.collateral.store import CollateralStore
from adyton.errors import Unavailable
from adyton.keyserver.stages import Answered
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from adyton.sim.gpu import SimDevice, SimNVIDIA
from adyton.values import Nonce
from tests.support.nvidia_services import NVIDIAServices
from tests.support.owner_world import World, make_world
from tests.support.release_by_hand import reason
from tests.support.run_keys import RUN_KEY

NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Place:
    """An owner, a simulated NVIDIA, two GPUs, and the owner's collateral for them."""

    world: World
    vendor: SimNVIDIA
    gpus: tuple[SimDevice, ...]
    verifier: GPUVerifier

    def part(self, gpu: SimDevice, nonce: bytes) -> DevicePart:
        """A GPU's evidence as it stands in a request."""
        return DevicePart(arch=gpu.arch, certificate=gpu.pem, evidence=gpu.report(nonce))

    def named(self, *gpus: SimDevice) -> bytes:
        """The digest that the guest extended at boot for these GPUs."""
        return device_digest(Device(ueid=gpu.ueid, driver=gpu.driver, vbios=gpu.vbios) for gpu in gpus)

    def ask(
        self,
        gpus: tuple[SimDevice, ...] = (),
        *,
        booted: tuple[SimDevice, ...] | None = None,
        nonce: bytes | None = None,
        parts: tuple[DevicePart, ...] | None = None,
    ) -> Answered:
        """One request with the evidence of these GPUs, of a guest that was booted with `booted`."""
        world = self.world
        service = world.service(verify_devices=self.verifier.verify)
        try:
            signed, key = world.program(), EnclaveKey().public_bytes
            challenge = service.challenge()[0]
            wanted = gpu_nonce(challenge, key) if nonce is None else nonce
            made = tuple(self.part(gpu, wanted) for gpu in gpus) if parts is None else parts
            bundle = EvidenceBundle(devices=made)
            request = ReleaseRequest(challenge, key, signed.manifest_sha256, ("weights",), bundle, run_key=RUN_KEY)
            register = self.named(*(gpus if booted is None else booted))
            enclave = world.enclave(signed, tdx=True, devices=register)
            quote = enclave.quote(request.report_data(server_identity(world.home)))
            request = replace(request, evidence=replace(bundle, cpu=quote))
            return service.release(request, "peer").result(60)
        finally:
            service.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An approval for exactly one GPU under the simulated root."""
    vendor = SimNVIDIA.create(NOW - timedelta(days=1))
    gpus = (vendor.device(), vendor.device())
    store = CollateralStore(tmp_path / "gpu-collateral")
    services: Any = NVIDIAServices(vendor, gpus, NOW)
    downloads = GPUDownloads(
        Downloads(store),
        rim_client=lambda source: RIMClient(source.url, services),
        ocsp_client=lambda source: OCSPClient(source.url, services),
    )
    outcomes = downloads.fetch_for([gpu.evidence(bytes(32)) for gpu in gpus], NOW)
    assert all(outcome.error is None for outcome in outcomes)
    with make_world(tmp_path) as world:
        _approve(world, {"count": 1, "simulated_roots": [str(vendor.root)]})
        yield Place(world, vendor, gpus, GPUVerifier(store))


def _approve(world: World, gpus: dict[str, Any]) -> None:
    world.approve(world.program(), tees=(world.tee.replace("sim:", "sim-tdx:"),), evidence={"gpus": gpus})


def _refused(place: Place, answered: Answered, check: str) -> None:
    assert answered.granted is None
    assert reason(place.world)["check"] == check


def test_program_with_its_gpu_gets_the_key_and_again(place: Place) -> None:
    """The same boot, a second request and a third: nothing is extended twice, and each has a nonce of its own."""
    gpu = place.gpus[0]
    for _ in range(3):
        answered = place.ask((gpu,))
        assert answered.granted is not None, reason(place.world)


def test_evidence_for_another_challenge_is_refused(place: Place) -> None:
    """The report of another request: another challenge, and the same challenge with another run's key."""
    gpu, other = place.gpus[0], Nonce(os.urandom(32))
    _refused(place, place.ask((gpu,), nonce=gpu_nonce(other, EnclaveKey().public_bytes)), "nonce")
    _refused(place, place.ask((gpu,), nonce=other.raw), "nonce")


def test_replayed_evidence_is_refused(place: Place) -> None:
    """The part of an earlier request that was granted."""
    gpu = place.gpus[0]
    made: list[tuple[DevicePart, ...]] = []
    verify = place.verifier.verify

    def keep(devices: tuple[DevicePart, ...], nonce: bytes, now: datetime) -> tuple[Device, ...]:
        made.append(devices)
        return verify(devices, nonce, now)

    place.verifier.verify = keep  # type: ignore[method-assign]
    assert place.ask((gpu,)).granted is not None
    _refused(place, place.ask(parts=made[0], booted=(gpu,)), "nonce")


def test_evidence_of_another_guests_gpu_is_refused(place: Place) -> None:
    """Genuine, fresh and covered by the report data; but the guest was booted with another GPU, or with none."""
    gpu, other = place.gpus
    _refused(place, place.ask((other,), booted=(gpu,)), "measurement of the program")
    _refused(place, place.ask((gpu,), booted=()), "measurement of the program")
    changed = gpu.with_(driver="551.0")
    _refused(place, place.ask((gpu,), booted=(changed,)), "measurement of the program")


def test_doubled_and_missing_gpus_are_refused(place: Place) -> None:
    """One GPU twice does not count as two, and none is not one."""
    gpu, other = place.gpus
    _approve(place.world, {"count": 2, "simulated_roots": [str(place.vendor.root)]})
    assert place.ask((gpu, other)).granted is not None
    _refused(place, place.ask((gpu, gpu), booted=(gpu,)), "each UEID once")
    assert place.ask((), booted=()).granted is None
    assert place.ask((), booted=(gpu,)).granted is None


def test_gpu_under_a_root_that_no_approval_names_is_refused(place: Place) -> None:
    """Its own vendor, its own collateral, everything genuine under it."""
    vendor = SimNVIDIA.create(NOW - timedelta(days=1))
    gpu = vendor.device()
    services: Any = NVIDIAServices(vendor, (gpu,), NOW)
    downloads = GPUDownloads(
        Downloads(place.verifier.store),
        rim_client=lambda source: RIMClient(source.url, services),
        ocsp_client=lambda source: OCSPClient(source.url, services),
    )
    assert all(outcome.error is None for outcome in downloads.fetch_for([gpu.evidence(bytes(32))], NOW))
    _refused(place, place.ask((gpu,)), "GPUs: root")


def test_gpu_that_the_approval_does_not_name_is_refused(tmp_path: Path, place: Place) -> None:
    """A machine with a GPU, and an approval without the table."""
    (tmp_path / "other").mkdir()
    with make_world(tmp_path / "other") as world:
        world.approve(world.program(), tees=(world.tee.replace("sim:", "sim-tdx:"),))
        other = replace(place, world=world)
        _refused(other, other.ask((place.gpus[0],)), "GPUs: named by the policy")
        assert other.ask(()).granted is not None


def test_gpu_with_other_firmware_or_without_collateral_is_refused(place: Place, tmp_path: Path) -> None:
    """A measurement that nobody vouches for; a store that has nothing."""
    gpu = place.gpus[0]
    _refused(place, place.ask((gpu.with_(changed={3: bytes(48)}),)), "measurements")
    empty = replace(place, verifier=GPUVerifier(CollateralStore(tmp_path / "empty")))
    with pytest.raises(Unavailable):
        empty.ask((gpu,))


def test_part_of_an_unknown_architecture_is_refused(place: Place) -> None:
    """Nothing is guessed."""
    part = replace(place.part(place.gpus[0], bytes(32)), arch="VOLTA")
    _refused(place, place.ask(parts=(part,), booted=()), "arch of a GPU")
    switch = place.vendor.device("LS10")
    part = place.part(switch, bytes(32))
    assert place.ask(parts=(part,), booted=()).granted is None
