"""An EC2 instance with a NitroTPM against the owner's key server: a software TPM, a made-up hypervisor, a test root.

Nothing of Amazon's was at hand. The messages are those of Amazon's tool, the PCRs those of a real software TPM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.assess import verify_evidence
from adyton.attest.bundle import EvidenceBundle
from adyton.attest.collateral import NoCollateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.guest import NitroTPMGuest
from adyton.attest.roots import TrustRoots
from adyton.attest.workload_register import events, workload_register
from adyton.collateral.verifier import VerifiedEvidence
from adyton.errors import NoDevice, StorageFailed
from adyton.image.document import parse_image
from adyton.image.guests import guests_of
from adyton.keyserver.service import KeyService
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.nitrotpm_guest import MESSAGE_INDEX, NitroTPMSource
from adyton.tee.tpm_device import TPMDevice
from adyton.tee.tpm_guest import extend_workload
from adyton.values import Measurement
from tests.support.image_factory import image_document
from tests.support.nitro_factory import NOW, Cert, NitroScenario
from tests.support.nitro_hypervisor import COMMAND_CODE, Hypervisor
from tests.support.owner_world import World, make_world
from tests.support.run_keys import RUN_KEY
from tests.support.software_tpm import needs_swtpm, running_swtpm

pytestmark = needs_swtpm

EVIL = hashlib.sha384(b"the host's own").digest()
STARTED = tuple(hashlib.sha384(text).digest() for text in (b"Calling EFI Application", bytes(4), b"UKI", b"Linux"))
SECTIONS = tuple(hashlib.sha384(text).digest() for text in (b".linux\0", b"the kernel"))


def register(digests: tuple[bytes, ...]) -> Measurement:
    """A PCR that these were extended into."""
    value = bytes(48)
    for digest in digests:
        value = hashlib.sha384(value + digest).digest()
    return Measurement(value)


class TestAmazon:
    """The key server's verifier, with the test root in place of Amazon's."""

    __test__ = False

    def __init__(self, roots: TrustRoots) -> None:
        self._roots = roots

    def verify(self, raw: bytes, _sim_roots: Any, at: Any) -> VerifiedEvidence:
        """As `Verifier.verify`."""
        return VerifiedEvidence(verify_evidence(parse_evidence(raw), NoCollateral(), self._roots, at), NoCollateral())


@dataclass
class Case:
    """An owner with an approved program, and an instance that booted."""

    world: World
    signed: SignedManifest
    hypervisor: Hypervisor
    device: TPMDevice
    service: KeyService

    def boot(self, *, started: tuple[bytes, ...] = STARTED, more: dict[int, bytes] | None = None) -> None:
        """Extend what firmware and stub would."""
        for pcr, digests in {4: started, 11: SECTIONS}.items():
            for digest in digests:
                self.device.extend(pcr, digest, bank="sha384")
        for pcr, digest in (more or {}).items():
            self.device.extend(pcr, digest, bank="sha384")

    def source(self, workload: Measurement | None) -> NitroTPMSource:
        """The source in the guest."""
        return NitroTPMSource(self.device, workload)

    def asked(self) -> tuple[ReleaseRequest, bytes]:
        """A request without evidence, and its report data."""
        nonce, _ = self.service.challenge()
        request = ReleaseRequest(
            nonce,
            EnclaveKey().public_bytes,
            self.signed.manifest_sha256,
            ("weights",),
            EvidenceBundle(),
            RUN_KEY,
        )
        return request, request.report_data(server_identity(self.world.home))

    def answered(self, request: ReleaseRequest, cpu: bytes) -> Any:
        """What the key server says."""
        return self.service.release(replace(request, evidence=EvidenceBundle(cpu=cpu)), "peer").result(60)

    def refuse(self, request: ReleaseRequest, cpu: bytes, check: str) -> None:
        """The key server must refuse, and its record must name the check."""
        answer = self.answered(request, cpu)
        assert answer.granted is None
        assert answer.refusal is not None
        assert "release" not in self.world.kinds()
        with self.world.store.read() as view:
            bodies = [entry.body for entry in view.newest_entries(3, kinds=("denial",))]
        assert any(check in body for body in bodies), bodies

    def ask(self, check: str | None = None) -> None:
        """The whole way with the approved workload: granted, or refused by this check."""
        request, report_data = self.asked()
        document = self.source(self.signed.measurement).quote(report_data)
        if check is None:
            assert self.answered(request, document).granted is not None
            assert "release" in self.world.kinds()
        else:
            self.refuse(request, document, check)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    """One that is still to boot."""
    with make_world(tmp_path) as world, running_swtpm() as socket:
        signed = world.program()
        world.approve(
            signed,
            tees=("nitrotpm",),
            guest_images=(NitroTPMGuest(pcr4=register(STARTED), pcr11=register(SECTIONS)),),
            manifest_sha256=signed.manifest_sha256,
        )
        hypervisor = Hypervisor(SoftwareTPM(socket))
        roots = hypervisor.scenario.built().roots
        service = world.service(verifier=TestAmazon(roots), clock=lambda: NOW)  # type: ignore[arg-type]
        device = TPMDevice(hypervisor)
        yield Case(world, signed, hypervisor, device, service)
        service.close()
        device.close()


def test_key_goes_to_the_approved_guest(case: Case) -> None:
    """Boot, PCR 15, request over the vendor command, document over the release's report data, key."""
    case.boot()
    case.ask()
    (request,) = case.hypervisor.requests
    assert (len(request["nonce"]), request["user_data"], request["public_key"]) == (64, None, None)
    assert case.device.read_pcrs(bank="sha384")[15] == workload_register(case.signed.measurement, bank="sha384")
    assert case.device.read_pcrs()[15] == bytes(32)
    assert case.device.nv_public(MESSAGE_INDEX) is None


