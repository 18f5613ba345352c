"""Sizes and names that several modules of this room share."""

from __future__ import annotations

from typing import Final, Literal, get_args

Arch = Literal["HOPPER", "BLACKWELL", "LS10"]
ARCHS: Final[tuple[Arch, ...]] = get_args(Arch)
"""Names of architectures in NVIDIA's evidence documents. LS10 is the NVSwitch of Hopper systems."""

MEASUREMENT_BYTES: Final = 48
"""A measurement is a SHA-384 digest."""
MAX_MEASUREMENTS: Final = 64
MAX_REPORT_BYTES: Final = 16 << 10
"""NVML's own buffer for a report has 8 KiB."""
MAX_CHAIN_BYTES: Final = 16 << 10
"""NVML's own buffer for a certificate chain has 5 KiB."""
MAX_RIM_BYTES: Final = 1 << 20
MAX_OCSP_BYTES: Final = 64 << 10
MAX_DEVICES: Final = 16
"""The most devices in one list of evidence: eight GPUs and four NVSwitches, and some room."""
NONCE_BYTES: Final = 32

SIMULATED_PREFIX: Final = "sim-"
TEE: Final = "nvidia-gpu"
