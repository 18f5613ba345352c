"""The digest over a machine's GPUs that a guest extends into its workload register, after the workload.

It is stable: it names the GPUs, their drivers and their VBIOS, and nothing that differs from one request to the next.
docs/registers.md has every byte and a worked example.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.attest.report_data import framed
from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEVICES: Final = 16
LABEL: Final = b"adyton devices/1\0"
_UEID: Final = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, as the digest names it."""

    ueid: str
    """The GPU's unique number (UEID of its device certificate), as decimal digits without leading zeros."""
    driver: str
    """Version of the driver, as 570.158.01."""
    vbios: str
    """Version of the VBIOS, as 96.00.88.00.11."""

    def __post_init__(self) -> None:
        for name, pattern, expected in (
            ("ueid", _UEID, "1 to 78 decimal digits without leading zeros"),
            ("driver", _VERSION, "1 to 64 letters, digits, and . _ + -"),
            ("vbios", _VERSION, "1 to 64 letters, digits, and . _ + -"),
        ):
            value = getattr(self, name)
            if pattern.fullmatch(value) is None:
                raise UsageError(
                    f"the GPU's {name} is malformed", check=f"{name} of a GPU", expected=expected, seen=value[:80]
                )

    def to_bytes(self) -> bytes:
        """Its item of the digest: the three texts, each with its length before it."""
        return framed(self.ueid.encode(), self.driver.encode(), self.vbios.encode())


def device_digest(devices: Iterable[Device]) -> bytes:
    """SHA-384 over the label and the items in the order of their UEIDs as numbers; 48 bytes.

    The order in which the GPUs are given does not matter. Raises UsageError for more than MAX_DEVICES and for a UEID
    that stands twice.
    """
    found = sorted(devices, key=lambda device: int(device.ueid))
    if len(found) > MAX_DEVICES:
        raise UsageError(
            f"there are more than {MAX_DEVICES} GPUs",
            check="number of GPUs",
            expected=f"at most {MAX_DEVICES}",
            seen=len(found),
        )
    if len({device.ueid for device in found}) != len(found):
        raise UsageError(
            "one GPU stands twice",
            check="GPUs of the machine",
            expected="each UEID once",
            seen=", ".join(device.ueid for device in found),
        )
    return hashlib.sha384(LABEL + framed(*(device.to_bytes() for device in found))).digest()


NO_DEVICES: Final = device_digest(())
"""The digest of a machine without a GPU."""
