"""`adyton doctor` about GPUs: a machine made of files, a double of NVML, and a double of CUDA's driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import NoDevice
from adyton.gpu.libcuda import Device
from adyton.tee.machine import Machine
from adyton.tee.nvml import NVML
from adyton.workflow import doctor_gpus
from tests.support.fake_cuda import fake_cuda
from tests.unit.tee.test_nvml import Library

DEVICES = "Character devices:\n195 nvidia\n510 nvidia-uvm\n\nBlock devices:\n"


class Guest:
    """A guest with one GPU where everything is in order. Tests change one thing."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
        self.root, self.nvml, self.cuda = root, Library(), cuda
        for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
            self.write(f"dev/{name}", "")
        self.write("proc/devices", DEVICES)
        self.write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Device Minor: \t 0\n")
        self.write("usr/lib/x86_64-linux-gnu/libcuda.so.1", "")
        self.nvml.ready = 1
        monkeypatch.setattr(doctor_gpus, "NVML", lambda: NVML(lambda _name: self.nvml))
        monkeypatch.setattr(doctor_gpus, "Device", lambda: Device(0, self._load))

    def write(self, name: str, text: str) -> None:
        """Write a file of the machine."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def _load(self, name: str) -> Any:
        if self.cuda is None:
            raise OSError(f"{name}: cannot open shared object file")
        return self.cuda

    def said(self) -> dict[str, tuple[str, str]]:
        """What the doctor says: state and words by name."""
        return {row.name: (row.state, row.seen) for row in doctor_gpus.gpus(Machine(self.root))}

    def remedies(self) -> str:
        """All remedies."""
        return " ".join(row.remedy or "" for row in doctor_gpus.gpus(Machine(self.root)))


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A guest in order."""
    with fake_cuda(tmp_path) as found:
        yield Guest(tmp_path / "machine", monkeypatch, found)


def test_guest_in_order_is_ok_in_every_line(guest: Guest) -> None:
    """GPU, mode, ready state, nodes, libcuda, mapped memory."""
    found = guest.said()
    assert [state for state, _ in found.values()] == ["ok"] * 6
    assert found["device nodes"][1] == "nvidiactl, nvidia-uvm, nvidia0"
    assert found["write after map"] == ("ok", "the GPU sees what is written to mapped memory")


def test_mapped_memory_that_goes_stale_is_a_warning(guest: Guest) -> None:
    """The GPU sees what was there at its first look, as some drivers in confidential mode show it."""
    guest.cuda.fake_stale(1)
    state, seen = guest.said()["write after map"]
    assert state == "warning"
    assert "3 of 4 rounds" in seen
    assert "VLLM_USE_V2_MODEL_RUNNER" in guest.remedies()


def test_check_that_cannot_be_made_is_skipped_by_name(guest: Guest) -> None:
    """No libcuda; a call that the driver refuses. It never passes for good."""
    guest.cuda.fake_fail(b"cuMemcpyDtoD_v2", 0)
    state, seen = guest.said()["write after map"]
    assert (state, seen.startswith("skipped: CUDA refuses cuMemcpyDtoD_v2")) == ("note", True)
    guest.cuda = None
    state, seen = guest.said()["write after map"]
    assert (state, seen.startswith("skipped: CUDA's driver is not here")) == ("note", True)


def test_what_is_missing_is_named_with_its_remedy(guest: Guest) -> None:
    """A node, a module, libcuda, confidential mode, readiness."""
    (guest.root / "dev/nvidia0").unlink()
    assert guest.said()["device node nvidia0"] == ("missing", "absent")
    assert "c 195 0" in guest.remedies()
    guest.write("proc/devices", DEVICES.replace("nvidia-uvm", "other"))
    assert guest.said()["drivers of the GPUs"][0] == "missing"
    (guest.root / "usr/lib/x86_64-linux-gnu/libcuda.so.1").unlink()
    assert guest.said()["libcuda.so.1"] == ("missing", "absent")
    guest.nvml.ready = 0
    assert guest.said()["ready state"] == ("note", "not ready")
    guest.nvml.feature = 0
    found = guest.said()
    assert found["confidential mode of the GPUs"][0] == "note"
    assert "confidential mode" not in found


def test_gpu_without_a_driver_is_not_passed_over(guest: Guest) -> None:
    """It is on the bus. A machine without one has nothing to mend. The other checks are skipped by name."""
    (guest.root / "dev/nvidiactl").unlink()
    found = guest.said()
    assert found["NVIDIA GPU"] == ("note", "none (/dev/nvidiactl is absent)")
    assert found["write after map"] == ("note", "skipped: there is no GPU with a driver")
    guest.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    guest.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    guest.write("sys/bus/pci/devices/0000:02:00.0/vendor", "0x10de\n")
    guest.write("sys/bus/pci/devices/0000:02:00.0/class", "0x040300\n")
    assert guest.said()["NVIDIA GPU"] == ("missing", "1 without a driver (0000:01:00.0)")
    assert "image build --gpu" in guest.remedies()


def test_gpu_without_nvml_still_has_its_nodes_looked_at(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thing that is missing hides no other."""

    def absent() -> Any:
        raise NoDevice("NVIDIA's management library is not here", check="NVML")

    monkeypatch.setattr(doctor_gpus, "NVML", absent)
    found = guest.said()
    assert found["NVML"] == ("note", "NVIDIA's management library is not here")
    assert found["device nodes"][0] == "ok"
