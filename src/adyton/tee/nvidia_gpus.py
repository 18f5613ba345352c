"""The real GPUs of this guest, as a run uses them: verified over a nonce of this boot, then set ready, then shown.

All GPUs of the machine are verified, since NVML sets all of them ready at once. The first ones are the program's. It
never ran with a GPU in confidential mode.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.attest.bundle import DevicePart
from adyton.attest.checks import Checks
from adyton.attest.devices import Device
from adyton.attest.nvidia.device import verify_device
from adyton.attest.nvidia.device_set import check_each_once, check_protected_pcie, is_protected_pcie
from adyton.attest.nvidia.evidence import DeviceEvidence
from adyton.attest.nvidia.layout import ARCHS
from adyton.attest.roots import TrustRoots
from adyton.errors import Mismatch, NoDevice
from adyton.gpu_nodes import DeviceNode, gpu_nodes
from adyton.tee import nvml_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.attest.nvidia.collateral import GPUCollateral
    from adyton.tee.nvml import GPUReport

PROC_DEVICES: Final = Path("/proc/devices")


@dataclass
class NVIDIAGPUs:
    """A `GPUSource` over NVML. Tests give doubles of what it asks."""

    collateral: GPUCollateral
    take_reports: Callable[[bytes], tuple[GPUReport, ...]] = nvml_process.take_reports
    set_ready: Callable[[], None] = nvml_process.set_ready
    roots: TrustRoots = field(default_factory=TrustRoots)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _minors: tuple[int, ...] = ()

    def named(self, count: int) -> tuple[Device, ...]:
        """Verify all GPUs over a nonce of this boot, and set them ready. Returns the first `count`.

        Nothing is excepted: firmware, certificates and their OCSP answers must all be good. Raises NoDevice where there
        are fewer, the EvidenceError of one that does not verify, and Unavailable where collateral is missing.
        """
        nonce, now = secrets.token_bytes(32), self.clock()
        reports = self._reports(count, nonce)
        found = []
        for report in reports:
            arch = next((name for name in ARCHS if name == report.arch), None)
            if arch is None:
                raise Mismatch(
                    f"a GPU of another architecture: {report.arch}",
                    check="arch of a GPU",
                    expected=", ".join(ARCHS),
                    seen=report.arch,
                    remedy="this version of Adyton does not verify such a GPU",
                )
            evidence = DeviceEvidence(arch, report.chain, report.report, nonce)
            verified = verify_device(evidence, self.collateral, self.roots, now, nonce=nonce)
            for error in verified.errors:
                raise error
            if not verified.ok:
                raise Mismatch("a GPU was not verified", check="GPU", expected="everything compared", seen="not all")
            found.append(verified)
        checks = Checks()
        check_each_once(checks, found)
        if is_protected_pcie(found):
            check_protected_pcie(checks, found)
        self.set_ready()
        self._minors = tuple(report.minor for report in reports[:count])
        return tuple(Device(ueid=each.ueid, driver=each.driver, vbios=each.vbios) for each in found[:count])

    def parts(self, count: int, nonce: bytes) -> tuple[DevicePart, ...]:
        """The evidence of the first `count` GPUs for this nonce (32 bytes), as a request for keys carries it.

        The key server compares their identities with those of the boot.
        """
        return tuple(
            DevicePart(arch=report.arch, certificate=report.chain, evidence=report.report)
            for report in self._reports(count, nonce)[:count]
        )

    def nodes(self, *, folder: str = "/dev", devices: Path = PROC_DEVICES) -> tuple[DeviceNode, ...]:
        """The device nodes of the GPUs that `named` has named. Raises NoDevice."""
        try:
            text = devices.read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise NoDevice(
                f"{devices} cannot be read: {error.strerror}", check="drivers", seen=error.strerror
            ) from None
        return gpu_nodes(self._minors, text, folder=folder)

    def _reports(self, count: int, nonce: bytes) -> tuple[GPUReport, ...]:
        found = self.take_reports(nonce)
        if len(found) < count:
            raise NoDevice(
                f"the manifest asks for {count} GPUs, and this machine has {len(found)}",
                check="number of GPUs",
                expected=f"at least {count}",
                seen=len(found),
                remedy="run on a machine with more GPUs, or change adyton.gpus",
            )
        return found
