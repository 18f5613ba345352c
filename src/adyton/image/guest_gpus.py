"""GPUs in a guest: NVIDIA's modules from the verified root file system, the device nodes, then lockdown.

The modules carry no signature that the kernel knows, so they are loaded before it is locked down. What is loaded is
part of the measured image. It was never tried with a GPU.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from adyton.gpu_nodes import gpu_nodes, minor_in
from adyton.image import guest_kernel
from adyton.image.root_tree import GPU_MODULES

MODE: Final = 0o666
"""The driver's own default. The program is an ordinary user."""
_MAX_GPUS: Final = 16


def set_up(
    system: Path = Path("/"),
    *,
    load: Callable[[Path], bool] = guest_kernel.load_module,
    make: Callable[[Path, int, int], None] | None = None,
) -> int:
    """Load the modules of an image for GPUs, make the nodes, and lock the kernel down. Gives the number of GPUs.

    An image without such modules is left as it is. On a machine without a GPU nothing is made, and the kernel is locked
    down all the same. Raises OSError and NoDevice.
    """
    folder = system / GPU_MODULES
    if not folder.is_dir():
        return 0
    loaded = all(load(path) for path in sorted(folder.iterdir()))  # the first one says that there is no GPU
    minors = _minors(system) if loaded else []
    if minors:
        devices = (system / "proc/devices").read_text(encoding="ascii", errors="replace")
        for node in gpu_nodes(minors, devices, folder=str(system / "dev")):
            (make or make_node)(Path(node.path), node.major, node.minor)
    lock_down(system)
    return len(minors)


def lock_down(system: Path = Path("/")) -> None:
    """Lock the kernel down, which nothing takes back before it ends. Raises OSError."""
    (system / "sys/kernel/security/lockdown").write_text("confidentiality", encoding="ascii")


def make_node(path: Path, major: int, minor: int) -> None:
    """A character device that everybody may use. Raises OSError."""
    os.mknod(path, stat.S_IFCHR | MODE, os.makedev(major, minor))
    path.chmod(MODE)


def _minors(system: Path) -> list[int]:
    folder = system / "proc/driver/nvidia/gpus"
    found = sorted(folder.iterdir())[: _MAX_GPUS + 1] if folder.is_dir() else []
    return [minor_in((path / "information").read_text(encoding="ascii", errors="replace")) for path in found]
