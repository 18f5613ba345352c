"""Names of platforms and of security advisories in policies."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TEE_NAMES: Final = (
    "sgx, tdx, snp, tpm, az-snp, az-tdx, sim:<64 hex digits>, sim-tdx:<64 hex digits> or sim-tpm:<64 hex digits>"
)
"""Every name of a platform. A simulated one is named by the SHA-256 of its root certificate (DER)."""

DEVICE_NAMES: Final = "nvidia-gpu or sim-nvidia-gpu:<64 hex digits>"
"""Every name of a device whose evidence can be judged by itself. A device is no platform: it never gets a key."""
TRUSTED: Final[Mapping[str, str]] = MappingProxyType(
    {"az-snp": "Microsoft's paravisor", "az-tdx": "Microsoft's paravisor"}
)
"""Whom one trusts beside the processor's maker, by the TEE's name. Whoever runs that can read all memory."""

MAX_ADVISORY_CHARACTERS: Final = 64

_TEE: Final = re.compile(r"sgx|tdx|snp|tpm|az-snp|az-tdx|(sim|sim-tdx|sim-tpm):[0-9a-f]{64}", re.ASCII)
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
