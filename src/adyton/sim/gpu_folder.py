"""The GPUs of a simulated platform: a folder with their vendor and their keys, and what a guest does with them."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atomic_file import write_file
from adyton.attest.bundle import DevicePart
from adyton.attest.devices import Device
from adyton.attest.nvidia.device import verify_device
from adyton.attest.roots import TrustRoots
from adyton.errors import NoDevice, UsageError
from adyton.sim.files import key_bytes, read_file
from adyton.sim.gpu import SimDevice, SimNVIDIA
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "gpus"
"""The folder's name in that of the platform."""
MAX_GPUS: Final = 8


@dataclass(frozen=True)
class SimGPUs:
    """Simulated GPUs of one machine, and their vendor."""

    vendor: SimNVIDIA
    devices: tuple[SimDevice, ...]

    @classmethod
    def create(cls, platform: Path, count: int) -> SimGPUs:
        """Make GPUs for a platform that has none. Raises UsageError."""
        folder = platform / FOLDER
        if not 1 <= count <= MAX_GPUS or folder.exists():
            raise UsageError(
                f"{platform} cannot get {count} GPUs",
                check="GPUs of the simulated platform",
                expected=f"1 to {MAX_GPUS}, and none so far",
                seen="it has some" if folder.exists() else count,
            )
        vendor = SimNVIDIA.create(datetime.now(UTC))
        vendor.save(folder)
        devices = tuple(vendor.device("HOPPER") for _ in range(count))
        for number, device in enumerate(devices):
            pem = b"".join(item.public_bytes(serialization.Encoding.PEM) for item in device.chain)
            content = {"chain": pem.decode(), "fwid": device.fwid.hex(), "key": key_bytes(device.key).hex()}
            write_file(folder / f"gpu-{number}.json", json.dumps(content, indent=1).encode(), 0o600)
        return cls(vendor, devices)

    @classmethod
    def load(cls, platform: Path) -> SimGPUs:
        """Read the GPUs of a platform. Raises NoDevice where it has none, and UsageError."""
        folder = platform / FOLDER
        names = sorted(folder.glob("gpu-*.json"))[: MAX_GPUS + 1] if folder.is_dir() else []
        if not names:
            raise NoDevice(
                f"the simulated platform {platform} has no GPU",
                check="GPUs of the simulated platform",
                expected=str(folder),
                seen="no such folder",
                remedy="make some: adyton platform gpus FOLDER -o collateral.json",
            )
        return cls(SimNVIDIA.load(folder), tuple(_device(path) for path in names))

    def named(self, count: int) -> tuple[Device, ...]:
        """Verify the first `count` GPUs over a nonce of this boot, as a guest does. Returns what its register names.

        Raises NoDevice where there are fewer, and the EvidenceError of one that does not verify.
        """
        now, nonce = datetime.now(UTC), secrets.token_bytes(32)
        devices = self._first(count)
        collateral = self.vendor.collateral(devices, now.replace(microsecond=0))
        roots = TrustRoots().with_sim([self.vendor.root])
        found = []
        for device in devices:
            verified = verify_device(device.evidence(nonce), collateral, roots, now, nonce=nonce)
            for error in verified.errors:
                raise error
            found.append(Device(ueid=verified.ueid, driver=verified.driver, vbios=verified.vbios))
        return tuple(found)

    def parts(self, count: int, nonce: bytes) -> tuple[DevicePart, ...]:
        """The evidence of the first `count` GPUs for this nonce (32 bytes), as a request for keys carries it."""
        return tuple(
            DevicePart(arch=device.arch, certificate=device.pem, evidence=device.report(nonce))
            for device in self._first(count)
        )

    def nodes(self) -> tuple[()]:
        """None: a simulated GPU has no device."""
        return ()

    def _first(self, count: int) -> tuple[SimDevice, ...]:
        if len(self.devices) < count:
            raise NoDevice(
                f"the manifest asks for {count} GPUs, and this machine has {len(self.devices)}",
                check="number of GPUs",
                expected=f"at least {count}",
                seen=len(self.devices),
                remedy="run on a machine with more GPUs, or change adyton.gpus",
            )
        return self.devices[:count]


def _device(path: Path) -> SimDevice:
    data = parse_json_object(read_file(path, private=True), what="simulated GPU", refuse=UsageError)
    try:
        key = serialization.load_der_private_key(bytes.fromhex(data["key"]), None)
        chain = tuple(x509.load_pem_x509_certificates(data["chain"].encode()))
        fwid = bytes.fromhex(data["fwid"])
    except (KeyError, AttributeError, TypeError, ValueError):
        key, chain, fwid = None, (), b""
    if not isinstance(key, ec.EllipticCurvePrivateKey) or len(chain) != 5 or len(fwid) != hashlib.sha384().digest_size:
        raise UsageError(f"{path} holds no simulated GPU", check="simulated GPU", expected="key, chain, fwid", seen="")
    return SimDevice(arch="HOPPER", key=key, chain=chain, fwid=fwid)
