"""Where a run's GPU evidence comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from adyton.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.attest.bundle import DevicePart
    from adyton.attest.devices import Device
    from adyton.attest.nvidia.collateral import GPUCollateral
    from adyton.gpu_nodes import DeviceNode

WITH_REGISTER: Final = ("tdx", "tpm", "az-snp", "az-tdx", "sim-tdx", "sim-tpm")
"""TEEs whose evidence names the GPUs of the machine."""


class GPUSource(Protocol):
    """The GPUs of this machine."""

    def named(self, count: int) -> tuple[Device, ...]:
        """The GPUs, verified over a nonce of this boot. Raises NoDevice, or an EvidenceError."""
        ...

    def parts(self, count: int, nonce: bytes) -> tuple[DevicePart, ...]:
        """Their evidence for this nonce (32 bytes). Raises NoDevice."""
        ...

    def nodes(self) -> tuple[DeviceNode, ...]:
        """The device nodes that the program needs for the GPUs that were named. Raises NoDevice."""
        ...


def open_gpus(tee: str, platform_dir: Path | None = None, collateral: GPUCollateral | None = None) -> GPUSource:
    """Open the GPUs for a run in this TEE. `collateral` is what real GPUs are verified with.

    Raises UsageError where the TEE cannot have any, or without collateral, and NoDevice.
    """
    if tee not in WITH_REGISTER:
        raise UsageError(
            f"a program with GPUs does not run under {tee}: nothing in its evidence names the GPUs of the machine",
            check="adyton.gpus",
            expected=f"0, or one of {', '.join(WITH_REGISTER)}",
            seen=tee,
            remedy="run it in a trust domain or a guest that a TPM measures, or take adyton.gpus out and build again",
        )
    if tee.startswith("sim-"):
        from adyton.sim.files import platform_directory
        from adyton.sim.gpu_folder import SimGPUs

        return SimGPUs.load(platform_directory(platform_dir))
    if collateral is None:
        raise UsageError(
            "the guest verifies its GPUs before the program starts, and has no collateral for that",
            check="--gpu-collateral",
            expected="a file or folder with RIMs and OCSP answers",
            seen="nothing",
            remedy="export it on a trusted machine (adyton collateral export -o FILE), and give --gpu-collateral FILE",
        )
    from adyton.tee.nvidia_gpus import NVIDIAGPUs

    return NVIDIAGPUs(collateral)
