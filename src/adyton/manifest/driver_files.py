"""The files of NVIDIA's driver that a program with a GPU loads, found in the system's library folder.

They have to be of the version of the guest's kernel module: libcuda refuses another one. Source: the list of
libraries in the README of NVIDIA's driver, and what NVIDIA's container toolkit shows to a container with "compute".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CUDA_LIBRARY: Final = "libcuda.so.1"
NAMES: Final = (
    CUDA_LIBRARY,
    "libnvidia-ml.so.1",
    "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-nvvm.so.4",
    "libnvidia-gpucomp.so.*",
)
"""libcuda and what it loads by name, and NVML, which NCCL and torch ask. `*` stands for the driver's version."""


def driver_files(folder: Path) -> list[str]:
    """Paths of these files, in the order of NAMES. Empty without libcuda: there is no driver on this machine."""
    if not (folder / CUDA_LIBRARY).is_file():
        return []
    return [str(path) for name in NAMES for path in sorted(folder.glob(name)) if path.is_file()]