@pytest.mark.parametrize(
    ("boot", "check"),
    [
        ({"started": (*STARTED[:-1], EVIL)}, "PCR 4"),
        ({"started": (*STARTED, EVIL)}, "PCR 4"),
        ({"more": {11: EVIL}}, "PCR 11"),
        ({"more": {12: EVIL}}, "PCR 12"),
        ({"more": {13: EVIL}}, "PCR 13"),
    ],
)
def test_other_boot_gets_no_key(case: Case, boot: dict[str, Any], check: str) -> None:
    """The document is genuine, and the workload is in PCR 15."""
    case.boot(**boot)
    case.ask(check)


def _earlier(scenario: NitroScenario) -> None:
    scenario.members["timestamp"] -= int(timedelta(hours=4).total_seconds() * 1000)
    scenario.leaf.window = tuple(when - timedelta(hours=4) for when in scenario.leaf.window)  # type: ignore[assignment]


def _other_root(scenario: NitroScenario) -> None:
    scenario.root = Cert("root", "root", "another", "another")
    scenario.region = replace(scenario.region, signer="another")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (_other_root, "Nitro root CA: pinned"),
        (_earlier, "age of the document"),
        (lambda scenario: setattr(scenario, "signer", "another"), "document: signature"),
        (lambda scenario: scenario.pcrs.pop(12), "PCR 12"),
        (lambda scenario: scenario.pcrs.pop(15), "workload"),
        (lambda scenario: scenario.pcrs.pop(4), "PCR 4: present"),
    ],
)
def test_document_of_another_kind_gets_no_key(
    case: Case, change: Callable[[NitroScenario], object], check: str
) -> None:
    """Made by somebody else, made too early, or without what must be in it."""
    case.boot()
    case.hypervisor.change = lambda scenario: (change(scenario), None)[1]
    case.ask(check)


def test_document_of_another_request_gets_no_key(case: Case) -> None:
    """The host answers with one that the guest got for an earlier request."""
    case.boot()
    old = case.source(case.signed.measurement).quote(case.asked()[1])
    request, _ = case.asked()
    case.refuse(request, old, "report data")


def test_other_workload_gets_no_key_and_the_approved_one_no_start(case: Case) -> None:
    """PCR 15 is extended once in a boot."""
    case.boot()
    extend_workload(Measurement(EVIL[:32]), case.device, bank="sha384")
    with pytest.raises(StorageFailed):
        case.source(case.signed.measurement)
    request, report_data = case.asked()
    case.refuse(request, case.source(None).quote(report_data), "workload")


def test_start_that_was_cut_off_between_the_events_is_completed(case: Case) -> None:
    """The first event alone is there."""
    case.boot()
    case.device.extend(15, events(case.signed.measurement, bank="sha384")[0], bank="sha384")
    case.ask()


