"""The first program of a guest sets GPUs up: modules, nodes, lockdown, in this order, over folders of the test."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from adyton.errors import NoDevice
from adyton.gpu_nodes import minor_in
from adyton.image import guest_gpus

DEVICES = "Character devices:\n195 nvidia\n510 nvidia-uvm\n\nBlock devices:\n"


class System:
    """A machine's files, and what was done to it."""

    def __init__(self, root: Path, *, gpus: int = 2) -> None:
        self.root, self.gpus = root, gpus
        self.done: list[str] = []
        for name in ("00-nvidia.ko", "01-nvidia-uvm.ko"):
            self.write(f"usr/lib/adyton/gpu-modules/{name}", "")
        self.write("sys/kernel/security/lockdown", "[none] integrity confidentiality")
        self.write("proc/devices", DEVICES)
        for number in range(gpus):
            text = f"Model: \t\t NVIDIA H100\nDevice Minor: \t {number}\nGPU Excluded:\t No\n"
            self.write(f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information", text)

    def write(self, name: str, text: str) -> None:
        """Write a file of the machine."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def load(self, path: Path) -> bool:
        """Note a module. It finds no device where there is none."""
        assert self.lockdown().startswith("[none]")
        self.done.append(path.name)
        return self.gpus > 0

    def make(self, path: Path, major: int, minor: int) -> None:
        """Note a node."""
        self.done.append(f"{path.relative_to(self.root)} {major}:{minor}")

    def lockdown(self) -> str:
        """What the kernel says of itself."""
        return (self.root / "sys/kernel/security/lockdown").read_text()

    def set_up(self) -> int:
        """What process 1 does."""
        return guest_gpus.set_up(self.root, load=self.load, make=self.make)


def test_modules_are_loaded_then_nodes_are_made_then_the_kernel_is_locked_down(tmp_path: Path) -> None:
    """One node for each GPU, by what the driver says."""
    machine = System(tmp_path)
    assert machine.set_up() == 2
    assert machine.done == [
        "00-nvidia.ko",
        "01-nvidia-uvm.ko",
        "dev/nvidiactl 195:255",
        "dev/nvidia-uvm 510:0",
        "dev/nvidia0 195:0",
        "dev/nvidia1 195:1",
    ]
    assert machine.lockdown() == "confidentiality"


def test_machine_without_a_gpu_is_locked_down_all_the_same(tmp_path: Path) -> None:
    """The first module finds no device, and the second is not tried."""
    machine = System(tmp_path, gpus=0)
    assert machine.set_up() == 0
    assert machine.done == ["00-nvidia.ko"]
    assert machine.lockdown() == "confidentiality"


def test_image_without_these_modules_is_left_as_it_is(tmp_path: Path) -> None:
    """Its command line locks the kernel down, and nothing here repairs a kernel that did not obey."""
    machine = System(tmp_path)
    for path in (tmp_path / "usr/lib/adyton/gpu-modules").iterdir():
        path.unlink()
    (tmp_path / "usr/lib/adyton/gpu-modules").rmdir()
    assert machine.set_up() == 0
    assert machine.done == []
    assert machine.lockdown().startswith("[none]")


def test_module_that_the_kernel_refuses_ends_the_start(tmp_path: Path) -> None:
    """Under Secure Boot it has no signature that counts. So does a driver without its second half."""
    machine = System(tmp_path)

    def refuse(_path: Path) -> bool:
        raise OSError(129, "Key was rejected by service")

    with pytest.raises(OSError, match="rejected"):
        guest_gpus.set_up(tmp_path, load=refuse, make=machine.make)
    machine.write("proc/devices", DEVICES.replace("nvidia-uvm", "other"))
    with pytest.raises(NoDevice, match="nvidia-uvm is not loaded"):
        machine.set_up()
    assert machine.lockdown().startswith("[none]")  # the machine powers off


def test_driver_without_a_minor_number_is_refused() -> None:
    """Nothing is guessed."""
    assert minor_in("Device Minor: 7\n") == 7
    for text in ("", "Device Minor: x\n", "Device Minor: 1000\n", "Other Device Minor: 1\n"):
        with pytest.raises(NoDevice, match="does not say which node"):
            minor_in(text)


def test_node_is_a_device_that_everybody_may_use(tmp_path: Path) -> None:
    """Whatever mask the process has."""
    old = os.umask(0o077)
    try:
        guest_gpus.make_node(tmp_path / "nvidia0", 195, 0)
    except PermissionError:
        pytest.skip("this user may not make device nodes (mknod)")
    finally:
        os.umask(old)
    info = (tmp_path / "nvidia0").stat()
    assert stat.S_ISCHR(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o666
    assert info.st_rdev == os.makedev(195, 0)
