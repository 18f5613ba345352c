"""The host of a measured guest, against the owner's key server: an Azure machine with a software TPM, a test AMD below.

The machine is real as far as software goes: the quote is a TPM's, the paravisor's report stands in its NV memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.assess import verify_evidence
from adyton.attest.bundle import EvidenceBundle
from adyton.attest.certificates import parse_certificate
from adyton.attest.evidence import parse_evidence
from adyton.attest.guest import TPMGuest
from adyton.attest.workload_register import workload_register
from adyton.collateral.verifier import VerifiedEvidence
from adyton.errors import StorageFailed
from adyton.keyserver.service import KeyService
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import EnclaveKey, ReleaseRequest
from adyton.server.process import server_identity
from adyton.tee.azure_guest import AzureSource
from adyton.tee.tpm_device import TPMDevice
from adyton.tee.tpm_guest import extend_workload
from adyton.values import Measurement
from tests.support.amd_factory import NOW
from tests.support.owner_world import World, make_world
from tests.support.run_keys import RUN_KEY
from tests.support.software_tpm import needs_swtpm, software_tpm
from tests.support.tpm_factory import LINUX, UKI, AzureScenario, TPMScenario
from tests.unit.tee.test_tpm import azure, boot

pytestmark = needs_swtpm

EVIL = hashlib.sha256(b"the host's own").digest()


class TestAMD:
    """The key server's verifier, with the test AMD's root in place of AMD's."""

    __test__ = False

    def __init__(self, machine: AzureScenario) -> None:
        self._built = machine.snp.built()

    def verify(self, raw: bytes, _sim_roots: Any, at: Any) -> VerifiedEvidence:
        """As `Verifier.verify`."""
        built = self._built
        return VerifiedEvidence(
            verify_evidence(parse_evidence(raw), built.collateral, built.roots, at), built.collateral
        )


@dataclass
class Case:
    """An owner with an approved program, and an Azure machine that booted."""

    world: World
    signed: SignedManifest
    machine: AzureScenario
    device: TPMDevice
    service: KeyService

    def source(self, workload: Measurement | None) -> AzureSource:
        """The source in the guest."""
        pem = parse_certificate(self.machine.snp.leaf(), "VCEK").pem
        answer = json.dumps({"vcekCert": pem}).encode()
        return AzureSource(self.device, workload, tee="az-snp", ask=lambda *_: answer)

    def quote(self, report_data: bytes) -> bytes:
        """Evidence of the approved workload."""
        return self.source(self.signed.measurement).quote(report_data)

    def asked(self) -> tuple[ReleaseRequest, bytes]:
        """A request without evidence, and its report data."""
        nonce, _ = self.service.challenge()
        request = ReleaseRequest(
            nonce,
            EnclaveKey().public_bytes,
            self.signed.manifest_sha256,
            ("weights",),
            EvidenceBundle(),
            run_key=RUN_KEY,
        )
        return request, request.report_data(server_identity(self.world.home))

    def answered(self, request: ReleaseRequest, cpu: bytes, log: bytes | None) -> Any:
        """What the key server says."""
        bundle = EvidenceBundle(cpu=cpu, event_log=log)
        return self.service.release(replace(request, evidence=bundle), "peer").result(60)

    def refuse(self, request: ReleaseRequest, cpu: bytes, log: bytes | None) -> None:
        """The key server must refuse."""
        answer = self.answered(request, cpu, log)
        assert answer.granted is None
        assert answer.refusal is not None
        assert "release" not in self.world.kinds()


@pytest.fixture
def booted(tmp_path: Path) -> Iterator[Callable[[TPMScenario], Case]]:
    """Makes a case whose firmware measured what a scenario says."""
    with make_world(tmp_path) as world, software_tpm() as device:
        services: list[KeyService] = []

        def make(scenario: TPMScenario) -> Case:
            signed = world.program()
            world.approve(
                signed,
                tees=("az-snp",),
                guests=(AzureScenario().paravisor,),
                guest_images=(TPMGuest(boot_applications=(UKI, LINUX), pcr11=TPMScenario().pcrs()[11]),),
                manifest_sha256=signed.manifest_sha256,
                evidence={
                    "min_tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}},
                    "snp": {"products": {"Milan": {"accept_until": "2040-01-01T00:00:00+00:00", "reason": "a test"}}},
                },
            )
            machine = azure(device)
            boot(device, scenario)
            device.extend(11, hashlib.sha256(b".linux\0").digest())
            for pcr, digest in scenario.more.items():
                device.extend(pcr, digest)
            service = world.service(verifier=TestAMD(machine), clock=lambda: NOW)  # type: ignore[arg-type]
            services.append(service)
            return Case(world, signed, machine, device, service)

        yield make
        for service in services:
            service.close()


