"""The device nodes that a program needs for its GPUs. Pure: the kernel's table of drivers goes in, nodes come out.

CUDA opens the control node, the node of unified memory, and one node for each GPU. Other nodes of NVIDIA's are not
for programs: nvidia-modeset is for displays, nvidia-uvm-tools for debuggers, nvidia-caps for the administrator.
Sources: nvidia-open (nv-chardev-numbers.h: major 195, minor 255 is the control node), NVIDIA's container toolkit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.errors import NoDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

MAJOR: Final = 195
CONTROL_MINOR: Final = 255
MODESET_MINOR: Final = 254
"""Minors from here on are not GPUs."""
UVM_DRIVER: Final = "nvidia-uvm"
_MINOR: Final = re.compile(r"^Device Minor: *\t* *(\d{1,3})$", re.ASCII | re.MULTILINE)
_ROW: Final = re.compile(r"^ *(\d{1,4}) (\S{1,64})$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A character device: where it lies, and which driver and device it has to be."""

    path: str
    major: int
    minor: int

    @property
    def name(self) -> str:
        """Its name in /dev, here and in the sandbox."""
        return self.path.rpartition("/")[2]


def gpu_nodes(minors: Sequence[int], devices: str, *, folder: str = "/dev") -> tuple[DeviceNode, ...]:
    """The nodes for the GPUs with these minor numbers. `devices` is the text of /proc/devices.

    Raises NoDevice where a driver is not loaded, and for a number that no GPU has.
    """
    wrong = [minor for minor in minors if not 0 <= minor < MODESET_MINOR]
    if wrong or not minors or len(set(minors)) != len(minors):
        raise NoDevice(
            "NVML names GPUs that cannot be",
            check="minor numbers of the GPUs",
            expected=f"different numbers from 0 to {MODESET_MINOR - 1}",
            seen=list(minors),
            remedy="check the driver of this guest",
        )
    characters = devices.partition("Block devices:")[0]
    drivers = [(int(row[1]), row[2]) for row in _ROW.finditer(characters)]
    if not any(major == MAJOR and name.startswith("nvidia") for major, name in drivers):
        raise _not_loaded("nvidia", f"major {MAJOR}")
    uvm = next((major for major, name in drivers if name == UVM_DRIVER), None)
    if uvm is None:
        raise _not_loaded(UVM_DRIVER, UVM_DRIVER)
    return (
        DeviceNode(f"{folder}/nvidiactl", MAJOR, CONTROL_MINOR),
        DeviceNode(f"{folder}/nvidia-uvm", uvm, 0),
        *(DeviceNode(f"{folder}/nvidia{minor}", MAJOR, minor) for minor in minors),
    )


def _not_loaded(module: str, expected: str) -> NoDevice:
    return NoDevice(
        f"the kernel module {module} is not loaded in this guest",
        check="drivers of the GPUs",
        expected=f"{expected} in /proc/devices",
        seen="none",
        remedy=f"load it (modprobe {module}); a guest image needs `adyton image build --gpu`",
    )


def minor_in(information: str) -> int:
    """The minor number in a GPU's file /proc/driver/nvidia/gpus/ADDRESS/information. Raises NoDevice."""
    found = _MINOR.search(information)
    if found is None:
        raise NoDevice(
            "the driver does not say which node belongs to a GPU",
            check="information about a GPU",
            expected="a line Device Minor: NUMBER",
            seen=information[:80],
            remedy="this version of Adyton does not know this driver",
        )
    return int(found[1])
