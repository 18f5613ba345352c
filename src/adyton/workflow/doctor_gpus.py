"""Checks of `adyton doctor`: the GPUs of this machine and their confidential mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import NoDevice
from adyton.tee.nvml import NVML
from adyton.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adyton.tee.machine import Machine


def gpus(machine: Machine) -> Iterator[Finding]:
    """NVML, the driver, the number of GPUs, their mode, and whether they take work."""
    if not machine.has("/dev/nvidiactl"):
        yield Finding("gpu", "NVIDIA GPU", "note", "none (/dev/nvidiactl is absent)")
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