def test_key_goes_to_the_approved_guest(booted: Callable[[TPMScenario], Case]) -> None:
    """The whole way: paravisor's report, TPM quote over the release's report data, event log, workload in PCR 15."""
    scenario = TPMScenario()
    case = booted(scenario)
    request, report_data = case.asked()
    assert case.answered(request, case.quote(report_data), scenario.event_log()).granted is not None
    assert "release" in case.world.kinds()


FAULTS = {
    "another-kernel": TPMScenario(started=[*TPMScenario().started[:-1], EVIL]),
    "second-program": TPMScenario(started=[*TPMScenario().started, EVIL]),
    "load-options": TPMScenario(more={12: EVIL}),
    "system-extension": TPMScenario(more={13: EVIL}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_other_boot_gets_no_key(booted: Callable[[TPMScenario], Case], name: str) -> None:
    """The quote is genuine, and the workload is in PCR 15. In two of them PCR 4 and 11 are as approved."""
    case = booted(FAULTS[name])
    request, report_data = case.asked()
    as_approved = (case.device.read_pcrs()[4], case.device.read_pcrs()[11]) == (
        TPMScenario().pcrs()[4],
        TPMScenario().pcrs()[11],
    )
    assert as_approved == (name in ("load-options", "system-extension"))
    case.refuse(request, case.quote(report_data), FAULTS[name].event_log())


@pytest.mark.parametrize("paravisor", [True, False])
def test_software_in_place_of_the_paravisor_gets_no_key(
    booted: Callable[[TPMScenario], Case], *, paravisor: bool
) -> None:
    """The host starts its own guest on genuine hardware, which vouches for a key of its own.

    With this key it signs the PCRs of the approved guest, for this very request. Only its launch digest gives it away.
    """
    case = booted(TPMScenario())
    request, report_data = case.asked()
    own = AzureScenario()
    own.tpm.nonce = report_data
    own.tpm.more[15] = workload_register(case.signed.measurement, bank="sha256")
    if not paravisor:
        own.snp.fields["measurement"] = hashlib.sha384(b"the host's own guest").digest()
    if paravisor:  # nothing else refuses it
        assert case.answered(request, own.body(), own.tpm.event_log()).granted is not None
    else:
        case.refuse(request, own.body(), own.tpm.event_log())


def test_quote_of_another_request_gets_no_key(booted: Callable[[TPMScenario], Case]) -> None:
    """The host answers with a quote that the guest made for an earlier request."""
    scenario = TPMScenario()
    case = booted(scenario)
    old = case.quote(case.asked()[1])
    request, _ = case.asked()
    case.refuse(request, old, scenario.event_log())


def test_log_that_is_missing_or_of_another_boot_gets_no_key(booted: Callable[[TPMScenario], Case]) -> None:
    """PCR 4 is explained by its own log, or by nothing."""
    case = booted(TPMScenario())
    for log in (None, TPMScenario(started=[UKI, LINUX]).event_log(), b"\1" * 100):
        request, report_data = case.asked()
        case.refuse(request, case.quote(report_data), log)


def test_workload_that_another_manifest_extended_gets_no_key(booted: Callable[[TPMScenario], Case]) -> None:
    """The host's manifest ran first in this boot: the approved program cannot even start its source."""
    case = booted(TPMScenario())
    extend_workload(Measurement(EVIL), case.device)
    with pytest.raises(StorageFailed):
        case.quote(bytes(64))
    request, report_data = case.asked()
    case.refuse(request, case.source(None).quote(report_data), TPMScenario().event_log())
