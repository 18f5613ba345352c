"""Checks of `adyton doctor`: the GPUs of this machine, and what a program in a confidential guest needs of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.errors import NoDevice
from adyton.gpu.libcuda import Device
from adyton.gpu.write_after_map import ROUNDS, stale_rounds
from adyton.gpu_nodes import gpu_nodes, minor_in
from adyton.manifest.driver_files import CUDA_LIBRARY
from adyton.tee.nvml import NVML
from adyton.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adyton.tee.machine import Machine

_VENDOR: Final = "0x10de"
_DISPLAYS: Final = ("0x0300", "0x0302")
"""Classes of PCI devices that are GPUs: with and without a display."""
_LIBRARIES: Final = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
_MAP: Final = "write after map"


def gpus(machine: Machine) -> Iterator[Finding]:
    """GPU, driver, confidential mode, ready state, device nodes, libcuda, and whether mapped memory goes stale."""
    if not machine.has("/dev/nvidiactl"):
        yield _without_driver(machine)
        yield Finding("gpu", _MAP, "note", "skipped: there is no GPU with a driver")
        return
    try:
        with NVML() as library:
            yield Finding("gpu", "NVIDIA GPU", "ok", f"{library.count()}, driver {library.driver()}")
            library.check_confidential()
            yield Finding("gpu", "confidential mode", "ok", "on, and developer mode off")
            ready = library.is_ready()
            remedy = None if ready else "they take work after they were verified"
            yield Finding("gpu", "ready state", "ok" if ready else "note", "ready" if ready else "not ready", remedy)
    except NoDevice as error:
        yield Finding("gpu", error.check or "NVML", "note", error.message, error.remedy)
    yield from _nodes(machine)
    yield _libcuda(machine)
    yield _write_after_map()


def _without_driver(machine: Machine) -> Finding:
    """Whether a GPU is there and its driver is not."""
    folder = "/sys/bus/pci/devices"
    found = [
        name
        for name in machine.names(folder)
        if machine.text(f"{folder}/{name}/vendor").strip() == _VENDOR
        and machine.text(f"{folder}/{name}/class").strip().startswith(_DISPLAYS)
    ]
    if not found:
        return Finding("gpu", "NVIDIA GPU", "note", "none (/dev/nvidiactl is absent)")
    return Finding(
        "gpu",
        "NVIDIA GPU",
        "missing",
        f"{len(found)} without a driver ({found[0]})",
        "load NVIDIA's open kernel modules; in a guest image: adyton image build --gpu",
    )


def _nodes(machine: Machine) -> Iterator[Finding]:
    """Each node that a program is shown."""
    folder = "/proc/driver/nvidia/gpus"
    try:
        minors = [minor_in(machine.text(f"{folder}/{name}/information")) for name in machine.names(folder)]
        nodes = gpu_nodes(minors, machine.text("/proc/devices"))
    except NoDevice as error:
        yield Finding("gpu", error.check or "device nodes", "missing", error.message, error.remedy)
        return
    bad = [node for node in nodes if not machine.usable(node.path)]
    if not bad:
        yield Finding("gpu", "device nodes", "ok", ", ".join(node.name for node in nodes))
    for node in bad:
        state = "cannot be read and written" if machine.has(node.path) else "absent"
        remedy = f"mknod -m 666 {node.path} c {node.major} {node.minor} (nvidia-modprobe does it)"
        yield Finding("gpu", f"device node {node.name}", "missing", state, remedy)


def _libcuda(machine: Machine) -> Finding:
    """What a program loads, and `adyton build` measures."""
    found = [folder for folder in _LIBRARIES if machine.has(f"{folder}/{CUDA_LIBRARY}")]
    if found:
        return Finding("gpu", CUDA_LIBRARY, "ok", found[0])
    remedy = "install it where you build (Debian: libcuda1), in the version of the guest's driver"
    return Finding("gpu", CUDA_LIBRARY, "missing", "absent", remedy)


def _write_after_map() -> Finding:
    """The silent corruption of inference in confidential mode, tried on the first GPU."""
    try:
        device = Device()
        try:
            stale = stale_rounds(device)
        finally:
            device.close()
    except NoDevice as error:
        return Finding("gpu", _MAP, "note", f"skipped: {error.message}", error.remedy)
    if not stale:
        return Finding("gpu", _MAP, "ok", "the GPU sees what is written to mapped memory")
    return Finding(
        "gpu",
        _MAP,
        "warning",
        f"the GPU saw old bytes in {stale} of {ROUNDS} rounds: programs compute with stale data, without an error",
        "use no mapped memory (vLLM: VLLM_USE_V2_MODEL_RUNNER=0), or another driver",
    )
