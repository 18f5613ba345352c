"""The evidence bundle: the CPU's part is judged first, and the log and the devices only after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.bundle import DevicePart, EvidenceBundle, devices_bytes, gpu_nonce
from adyton.attest.devices import Device, device_digest
from adyton.attest.guest import TPMGuest
from adyton.attest.tpm.document import TPMQuote
from adyton.attest.tpm.pcr_policy import CALLING, SEPARATOR
from adyton.attest.workload_register import workload_register
from adyton.errors import Mismatch
from adyton.keyserver.refused_programs import Explainer, Ticket
from adyton.keyserver.replay import replay
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.keystore.prune import named
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from tests.support.owner_world import World, make_world
from tests.support.release_by_hand import entries, reason
from tests.support.run_keys import RUN_KEY
from tests.support.tpm_factory import LINUX, UKI, TPMScenario

GPU = Device(ueid="7", driver="570.158.01", vbios="96.00.88.00.11")
OTHER = replace(GPU, ueid="8")
PART = DevicePart(arch="HOPPER", certificate=b"certificate", evidence=b"evidence")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner who approved her program in the simulated trust domain and in the simulated enclave."""
    with make_world(tmp_path) as found:
        found.approve(found.program(), tees=(found.tee.replace("sim:", "sim-tdx:"),))
        found.approve(found.program(), tees=(found.tee.replace("sim:", "sim-tdx:"),), evidence={"gpus": {}})
        found.approve(found.program())
        yield found


@dataclass
class GPUs:
    """A verifier of devices that counts its calls."""

    found: tuple[Device, ...] = (GPU,)
    calls: list[tuple[tuple[DevicePart, ...], bytes]] = field(default_factory=list)

    def verify(self, devices: tuple[DevicePart, ...], nonce: bytes, _now: datetime) -> tuple[Device, ...]:
        """Whatever it is given is this."""
        self.calls.append((devices, nonce))
        return self.found


def ask(
    world: World,
    gpus: GPUs | None = None,
    *,
    bundle: EvidenceBundle | None = None,
    register: tuple[Device, ...] = (),
    tdx: bool = True,
    **after: Any,
) -> Answered:
    """A request of the approved program with this bundle. `after` changes the bundle once the quote is made."""
    verifier: dict[str, Any] = {} if gpus is None else {"verify_devices": gpus.verify}
    service: KeyService = world.service(**verifier)
    try:
        signed, nonce = world.program(), service.challenge()[0]
        key = EnclaveKey().public_bytes
        request = ReleaseRequest(
            nonce, key, signed.manifest_sha256, ("weights",), bundle or EvidenceBundle(), run_key=RUN_KEY
        )
        enclave = world.enclave(signed, tdx=tdx, devices=device_digest(register))
        quote = enclave.quote(request.report_data(server_identity(world.home)))
        evidence = replace(request.evidence, cpu=quote, **after)
        answered = service.release(replace(request, evidence=evidence), "peer").result(60)
        if gpus is not None and gpus.calls:
            assert gpus.calls[-1][1] == gpu_nonce(request.nonce, key)
        return answered
    finally:
        service.close()


def test_bundle_with_the_cpu_alone_gets_the_key(world: World) -> None:
    """As before, in an enclave and in a trust domain."""
    assert ask(world).granted is not None
    assert ask(world, tdx=False).granted is not None


def test_key_server_without_a_verifier_of_devices_refuses_them(world: World) -> None:
    """It says so, and the refusal is recorded."""
    refusal = ask(world, bundle=EvidenceBundle(devices=(PART,)), register=(GPU,)).refusal
    assert refusal is not None
    assert refusal.message.startswith("this key server verifies no devices")
    assert (reason(world)["check"], "release" in world.kinds()) == ("devices in the evidence", False)


def test_event_log_that_nothing_needs_is_refused(world: World) -> None:
    """A part that no check would read is never carried along."""
    for tdx in (True, False):
        assert ask(world, tdx=tdx, event_log=b"log").refusal is not None
        assert reason(world)["check"] == "event log in the evidence"
    assert "release" not in world.kinds()


def test_devices_are_verified_over_the_requests_own_nonce_and_compared_with_the_register(world: World) -> None:
    """The devices that were verified must be those that the guest extended at boot: all of them and no other."""
    gpus = GPUs()
    bundle = EvidenceBundle(devices=(PART,))
    assert ask(world, gpus, bundle=bundle, register=(GPU,)).granted is not None
    assert gpus.calls[0][0] == (PART,)
    for register in ((), (OTHER,), (GPU, OTHER)):
        assert ask(world, gpus, bundle=bundle, register=register).granted is None, register
        assert reason(world)["check"] == "measurement of the program"


def test_devices_that_are_left_out_are_missed(world: World) -> None:
    """A register with a GPU, and evidence without one."""
    assert ask(world, GPUs(), register=(GPU,)).refusal is not None
    assert reason(world)["check"] == "measurement of the program"


def test_devices_that_the_quote_does_not_cover_are_not_even_parsed(world: World) -> None:
    """Added, exchanged, put in another order or left out on the way: the report data differ, and nothing reads them."""
    gpus = GPUs()
    made = EvidenceBundle(devices=(PART, replace(PART, evidence=b"another")))
    for changed in ((), made.devices[:1], made.devices[::-1], (PART, replace(PART, evidence=b"third"))):
        refusal = ask(world, gpus, bundle=made, register=(GPU,), devices=changed).refusal
        assert refusal is not None
        assert refusal.check == "report data"
    assert gpus.calls == []


