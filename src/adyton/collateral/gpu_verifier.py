"""Verify the GPUs of a request for keys with the key server's own collateral."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.certificates import parse_certificate, split_pem
from adyton.attest.checks import Checks
from adyton.attest.devices import Device as NamedDevice
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
    from adyton.attest.nvidia.collateral import GPUCollateral
    from adyton.attest.nvidia.layout import Arch
    from adyton.collateral.background import Pending
    from adyton.collateral.gpu_background import GPUFetches
    from adyton.collateral.store import CollateralStore

_HEX_DIGITS_OF_A_ROOT: Final = 64


@dataclass(frozen=True, slots=True)
class _Current:
    """The store's collateral in one state of its folders, and when the first document of it is due."""

    state: object
    collateral: GPUCollateral
    due_at: datetime | None


@dataclass
class GPUVerifier:
    """A `DeviceVerifier` (`attest.complete`) over a store. Thread-safe. Verification fetches nothing.

    With `fetches`, `fetch_for` has what is missing fetched in the background, and what is due is fetched anew.

    A GPU under another root than NVIDIA's is taken as simulated under that root, and named so in the result. The policy
    of each approval then says whether this root counts (`attest.nvidia.gpu_policy.judge_gpus`). No exceptions are made
    here: every certificate needs an OCSP answer, and every measurement has to match.
    """

    store: CollateralStore
    fetches: GPUFetches | None = None
    roots: TrustRoots = field(default_factory=TrustRoots)
    given: GPUCollateral | None = None
    """Collateral that is used instead of the store's. Nothing is fetched then."""
    _collateral: _Current | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def verify(self, devices: tuple[DevicePart, ...], nonce: bytes, now: datetime) -> tuple[NamedDevice, ...]:
        """Verify all devices of one machine against this nonce. Returns its GPUs, without NVSwitches.

        Raises the first EvidenceError, or Unavailable where collateral is missing, and StorageFailed.
        """
        with self._lock:
            current = self._current() if self.given is None else _Current(None, self.given, None)
            collateral = current.collateral
            found = [self._verified(part, nonce, collateral, now) for part in devices]
        if self.fetches is not None and current.due_at is not None and now >= current.due_at:
            self.fetches.refresh(now)
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
        arch, _ = _named(part)
        evidence = DeviceEvidence(arch, part.certificate, part.evidence)
        device = verify_device(evidence, collateral, self._roots(part.certificate), now, nonce=nonce)
        for error in device.errors:
            raise error
        if not device.ok:
            raise Mismatch("a GPU was not verified", check="GPU", expected="everything compared", seen="not everything")
        return device

    def fetch_for(self, devices: tuple[DevicePart, ...], nonce: bytes, now: datetime) -> Pending | None:
        """Begin to fetch what these devices lack, where each is genuine for this nonce. None where nothing is fetched.

        Call it after `verify` found that collateral was missing, for a request whose CPU is genuine.
        """
        if self.fetches is None:
            return None
        evidence = [DeviceEvidence(arch, part.certificate, part.evidence) for arch, part in map(_named, devices)]
        with self._lock:
            collateral = self._current().collateral
            found = [verify_device(each, collateral, self.roots, now, nonce=nonce) for each in evidence]
        if not found or not all(device.genuine for device in found):
            return None
        return self.fetches.fetch_for(evidence, now)

    def _current(self) -> _Current:
        """The store's collateral, read anew after a change of any folder in it."""
        folders = [
            self.store.directory,
            *sorted(path for path in self.store.directory.glob("?" * _HEX_DIGITS_OF_A_ROOT)),
        ]
        state = tuple((str(path), path.stat().st_mtime_ns) for path in folders if path.is_dir())
        if self._collateral is None or self._collateral.state != state:
            held = [*self.store.of_kind("nvidia-rim"), *self.store.of_kind("nvidia-ocsp")]
            due_at = min(map(self.store.due_at, held), default=None)
            self._collateral = _Current(state, gpu_collateral(self.store), due_at)
        return self._collateral

    def _roots(self, chain: bytes) -> TrustRoots:
        """NVIDIA's roots, or the last certificate of this chain as a simulated one."""
        blocks = split_pem(chain, "device certificate chain")
        root = parse_certificate(blocks[-1], "root CA").fingerprint if blocks else NVIDIA_DEVICE_ROOT
        return self.roots if root in self.roots.nvidia_device else self.roots.with_sim([root])


def _named(part: DevicePart) -> tuple[Arch, DevicePart]:
    arch = next((name for name in ARCHS if name == part.arch), None)
    if arch is None:
        raise MalformedQuote(
            f"no architecture of a GPU: {part.arch[:40]!r}",
            check="arch of a GPU",
            expected=", ".join(ARCHS),
            seen=part.arch[:40],
        )
    return arch, part
