"""Verify the GPUs of a request for keys with the key server's own collateral."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.checks import Checks
from adyton.attest.devices import Device as NamedDevice
from adyton.attest.nvidia.collateral import GPUCollateral
from adyton.attest.nvidia.device import Device, verify_device
from adyton.attest.nvidia.device_set import check_each_once, check_protected_pcie, is_protected_pcie
from adyton.attest.nvidia.evidence import DeviceEvidence
from adyton.attest.nvidia.layout import ARCHS
from adyton.attest.roots import NVIDIA_DEVICE_ROOT, TrustRoots
from adyton.collateral.gpu_files import gpu_collateral
from adyton.errors import MalformedQuote, Mismatch

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.attest.bundle import DevicePart
    from adyton.collateral.store import CollateralStore

_HEX_DIGITS_OF_A_ROOT: Final = 64


@dataclass
class GPUVerifier:
    """A `DeviceVerifier` (`attest.complete`) over a store. Thread-safe. It fetches nothing.

    A GPU under another root than NVIDIA's is taken as simulated under that root, and named so in the result. The policy
    of each approval then says whether this root counts (`attest.nvidia.gpu_policy.judge_gpus`). No exceptions are made
    here: every certificate needs an OCSP answer, and every measurement has to match.
    """

    store: CollateralStore
    given: GPUCollateral | None = None
    """Collateral that is used instead of the store's."""
    _collateral: tuple[object, GPUCollateral] | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def verify(self, devices: tuple[DevicePart, ...], nonce: bytes, now: datetime) -> tuple[NamedDevice, ...]:
        """Verify all devices of one machine against this nonce. Returns its GPUs, without NVSwitches.

        Raises the first EvidenceError, or Unavailable where collateral is missing, and StorageFailed.
        """
        with self._lock:
            collateral = self.given or self._current()
            found = [self._verified(part, nonce, collateral, now) for part in devices]
        checks = Checks()
        check_each_once(checks, found)
        if is_protected_pcie(found):
            check_protected_pcie(checks, found)
        gpus = [device for device in found if not device.is_switch]
        if not gpus:
            raise Mismatch(
                "there are NVSwitches in the evidence, and no GPU",
                check="devices in the evidence",
                expected="at least one GPU",
                seen=f"{len(found)} NVSwitches",
                remedy="give the evidence of all GPUs of the machine",
            )
        return tuple(
            NamedDevice(
                ueid=device.ueid,
                driver=device.driver,
                vbios=device.vbios,
                arch=device.arch or "",
                serial=device.serial,
                tee=device.tee_with_root,
            )
            for device in gpus
        )

    def _verified(self, part: DevicePart, nonce: bytes, collateral: GPUCollateral, now: datetime) -> Device:
        arch = next((name for name in ARCHS if name == part.arch), None)
        if arch is None:
            raise MalformedQuote(
                f"no architecture of a GPU: {part.arch[:40]!r}",
                check="arch of a GPU",
                expected=", ".join(ARCHS),
                seen=part.arch[:40],
            )
        evidence = DeviceEvidence(arch, part.certificate, part.evidence)
        device = verify_device(evidence, collateral, _roots(part.certificate), now, nonce=nonce)
        for error in device.errors:
            raise error
        if not device.ok:
            raise Mismatch("a GPU was not verified", check="GPU", expected="everything compared", seen="not everything")
        return device

    def _current(self) -> GPUCollateral:
        """The store's collateral, read anew after a change of any folder in it."""
        folders = [
            self.store.directory,
            *sorted(path for path in self.store.directory.glob("?" * _HEX_DIGITS_OF_A_ROOT)),
        ]
        state = tuple((str(path), path.stat().st_mtime_ns) for path in folders if path.is_dir())
        if self._collateral is None or self._collateral[0] != state:
            self._collateral = state, gpu_collateral(self.store)
        return self._collateral[1]


def _roots(chain: bytes) -> TrustRoots:
    """NVIDIA's roots, or the last certificate of this chain as a simulated one."""
    blocks = split_pem(chain, "device certificate chain")
    root = parse_certificate(blocks[-1], "root CA").fingerprint if blocks else NVIDIA_DEVICE_ROOT
    roots = TrustRoots()
    return roots if root in roots.nvidia_device else roots.with_sim([root])
