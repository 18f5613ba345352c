"""A key server fetches collateral for GPUs beside its decisions, for genuine GPUs only. No decision waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.bundle import DevicePart, EvidenceBundle, gpu_nonce
from adyton.attest.devices import Device, device_digest
from adyton.attest.roots import TrustRoots
from adyton.collateral.background import FAILED_S, BackgroundFetches
from adyton.collateral.downloads import Downloads
from adyton.collateral.gpu_background import GPUFetches
from adyton.collateral.gpu_verifier import GPUVerifier
from adyton.collateral.gpus import GPUDownloads
from adyton.collateral.nvidia import OCSPClient, RIMClient
from adyton.collateral.store import CollateralStore
from adyton.errors import MalformedQuote, Unavailable
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from adyton.sim.gpu import SimDevice, SimNVIDIA
from tests.support.nvidia_services import NVIDIAServices
from tests.support.owner_world import World, make_world
from tests.support.run_keys import RUN_KEY

NOW = datetime.now(UTC).replace(microsecond=0)


class SlowServices(NVIDIAServices):
    """NVIDIA's services, which answer only once the gate is open."""

    gate: threading.Event

    def get(self, url: str, **more: Any) -> Any:
        """A RIM by its id."""
        assert self.gate.wait(60)
        return super().get(url, **more)


@dataclass
class Place:
    """A key server whose pinned root is the simulated vendor's, with an empty store."""

    world: World
    vendor: SimNVIDIA
    gpu: SimDevice
    services: SlowServices
    store: CollateralStore
    now_s: float = 1000.0
    threads: list[threading.Thread] = field(default_factory=list)

    def verifier(self, roots: TrustRoots | None = None) -> GPUVerifier:
        """As `adyton serve --online` makes it, but for roots, clock and services."""
        services: Any = self.services
        downloads = GPUDownloads(
            Downloads(self.store),
            rim_client=lambda source: RIMClient(source.url, services, lambda: NOW),
            ocsp_client=lambda source: OCSPClient(source.url, services, lambda: NOW),
        )
        fetches = BackgroundFetches(start=self._start, clock_s=lambda: self.now_s)
        pinned = TrustRoots(nvidia_device=frozenset({self.vendor.root}), nvidia_rim=frozenset({self.vendor.root}))
        return GPUVerifier(self.store, GPUFetches(downloads, fetches), roots or pinned)

    def _start(self, work: Any) -> None:
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def join(self) -> None:
        """Wait for all fetches so far."""
        self.services.gate.set()
        for thread in self.threads:
            thread.join(60)

    def service(self, verifier: GPUVerifier) -> KeyService:
        """The decisions over this verifier."""
        return self.world.service(verify_devices=verifier.verify, fetch_for_devices=verifier.fetch_for)

    def ask(self, service: KeyService, *, with_gpu: bool = True, nonce: bytes | None = None) -> Future[Answered]:
        """One request, whose answer may come later."""
        signed, key = self.world.program(), EnclaveKey().public_bytes
        challenge = service.challenge()[0]
        report = self.gpu.report(gpu_nonce(challenge, key) if nonce is None else nonce)
        part = DevicePart(arch=self.gpu.arch, certificate=self.gpu.pem, evidence=report)
        bundle = EvidenceBundle(devices=(part,) if with_gpu else ())
        request = ReleaseRequest(challenge, key, signed.manifest_sha256, ("weights",), bundle, RUN_KEY)
        named = [Device(ueid=self.gpu.ueid, driver=self.gpu.driver, vbios=self.gpu.vbios)] if with_gpu else []
        enclave = self.world.enclave(signed, tdx=True, devices=device_digest(named))
        quote = enclave.quote(request.report_data(server_identity(self.world.home)))
        return service.release(replace(request, evidence=replace(bundle, cpu=quote)), "peer")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An approval for one GPU."""
    vendor = SimNVIDIA.create(NOW - timedelta(days=1))
    gpu = vendor.device()
    services = SlowServices(vendor, (gpu,), NOW)
    services.gate = threading.Event()
    with make_world(tmp_path) as world:
        tees = (world.tee.replace("sim:", "sim-tdx:"),)
        world.approve(world.program(), tees=tees, evidence={"gpus": {"count": 1}})
        yield Place(world, vendor, gpu, services, CollateralStore(tmp_path / "gpu-collateral"))


def test_request_waits_for_collateral_while_others_are_decided(place: Place) -> None:
    """The first request is parked, another one is answered meanwhile, and then the first gets its key."""
    service = place.service(place.verifier())
    try:
        waiting = place.ask(service)
        other = place.ask(service, with_gpu=False).result(60)
        assert other.refusal is not None
        assert not waiting.done()
        place.join()
        assert waiting.result(60).granted is not None
        asked = len(place.services.asked)
        assert place.ask(service).result(60).granted is not None
        assert len(place.services.asked) == asked  # what is there is not asked for again
    finally:
        place.join()
        service.close()


def test_one_fetch_serves_all_requests_of_one_gpu(place: Place) -> None:
    """They wait for the same one."""
    service = place.service(place.verifier())
    try:
        waiting = [place.ask(service) for _ in range(3)]
        place.ask(service, with_gpu=False).result(60)  # all before it were looked at
        place.join()
        assert all(each.result(60).granted is not None for each in waiting)
        assert len(place.threads) == 1
    finally:
        place.join()
        service.close()


def test_failed_fetch_is_no_verdict_and_is_not_repeated_at_once(place: Place) -> None:
    """A service without an answer: the request could not be checked. The next one does not ask again for a while."""
    place.services.status = 503
    place.services.gate.set()
    service = place.service(place.verifier())
    try:
        for _ in range(2):
            with pytest.raises(Unavailable):
                place.ask(service).result(60)
        assert len(place.threads) == 1
        place.now_s += FAILED_S + 1
        with pytest.raises(Unavailable):
            place.ask(service).result(60)
        assert len(place.threads) == 2
    finally:
        place.join()
        service.close()


def test_evidence_that_lacks_something_after_a_fetch_does_not_ask_without_end(place: Place) -> None:
    """The services answer, and what they say has ended by the key server's clock. The next fetch waits."""
    place.services.gate.set()
    verifier, nonce = place.verifier(), bytes(32)
    part = DevicePart(arch="HOPPER", certificate=place.gpu.pem, evidence=place.gpu.report(nonce))
    assert verifier.fetch_for((part,), nonce, NOW) is not None
    place.join()
    assert verifier.fetch_for((part,), nonce, NOW) is None
    place.now_s += FAILED_S + 1
    assert verifier.fetch_for((part,), nonce, NOW) is not None
    place.join()
    assert len(place.threads) == 2


