"""The workload register of a confidential or measured guest: which value it holds after Adyton started a workload.

It is RTMR3 on TDX, and PCR 15 where a TPM measures. Per boot it is extended exactly twice, before the program starts:
with the workload measurement, then with the digest of the devices. Retries, second owners and renewed leases extend
nothing. docs/registers.md has every byte and worked examples.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from adyton.attest.devices import NO_DEVICES
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.values import Measurement

BANKS: Final = {"sha256": 32, "sha384": 48}
"""Bank of registers -> bytes of a register. RTMR3 is of `sha384`."""

WORKLOAD_BYTES: Final = 32
DEVICE_DIGEST_BYTES: Final = 48


def events(workload: Measurement, devices: bytes = NO_DEVICES, *, bank: str) -> tuple[bytes, bytes]:
    """The two digests with which the register is extended, in this order: the workload's, the devices'.

    `workload` is the workload measurement (32 bytes). `devices` is the digest of `attest.devices` (48 bytes). Raises
    UsageError for other sizes and for an unknown bank.
    """
    for what, raw, size in (
        ("workload measurement", workload.raw, WORKLOAD_BYTES),
        ("device digest", devices, DEVICE_DIGEST_BYTES),
    ):
        if len(raw) != size:
            raise UsageError(
                f"a {what} has {size} bytes, got {len(raw)}",
                check=what,
                expected=f"{size} bytes",
                seen=f"{len(raw)} bytes",
            )
    _register_bytes(bank)
    return hashlib.new(bank, workload.raw).digest(), hashlib.new(bank, devices).digest()


def extend(register: bytes, digest: bytes, *, bank: str) -> bytes:
    """A register after one extension: the bank's hash over the register and the digest, both of the bank's size."""
    size = _register_bytes(bank)
    if len(register) != size or len(digest) != size:
        raise UsageError(
            f"a register of {bank} is extended with {size} bytes",
            check="extension of a register",
            expected=f"{size} bytes each",
            seen=f"{len(register)} and {len(digest)} bytes",
        )
    return hashlib.new(bank, register + digest).digest()


def states(workload: Measurement, devices: bytes = NO_DEVICES, *, bank: str) -> tuple[bytes, bytes, bytes]:
    """The three values of the register in a boot: zeros, after the workload, after the devices."""
    found = [bytes(_register_bytes(bank))]
    for digest in events(workload, devices, bank=bank):
        found.append(extend(found[-1], digest, bank=bank))
    return found[0], found[1], found[2]


def workload_register(workload: Measurement, devices: bytes = NO_DEVICES, *, bank: str) -> bytes:
    """The register's value while the workload runs. Evidence that shows another one is of another workload."""
    return states(workload, devices, bank=bank)[2]


def _register_bytes(bank: str) -> int:
    if bank not in BANKS:
        raise UsageError(
            f"there is no bank {bank[:40]!r} of registers", check="bank", expected=" or ".join(BANKS), seen=bank[:40]
        )
    return BANKS[bank]