def test_cpu_part_that_is_not_genuine_is_refused_before_the_rest_is_parsed(world: World) -> None:
    """A quote that does not verify, with a log and devices beside it."""
    gpus = GPUs()
    service = world.service(verify_devices=gpus.verify)
    request = ReleaseRequest(
        service.challenge()[0],
        EnclaveKey().public_bytes,
        world.program().manifest_sha256,
        ("weights",),
        EvidenceBundle(devices=(PART,)),
        run_key=RUN_KEY,
    )
    quote = bytearray(world.enclave(world.program(), tdx=True).quote(request.report_data(server_identity(world.home))))
    quote[100] ^= 1
    bundle = replace(request.evidence, cpu=bytes(quote), event_log=b"log")
    refusal = service.release(replace(request, evidence=bundle), "peer").result(60).refusal
    service.close()
    assert refusal is not None
    assert "signature" in refusal.check
    assert gpus.calls == []


def test_evidence_without_a_register_for_devices_takes_none(world: World) -> None:
    """Under SGX nothing says which devices the machine has."""
    gpus = GPUs()
    assert ask(world, gpus, bundle=EvidenceBundle(devices=(PART,)), tdx=False).refusal is not None
    assert reason(world)["check"] == "devices in the evidence"
    assert gpus.calls == []


def test_refusal_of_a_verifier_of_devices_refuses_the_request(world: World) -> None:
    """What it raises is the reason."""

    def verify(*_arguments: object) -> tuple[Device, ...]:
        raise Mismatch("the same GPU twice", check="GPUs", expected="each once", seen="7")

    service: Any = GPUs()
    service.verify = verify
    assert ask(world, service, bundle=EvidenceBundle(devices=(PART,)), register=(GPU,)).refusal is not None
    assert reason(world)["check"] == "GPUs"


def test_record_keeps_every_part_of_a_bundle(world: World) -> None:
    """A release and a refusal keep the devices beside the quote, each under its SHA-256, until they are pruned."""
    bundle = EvidenceBundle(devices=(PART,))
    assert ask(world, GPUs(), bundle=bundle, register=(GPU,)).granted is not None
    assert ask(world, GPUs(), bundle=bundle, register=(OTHER,)).refusal is not None
    wanted = hashlib.sha256(devices_bytes((PART,))).hexdigest()
    for kind in ("release", "denial"):
        assert entries(world, kind)[-1]["devices"] == wanted
    with world.store.read() as view:
        for entry in [*view.entries(kind="release"), *view.entries(kind="denial")]:
            assert set(named(entry)) == {"evidence", "devices", "collateral"}
            assert view.artifact(named(entry)["devices"]) == devices_bytes((PART,))


# --- a measured boot: the log stands beside the CPU's part ----------------------------------------------------------


def boot(world: World, *, log: bytes | None, machine: TPMScenario, pcr7: bytes | None = None) -> Answered:
    """The approved program asks from a machine with a TPM, with this log beside the quote."""
    signed = world.program()
    guest = TPMGuest(boot_applications=(UKI, LINUX), pcr11=machine.pcrs()[11], pcr7=pcr7)
    world.approve(signed, tees=(f"sim-tpm:{machine.root_pin}",), guest_images=(guest,))
    service = world.service()
    try:
        nonce = service.challenge()[0]
        bundle = EvidenceBundle(event_log=log)
        request = ReleaseRequest(
            nonce, EnclaveKey().public_bytes, signed.manifest_sha256, ("weights",), bundle, run_key=RUN_KEY
        )
        machine.nonce = request.report_data(server_identity(world.home))
        machine.more = {15: workload_register(signed.measurement, bank="sha256")}
        document = {name: value for name, value in machine.document().items() if name != "event_log"}
        evidence = replace(bundle, cpu=json.dumps(document).encode())
        return service.release(replace(request, evidence=evidence), "peer").result(60)
    finally:
        service.close()


def test_log_of_the_boot_is_judged_and_kept_beside_its_quote(world: World) -> None:
    """The release keeps quote and log, and both give the same verdict again later."""
    machine = TPMScenario()
    assert boot(world, log=machine.event_log(), machine=machine, pcr7=machine.pcrs()[7]).granted is not None
    with world.store.read() as view:
        (entry,) = view.newest_entries(1, kinds=("release",))
        assert view.artifact(named(entry)["event_log"]) == machine.event_log()
        assessment = replay(view, entry)
    assert assessment is not None
    assert assessment.verdict == "accepted"


@pytest.mark.parametrize("log", [None, b"log", TPMScenario(started=[CALLING, SEPARATOR, UKI]).event_log()])
def test_log_that_is_missing_or_of_another_boot_is_refused(world: World, log: bytes | None) -> None:
    """The quote is genuine each time."""
    assert boot(world, log=log, machine=TPMScenario()).refusal is not None
    assert "release" not in world.kinds()


def test_refusal_that_waits_for_its_explanation_holds_no_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of them may wait, and a log has a quarter of a megabyte."""
    tickets: list[Ticket] = []
    monkeypatch.setattr(Explainer, "expect", lambda _self, ticket: tickets.append(ticket))
    machine = TPMScenario()
    assert boot(world, log=machine.event_log(), machine=machine, pcr7=b"\1" * 32).refusal is not None
    (ticket,) = tickets
    assert isinstance(ticket.report.evidence, TPMQuote)
    assert ticket.report.evidence.event_log is None


def test_secure_boot_state_that_was_named_is_compared(world: World) -> None:
    """PCR 7 of another state."""
    machine = TPMScenario()
    assert boot(world, log=machine.event_log(), machine=machine, pcr7=b"\1" * 32).refusal is not None
    with world.store.read() as view:
        (entry,) = view.newest_entries(1, kinds=("denial",))
    failed = json.loads(entry.body)["detail"]["approvals"][0]["failed"]
    assert [line["name"] for line in failed] == ["PCR 7"]