def test_evidence_that_is_not_genuine_causes_no_fetch(place: Place) -> None:
    """A report for another request, a simulated root, a chain that does not parse, an unknown architecture."""
    place.services.gate.set()
    service = place.service(place.verifier())
    try:
        assert place.ask(service, nonce=bytes(32)).result(60).refusal is not None
    finally:
        service.close()
    verifier, nonce = place.verifier(), bytes(32)
    part = DevicePart(arch="HOPPER", certificate=place.gpu.pem, evidence=place.gpu.report(nonce))
    assert place.verifier(TrustRoots()).fetch_for((part,), nonce, NOW) is None
    assert verifier.fetch_for((part, replace(part, evidence=b"x" * 100)), nonce, NOW) is None
    assert verifier.fetch_for((part,), b"\1" * 32, NOW) is None
    assert verifier.fetch_for((), nonce, NOW) is None
    with pytest.raises(MalformedQuote):
        verifier.fetch_for((replace(part, arch="VOLTA"),), nonce, NOW)
    assert GPUVerifier(place.store).fetch_for((part,), nonce, NOW) is None  # `adyton serve` without --online
    assert place.services.asked == []
    assert place.threads == []


def test_due_answers_are_fetched_anew_and_the_request_does_not_wait(place: Place) -> None:
    """OCSP answers past half of their validity still count. A RIM of today is not asked for again."""
    place.services.gate.set()
    verifier, nonce = place.verifier(), bytes(32)
    part = DevicePart(arch="HOPPER", certificate=place.gpu.pem, evidence=place.gpu.report(nonce))
    assert verifier.fetch_for((part,), nonce, NOW) is not None
    place.join()
    later = NOW + timedelta(days=4)
    place.services.asked.clear()
    place.services.now = later
    (device,) = verifier.verify((part,), nonce, later)
    assert device.ueid == place.gpu.ueid
    place.join()
    assert len(place.threads) == 2
    assert [url for url in place.services.asked if "/rim/" in url] == []
    assert len(place.services.asked) == 6
    verifier.verify((part,), nonce, later)
    place.join()
    assert len(place.threads) == 2  # nothing is due any more
