"""Real reports, chains and RIMs, judged as NVIDIA's own tools judge them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adyton.attest.nvidia.assess import assess_gpus
from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
from adyton.attest.nvidia.device import Device, verify_device
from adyton.attest.nvidia.evidence import DeviceEvidence, parse_devices
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.nvidia.rim import parse_rim
from adyton.attest.nvidia.spdm import parse_report
from adyton.attest.roots import TrustRoots
from adyton.errors import AppraisalFailed, BadChain, FetchFailed, Mismatch, Stale

pytestmark = pytest.mark.shared_vectors

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NO_OCSP = GPUPolicy(allow_missing_ocsp=True)


@pytest.fixture(scope="module")
def folder(shared_vectors: Path) -> Path:
    """The folder of NVIDIA's vectors."""
    return shared_vectors / "evidence" / "nvidia"


def _evidence(folder: Path, name: str) -> DeviceEvidence:
    return DeviceEvidence(
        None, (folder / f"{name}.chain.pem").read_bytes(), (folder / f"{name}.report.bin").read_bytes()
    )


def _judged(folder: Path, name: str, *rims: str, policy: GPUPolicy = NO_OCSP, now: datetime = NOW) -> Device:
    known = tuple(KnownRIM(parse_rim((folder / rim).read_bytes())) for rim in rims)
    return verify_device(_evidence(folder, name), GPUCollateral(rims=known), TrustRoots(), now, policy=policy)


@pytest.mark.parametrize(
    ("name", "arch", "driver", "vbios", "ueid_digits"),
    [
        ("hopper-535-86-09", "HOPPER", "535.86.09", "96.00.5E.00.01", 48),
        ("hopper-580", "HOPPER", "580.159.03", "96.00.74.00.20", 48),
        ("blackwell-575", "BLACKWELL", "575.32", "97.00.88.00.0F", 48),
        ("ls10-switch", "LS10", "", "96.10.55.00.01", 48),
    ],
)
def test_report_is_genuine(folder: Path, name: str, arch: str, driver: str, vbios: str, ueid_digits: int) -> None:
    """Signature, chain to the pinned root, firmware id. What is missing is only the collateral."""
    device = _judged(folder, name)
    assert device.genuine
    assert device.tee == "nvidia-gpu"
    assert (device.arch, device.driver, device.vbios) == (arch, driver, vbios)
    assert len(device.ueid) >= ueid_digits
    assert all(isinstance(error, FetchFailed) for error in device.errors)
    assert not device.ok


def test_report_with_a_bad_signature_is_refused(folder: Path) -> None:
    """The vector that was made to fail does, at its signature."""
    device = _judged(folder, "hopper-bad-signature")
    assert not device.genuine
    assert [error.check for error in device.errors] == ["report: signature"]
    own = _evidence(folder, "hopper-580")
    altered = bytearray(own.report)
    altered[-1] ^= 1
    device = verify_device(DeviceEvidence(None, own.chain, bytes(altered)), GPUCollateral(), TrustRoots(), NOW)
    assert isinstance(device.errors[0], BadChain)
    assert device.errors[0].check == "report: signature"


def test_vbios_rim_matches_in_all_twelve(folder: Path) -> None:
    """The RIM's signer has expired, so it takes the dated exemption; then 12 of 12 active measurements match."""
    rim = "rim-vbios-96005E0001.xml"
    device = _judged(folder, "hopper-535-86-09", rim)
    assert any(isinstance(error, Stale) for error in device.errors)
    digest = parse_rim((folder / rim).read_bytes()).fingerprint.hex()
    exemption = {"sha256": digest, "owner": "test", "until": "2026-12-31"}
    policy = GPUPolicy.from_dict({"allow_missing_ocsp": True, "rim_exemptions": [exemption]})
    device = _judged(folder, "hopper-535-86-09", rim, policy=policy)
    assert len(device.matched) == 12
    assert device.mismatched == ()
    assert not device.compared  # the driver's RIM is missing
    assert [type(error) for error in device.errors] == [FetchFailed]
    early = _judged(folder, "hopper-535-86-09", rim, now=datetime(2025, 3, 1, tzinfo=UTC))
    assert len(early.matched) == 12


def test_rim_of_a_switch_matches_in_every_index(folder: Path) -> None:
    """Report and RIM are of the same version: a whole success of real evidence, but for OCSP answers."""
    now = datetime(2026, 7, 1, tzinfo=UTC)
    device = _judged(folder, "ls10-switch", "rim-switch-9610550001.xml", now=now)
    assert device.compared
    assert device.ok, device.errors
    assert len(device.matched) == 31
    device = _judged(folder, "ls10-switch", "rim-switch-9610550001.xml", now=now, policy=GPUPolicy())
    assert {type(error) for error in device.errors} == {FetchFailed}  # for want of OCSP answers


def test_rim_with_a_bad_signature_is_refused(folder: Path) -> None:
    """The good one parses, and leads to NVIDIA's root. The altered one is refused."""
    parse_rim((folder / "rim-driver-550.144.03.xml").read_bytes())
    with pytest.raises(BadChain, match="the RIM was altered"):
        parse_rim((folder / "rim-driver-550-bad-signature.xml").read_bytes())


def test_evidence_lists_are_judged_each_device_by_itself(folder: Path) -> None:
    """GPUs of a protected PCIe machine are genuine, and refused as a set that is not whole."""
    for name, count in (("hopper_evidence.json", 1), ("multi_gpu_hopper.json", 4)):
        evidence = parse_devices((folder / name).read_bytes())
        assert len(evidence) == count
        nonce = bytes.fromhex(json.loads((folder / name).read_text())[0]["nonce"])
        found = assess_gpus(
            evidence, GPUCollateral(), TrustRoots(), NOW, policy=GPUPolicy(), tees={"nvidia-gpu"}, nonce=nonce
        )
        assert all(device.genuine for device in found.devices), name
        assert found.verdict == "refused"
        assert isinstance(found.error, Mismatch)
        assert found.error.check == "protected PCIe: devices"


def test_mismatches_of_another_driver_are_listed_by_index(folder: Path) -> None:
    """A RIM that claims the version but not the firmware: every index that differs is named."""
    raw = (folder / "rim-vbios-96005E0001.xml").read_bytes()
    rim = parse_rim(raw)
    wrong = KnownRIM(rim.__class__(**{**vars(rim), "golden": {0: (b"\1" * 48,), 3: (b"\2" * 48,)}}))
    device = verify_device(
        _evidence(folder, "hopper-535-86-09"),
        GPUCollateral(rims=(wrong,)),
        TrustRoots(),
        datetime(2025, 3, 1, tzinfo=UTC),
        policy=NO_OCSP,
    )
    assert [item.index for item in device.mismatched] == [0, 3]
    assert any(isinstance(error, AppraisalFailed) for error in device.errors)


def test_recorded_gpu_names_the_recorded_switch(folder: Path) -> None:
    """Two devices of one machine. The switch's number is its certificate's, and the GPU writes it in reverse."""
    switch = _judged(folder, "ls10-switch")
    gpu = parse_report((folder / "hopper-bad-signature.report.bin").read_bytes())
    assert switch.report is not None
    assert switch.chain is not None
    assert switch.report.opaque.switch_pdis == (switch.chain.pdi,)
    assert switch.chain.pdi in gpu.opaque.linked_switches
    assert len(gpu.opaque.linked_switches) == 4
    several = {
        parse_report(item.report).opaque.linked_switches
        for item in parse_devices((folder / "multi_gpu_hopper.json").read_bytes())
    }
    assert [len(switches) for switches in several] == [4]
