"""The evidence in a request for keys: the CPU's, the log of the boot, and that of each GPU.

The CPU's part is verified first, against report data that cover the devices' part. Only then is the rest parsed
(`attest.complete`). A log counts only where it replays to registers in the CPU's part. docs/registers.md has every
byte.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.attest.devices import MAX_DEVICES
from adyton.attest.report_data import framed
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.values import Nonce

MAX_CPU_BYTES: Final = 48 * 1024
MAX_EVENT_LOG_BYTES: Final = 256 * 1024
MAX_DEVICE_CERTIFICATE_BYTES: Final = 16 * 1024
MAX_DEVICE_EVIDENCE_BYTES: Final = 16 * 1024
ARCH_PATTERN: Final = r"[A-Za-z0-9_-]{1,32}"

_GPU_LABEL: Final = b"adyton gpu/1\0"
_ARCH: Final = re.compile(ARCH_PATTERN, re.ASCII)


def _limit(what: str, size: int, low: int, high: int) -> None:
    if not low <= size <= high:
        raise UsageError(f"{what} is out of bounds: {size}", check=what, expected=f"{low} to {high}", seen=str(size))


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePart:
    """One GPU's evidence, unverified: its architecture, its certificate chain, and what it signed."""

    arch: str
    certificate: bytes
    evidence: bytes

    def __post_init__(self) -> None:
        if _ARCH.fullmatch(self.arch) is None:
            raise UsageError(
                "the GPU's architecture is malformed", check="arch of a GPU", expected=ARCH_PATTERN, seen=self.arch[:40]
            )
        _limit("bytes of a GPU's certificate", len(self.certificate), 1, MAX_DEVICE_CERTIFICATE_BYTES)
        _limit("bytes of a GPU's evidence", len(self.evidence), 1, MAX_DEVICE_EVIDENCE_BYTES)

    def to_bytes(self) -> bytes:
        """Its three parts, each with its length before it."""
        return framed(self.arch.encode(), self.certificate, self.evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceBundle:
    """All evidence of one request, unverified. `cpu` is empty in a request that has no evidence yet."""

    cpu: bytes = b""
    event_log: bytes | None = None
    devices: tuple[DevicePart, ...] = ()

    def __post_init__(self) -> None:
        _limit("bytes of the CPU's evidence", len(self.cpu), 0, MAX_CPU_BYTES)
        if self.event_log is not None:
            _limit("bytes of the event log", len(self.event_log), 1, MAX_EVENT_LOG_BYTES)
        _limit("number of devices", len(self.devices), 0, MAX_DEVICES)


def devices_bytes(devices: tuple[DevicePart, ...]) -> bytes:
    """The parts of all devices, each with its length before it, in their order; empty where there are none."""
    return framed(*(device.to_bytes() for device in devices))


def devices_field(devices: tuple[DevicePart, ...]) -> bytes:
    """The last field of a release's report data: SHA-256 of `devices_bytes`, or empty where there are none."""
    return hashlib.sha256(devices_bytes(devices)).digest() if devices else b""


def gpu_nonce(nonce: Nonce, public_key: bytes) -> bytes:
    """The 32 bytes that the GPUs sign for one request, from the challenge and the run's public key."""
    return derived_gpu_nonce(nonce.raw, public_key)


def derived_gpu_nonce(nonce: bytes, key: bytes) -> bytes:
    """The same from the nonce's bytes, and from what only the two ends of this request or connection have."""
    return hashlib.sha256(_GPU_LABEL + framed(nonce, key)).digest()
