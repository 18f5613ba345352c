"""Reading the lines of a policy about registers of a TPM: PCRs, boot applications, roots of attestation keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adyton.attest.policy.read import hexes, listed, only, text_of, wrong
from adyton.values import Digest

_MAX_PCR: Final = 31
_PCR_BYTES: Final = (32, 48)
_MAX_BOOT_APPLICATIONS: Final = 16


def pcrs(name: str, value: object) -> Mapping[int, frozenset[bytes]]:
    """A table from the number of a PCR to its allowed values, 32 or 48 bytes each."""
    found: dict[int, frozenset[bytes]] = {}
    for number, values in only(name, value, map(str, range(_MAX_PCR + 1))).items():
        allowed = set()
        for item in listed(f"{name}.{number}", values):
            text = text_of(f"{name}.{number}", item)
            if re.fullmatch(r"[0-9a-fA-F]+", text) is None or len(text) not in {2 * size for size in _PCR_BYTES}:
                raise wrong(f"{name}.{number}", "32 or 48 bytes in hex each", item)
            allowed.add(bytes.fromhex(text))
        if not allowed:
            raise wrong(f"{name}.{number}", "at least one value", values)
        found[int(number)] = frozenset(allowed)
    return MappingProxyType(found)


def boot_applications(name: str, value: object) -> tuple[bytes, ...]:
    """A list of hashes of programs that the firmware starts, 32 bytes each, in order."""
    items = listed(name, value)
    if not 1 <= len(items) <= _MAX_BOOT_APPLICATIONS:
        raise wrong(name, f"1 to {_MAX_BOOT_APPLICATIONS} hashes", len(items))
    return tuple(next(iter(hexes(32)(name, [item]))) for item in items)


def digests(name: str, value: object) -> frozenset[Digest]:
    """A list of SHA-256 fingerprints."""
    return frozenset(Digest(raw) for raw in hexes(32)(name, value))
