"""The names of single bits in evidence, as policies write them.

Sources: AMD 56860 (SNP ABI 1.58), "PLATFORM_INFO" and "Guest policy"; Intel TDX module base architecture, "TD
attributes". A bit without a name here may mean anything in a later firmware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PLATFORM_INFO: Final[Mapping[str, int]] = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl_off": 3,
    "ciphertext_hiding": 4,
    "alias_check": 5,
    "iommu_write_safe": 6,
    "tio": 7,
}

GUEST_POLICY: Final[Mapping[str, int]] = {
    "smt": 16,
    "migrate_ma": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl": 21,
    "aes256_xts": 22,
    "rapl_off": 23,
    "ciphertext_hiding": 24,
    "page_swap_off": 25,
}
GUEST_POLICY_OTHER: Final = 0xFFFF | 1 << 17
"""Bits of the guest policy that are no switches: the ABI version, and the bit that is always one."""

TD_ATTRIBUTES: Final[Mapping[str, int]] = {
    "debug": 0,
    "hgs_plus_prof": 4,
    "perf_prof": 5,
    "pmt_prof": 6,
    "icssd": 16,
    "lass": 27,
    "sept_ve_disable": 28,
    "migratable": 29,
    "pks": 30,
    "kl": 31,
    "tpa": 62,
    "perfmon": 63,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BitRule:
    """Bits that must be set and bits that must be clear, by name. It is false where it asks for nothing."""

    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.require or self.forbid)

    def broken(self, value: int, names: Mapping[str, int], other: int = 0) -> list[str]:
        """What of `value` breaks the rule, in words. `other` are bits without a name that are known to be harmless.

        With any rule a bit without a name breaks it: nobody can say what it switches on.
        """
        if not self:
            return []
        found = [f"{name} is not set" for name in sorted(self.require) if not value >> names[name] & 1]
        found += [f"{name} is set" for name in sorted(self.forbid) if value >> names[name] & 1]
        unknown = value & ~other & ~sum(1 << bit for bit in names.values())
        return found + ([f"unknown bits are set: {unknown:#x}"] if unknown else [])

    def __str__(self) -> str:
        parts = [f"{' and '.join(sorted(self.require))} set" if self.require else ""]
        parts.append(f"{' and '.join(sorted(self.forbid))} clear" if self.forbid else "")
        return ", ".join(part for part in parts if part) or "anything"


NO_BITS: Final = BitRule()
"""The rule that asks for nothing."""


def set_names(value: int, names: Mapping[str, int]) -> str:
    """The names of the bits that are set, for people."""
    return ", ".join(name for name, bit in names.items() if value >> bit & 1) or "none"