def test_enclave_with_the_same_registers_gets_no_key(case: Case) -> None:
    """`nitro` and `nitrotpm` are different platforms, also where the values are the same."""
    case.boot()
    request, report_data = case.asked()
    scenario = NitroScenario(tpm=False)
    scenario.pcrs.update(enumerate(case.device.read_pcrs(bank="sha384")))
    scenario.members["nonce"] = report_data
    case.refuse(request, scenario.built().raw, "TEE")


# --- the source against a TPM, a hypervisor or another process that does something else ---


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (lambda _raw: b"\xa1\x65Error\x6fInvalidArgument", "InvalidArgument"),
        (lambda _raw: b"", "something else"),
        (lambda _raw: b"\xa1\x6bAttestation\xa1\x68document\x59\x7f\xff" + bytes(64), "document"),
        (lambda raw: raw + b"\0more", "no filling"),
        (lambda _raw: b"\xa1\x6bAttestation\xa1\x68document\x43abc", ""),
    ],
)
def test_answer_that_is_no_document_is_no_evidence(case: Case, answer: Callable[[bytes], bytes], seen: str) -> None:
    """Named, and the index is gone."""
    case.hypervisor.answer = answer
    with pytest.raises(NoDevice) as caught:
        case.source(None).quote(bytes(64))
    assert caught.value.check == "document of the hypervisor"
    assert seen in str(caught.value.seen)
    assert case.device.nv_public(MESSAGE_INDEX) is None


def test_document_over_another_nonce_or_of_an_enclave_is_no_evidence(case: Case) -> None:
    """The key server would refuse it: the guest says so earlier."""
    case.hypervisor.change = lambda scenario: scenario.members.update(nonce=b"\1" * 64)
    with pytest.raises(NoDevice, match="another nonce"):
        case.source(None).quote(bytes(64))

    def enclave(scenario: NitroScenario) -> None:
        scenario.members["pcrs"] = scenario.members.pop("nitrotpm_pcrs")
        scenario.members["nonce"] = bytes(64)

    case.hypervisor.change = enclave
    with pytest.raises(NoDevice, match="of an enclave"):
        case.source(None).quote(bytes(64))


def test_tpm_without_the_vendor_command_is_named(case: Case) -> None:
    """With the remark that no such machine was at hand."""
    case.hypervisor.refuses = COMMAND_CODE
    with pytest.raises(NoDevice) as caught:
        case.source(None).quote(bytes(64))
    assert caught.value.check == "attestation of the instance"
    assert "no such machine was at hand" in str(caught.value.remedy)
    assert case.device.nv_public(MESSAGE_INDEX) is None


def test_index_of_another_process_is_waited_for_and_one_that_was_cut_off_is_taken(case: Case) -> None:
    """The index is what keeps two processes of one machine apart."""
    assert case.device.nv_define_own(MESSAGE_INDEX, 8192)
    now = [0.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    source = NitroTPMSource(case.device, None, clock_s=lambda: now[0], sleep=sleep)
    assert source.quote(bytes(64))
    assert sum(waits) >= 30
    waits.clear()
    assert case.device.nv_define_own(MESSAGE_INDEX, 8192)

    def released(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            case.device.nv_undefine(MESSAGE_INDEX)

    assert NitroTPMSource(case.device, None, clock_s=lambda: 0.0, sleep=released).quote(bytes(64))
    assert len(waits) == 2
    assert "never run on an EC2 instance" in source.notice
    assert "Amazon's hypervisor" in source.notice
    assert source.tee == "nitrotpm"


def test_tpm_without_room_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other indices fill its memory."""
    monkeypatch.setattr(TPMDevice, "nv_define_own", lambda *_: False)
    now = iter(range(0, 1000, 20))
    with pytest.raises(NoDevice, match="no room"):
        NitroTPMSource(case.device, None, clock_s=lambda: float(next(now)), sleep=lambda _s: None).quote(bytes(64))


def test_guest_of_an_image_document_is_its_boot_from_the_disk() -> None:
    """EC2 has no other. The values are the document's own, in SHA-384."""
    image = parse_image(json.dumps(image_document()).encode())
    (guest,) = guests_of(image, "nitrotpm")
    assert isinstance(guest, NitroTPMGuest)
    assert guest.pcr4.raw == image.pcr("disk-boot", 4, "sha384")
    assert guest.pcr11.raw == image.pcr("disk-boot", 11, "sha384")
