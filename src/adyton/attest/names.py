"""Names of platforms and of security advisories in policies."""

from __future__ import annotations

import re
from typing import Final

TEE_NAMES: Final = "sgx, tdx, snp, sim:<64 hex digits> or sim-tdx:<64 hex digits>"
"""Every name of a platform. A simulated one is named by the SHA-256 of its root certificate (DER)."""

DEVICE_NAMES: Final = "nvidia-gpu or sim-nvidia-gpu:<64 hex digits>"
"""Every name of a device whose evidence can be judged by itself. A device is no platform: it never gets a key."""

MAX_ADVISORY_CHARACTERS: Final = 64

_TEE: Final = re.compile(r"sgx|tdx|snp|(sim|sim-tdx):[0-9a-f]{64}", re.ASCII)
_DEVICE: Final = re.compile(r"nvidia-gpu|sim-nvidia-gpu:[0-9a-f]{64}", re.ASCII)
_ADVISORY: Final = re.compile(r"[A-Z]+(-[A-Z0-9]+)+", re.ASCII)


def is_tee_name(text: str) -> bool:
    """Whether a policy may name a platform so (see TEE_NAMES)."""
    return _TEE.fullmatch(text) is not None


def is_device_name(text: str) -> bool:
    """Whether a policy may name a device so (see DEVICE_NAMES)."""
    return _DEVICE.fullmatch(text) is not None


def is_advisory_name(text: str) -> bool:
    """Whether this is an id as makers of TEEs give their advisories: INTEL-SA-00615, AMD-SB-3019."""
    return len(text) <= MAX_ADVISORY_CHARACTERS and _ADVISORY.fullmatch(text) is not None
