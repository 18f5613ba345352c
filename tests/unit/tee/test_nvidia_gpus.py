"""The real GPUs of a guest, over doubles of NVML: what is verified, when they are set ready, and what is shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.nvidia.collateral import GPUCollateral
from adyton.attest.roots import TrustRoots
from adyton.errors import AppraisalFailed, BadChain, Error, EvidenceError, Mismatch, NoDevice, Timeout, UsageError
from adyton.gpu_nodes import DeviceNode, gpu_nodes
from adyton.sim.gpu import SimDevice
from adyton.tee import nvml_process
from adyton.tee.gpu_source import open_gpus
from adyton.tee.nvidia_gpus import NVIDIAGPUs
from adyton.tee.nvml import NVML, GPUReport
from tests.support.gpu_world import NOW, gpu, machine, vendor
from tests.unit.tee.test_nvml import NONCE, Library

DEVICES = """Character devices:
  1 mem
195 nvidia
195 nvidiactl
511 nvidia-uvm

Block devices:
259 nvidia-uvm
"""


@dataclass
class Guest:
    """A guest with GPUs. Tests change one thing."""

    devices: Sequence[SimDevice] = field(default_factory=lambda: (gpu(), vendor().device("HOPPER")))
    collateral: GPUCollateral | None = None
    roots: TrustRoots = field(default_factory=lambda: TrustRoots().with_sim([vendor().root]))
    ready: int = 0
    nonces: list[bytes] = field(default_factory=list)

    def gpus(self) -> NVIDIAGPUs:
        """The source over this guest."""
        collateral = vendor().collateral(self.devices, NOW) if self.collateral is None else self.collateral
        return NVIDIAGPUs(collateral, self._take, self._set_ready, self.roots, lambda: NOW)

    def _take(self, nonce: bytes) -> tuple[GPUReport, ...]:
        self.nonces.append(nonce)
        return tuple(GPUReport(each.arch, each.pem, each.report(nonce), 3 + at) for at, each in enumerate(self.devices))

    def _set_ready(self) -> None:
        self.ready += 1


def test_gpus_are_verified_then_set_ready_then_shown(tmp_path: Path) -> None:
    """The first one is named. Its node has its minor number, which is not its place in the list."""
    guest = Guest()
    gpus = guest.gpus()
    (named,) = gpus.named(1)
    assert (named.ueid, named.driver, named.vbios) == (gpu().ueid, "550.144.03", "96.00.5E.00.01")
    assert guest.ready == 1
    assert len(set(guest.nonces)) == 1
    assert len(guest.nonces[0]) == 32
    (tmp_path / "devices").write_text(DEVICES)
    assert gpus.nodes(folder="/d", devices=tmp_path / "devices") == (
        DeviceNode("/d/nvidiactl", 195, 255),
        DeviceNode("/d/nvidia-uvm", 511, 0),
        DeviceNode("/d/nvidia3", 195, 3),
    )
    (part,) = gpus.parts(1, NONCE)
    assert part.certificate == gpu().pem
    assert guest.nonces[-1] == NONCE
    assert guest.ready == 1
    with pytest.raises(NoDevice, match="cannot be read"):
        gpus.nodes(devices=tmp_path / "none")


def test_each_boot_has_its_own_nonce() -> None:
    """A report of an earlier boot is not taken again."""
    guest = Guest()
    for _ in range(3):
        guest.gpus().named(1)
    assert len(set(guest.nonces)) == 3
    old = guest.gpus()._reports(1, NONCE)
    with pytest.raises(EvidenceError, match="nonce"):
        replace(guest.gpus(), take_reports=lambda _nonce: old).named(1)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"roots": TrustRoots()}, BadChain),
        ({"collateral": GPUCollateral()}, Error),
        ({"devices": (gpu(), gpu())}, Mismatch),
        ({"devices": (gpu(),)}, NoDevice),
        ({"devices": (gpu(), replace(gpu(), arch="LS10"))}, EvidenceError),
        ({"devices": (gpu(), vendor().device("HOPPER").with_(changed={3: bytes(48)}))}, AppraisalFailed),
        ({"devices": machine()[:8]}, Mismatch),
    ],
)
def test_gpus_that_do_not_verify_are_never_set_ready(changed: dict[str, Any], error: type[Error]) -> None:
    """Another root, no collateral, one twice, too few, another chip, bad firmware, a set without its switches."""
    guest = Guest(**changed)
    with pytest.raises(error):
        guest.gpus().named(2)
    assert guest.ready == 0


def test_architecture_that_nobody_knows_is_refused() -> None:
    """NVML names it by its number."""
    guest = Guest()
    gpus = guest.gpus()
    unknown = replace(gpus, take_reports=lambda nonce: (replace(guest._take(nonce)[0], arch="UNKNOWN_12"),))
    with pytest.raises(Mismatch, match="UNKNOWN_12"):
        unknown.named(1)
    assert guest.ready == 0


@pytest.mark.parametrize(
    ("minors", "devices", "match"),
    [
        ((), DEVICES, "cannot be"),
        ((0, 0), DEVICES, "cannot be"),
        ((254,), DEVICES, "cannot be"),
        ((-1,), DEVICES, "cannot be"),
        ((0,), DEVICES.replace("511 nvidia-uvm", "511 other"), "nvidia-uvm is not loaded"),
        ((0,), DEVICES.replace("195 nvidia", "195 other"), "nvidia is not loaded"),
        ((0,), "", "nvidia is not loaded"),
    ],
)
def test_nodes_need_both_drivers_and_numbers_that_can_be(minors: tuple[int, ...], devices: str, match: str) -> None:
    """A block device of the same name does not count."""
    with pytest.raises(NoDevice, match=match):
        gpu_nodes(minors, devices)


def test_real_gpus_need_collateral_in_the_guest() -> None:
    """The refusal names the option."""
    with pytest.raises(UsageError, match="has no collateral") as caught:
        open_gpus("tdx")
    assert "--gpu-collateral" in str(caught.value.remedy)
    assert isinstance(open_gpus("tpm", collateral=GPUCollateral()), NVIDIAGPUs)


# --- the process for NVML ---------------------------------------------------------------------------------------------


def test_child_answers_with_reports_and_sets_ready_only_when_told() -> None:
    """In the form that the parent takes."""
    library = Library()
    found = nvml_process.answer(["reports", NONCE.hex()], lambda: NVML(lambda _name: library))
    first, second = (nvml_process._report(row) for row in found["gpus"])
    assert (first.arch, first.chain, first.report) == ("HOPPER", b"chain", b"report" + NONCE)
    assert (first.minor, second.minor) == (0, 1)
    assert library.ready == 0
    assert library.called.count("nvmlDeviceSetPersistenceMode") == 2
    assert library.called.index("nvmlDeviceSetPersistenceMode") < library.called.index(
        "nvmlDeviceGetConfComputeGpuAttestationReport"
    )
    assert nvml_process.answer(["ready"], lambda: NVML(lambda _name: library)) == {"ready": True}
    assert library.ready == 1
    assert library.called.count("nvmlDeviceSetPersistenceMode") == 2  # they are kept already


def test_child_does_not_set_gpus_in_developer_mode_ready() -> None:
    """The refusal comes back as the same error."""
    library = Library()
    library.developer = 1
    found = nvml_process.answer(["ready"], lambda: NVML(lambda _name: library))
    assert "developer mode" in str(Error.from_dict(found["failure"], unknown=UsageError).message)
    assert library.ready == 0


def test_real_child_says_that_there_is_no_library() -> None:
    """On this machine, as a process of its own."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU of NVIDIA's")
    with pytest.raises(NoDevice, match="management library is not here"):
        nvml_process.take_reports(NONCE)
    with pytest.raises(NoDevice, match="management library is not here"):
        nvml_process.set_ready()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"gpus": 1}',
        b'{"gpus": [1]}',
        b'{"gpus": [{"arch": "HOPPER", "minor": "0", "certificate": "", "evidence": ""}]}',
        b'{"gpus": [{"arch": "HOPPER", "minor": 0, "certificate": "?", "evidence": ""}]}',
        b"{}" + b" " * nvml_process.MAX_ANSWER_BYTES,
    ],
)
def test_answers_that_are_no_reports_are_refused(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever NVML's process writes stays data."""
    _child(monkeypatch, tmp_path, f"#!/bin/sh\ncat {tmp_path}/answer\n")
    (tmp_path / "answer").write_bytes(answer)
    with pytest.raises(NoDevice):
        nvml_process.take_reports(NONCE)
    with pytest.raises(NoDevice):
        nvml_process.set_ready()


def test_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver can hang."""
    _child(monkeypatch, tmp_path, "#!/bin/sh\nexec sleep 100\n")
    monkeypatch.setattr(nvml_process, "WAIT_S", 0.2)
    with pytest.raises(Timeout, match="does not answer"):
        nvml_process.take_reports(NONCE)


def _child(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    program = folder / "child"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
