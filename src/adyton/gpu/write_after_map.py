"""Does the GPU see what this process writes into memory that it mapped before?

In confidential mode some drivers show the GPU a copy, which goes stale without any error. Inference servers that keep
tables in such memory then answer garbage (vllm issue 57224). The check writes, has the GPU read, writes again, and has
the GPU read again.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from adyton.gpu.libcuda import Device

BYTES: Final = 1 << 16
ROUNDS: Final = 4


def stale_rounds(device: Device) -> int:
    """How often, out of ROUNDS, the GPU saw something else than what was written last. 0 is good.

    Raises NoDevice where the driver refuses a call.
    """
    before = device.current()
    device.activate()
    mapped = device.pin(BYTES, mapped=True)
    try:
        seen_at = device.mapped_at(mapped)
        own = device.allocate(BYTES)
        try:
            return sum(not _sees(device, mapped, seen_at, own, number + 1) for number in range(ROUNDS))
        finally:
            device.free(own)
    finally:
        device.unpin(mapped)
        device.restore(before)


def _sees(device: Device, mapped: int, seen_at: int, own: int, number: int) -> bool:
    """Whether the GPU reads this number in every byte after it was written there."""
    ctypes.memset(mapped, number, BYTES)
    device.copy_within(own, seen_at, BYTES)
    found = (ctypes.c_ubyte * BYTES)()
    device.copy_out(ctypes.addressof(found), own, BYTES)
    return bytes(found) == bytes([number]) * BYTES
