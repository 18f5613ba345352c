"""The certificate table that a SEV-SNP host puts beside a report: bytes to certificates and back. Nothing is verified.

An entry is a GUID (16 bytes, in the mixed byte order of UEFI), and offset and length of a certificate (u32 each,
little-endian). An entry of zeros ends the list. The certificates stand behind it.

Source: AMD, Guest Hypervisor Communication Block Standardization (56421), "SNP Extended Guest Request".
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.attest.layout import MAX_CHAIN_BYTES
from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TABLE_BYTES: Final = 48 << 10
MAX_ENTRIES: Final = 16
_ENTRY_BYTES: Final = 24
_GUIDS: Final[Mapping[str, uuid.UUID]] = {
    "VCEK": uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"),
    "VLEK": uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),
    "ASK": uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),
    "ARK": uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),
    "CRL": uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"),
}
_NAMES: Final[Mapping[bytes, str]] = {guid.bytes_le: name for name, guid in _GUIDS.items()}


def _refuse(what: str) -> NoReturn:
    raise MalformedQuote(
        f"the certificate table behind the report does not parse: {what}",
        check="certificate table",
        expected="entries of 24 bytes, an entry of zeros, certificates",
        seen=what,
        remedy="give the report alone, which has 1184 bytes",
    )


def parse_table(raw: bytes) -> Mapping[str, bytes]:
    """Name -> certificate, DER: VCEK, VLEK, ASK, ARK, CRL. Entries of other names are left out.

    Raises MalformedQuote.
    """
    if len(raw) > MAX_TABLE_BYTES:
        _refuse(f"{len(raw)} bytes, more than {MAX_TABLE_BYTES}")
    places: list[tuple[bytes, int, int]] = []
    at = 0
    while True:
        entry = raw[at : at + _ENTRY_BYTES]
        at += _ENTRY_BYTES
        if len(entry) != _ENTRY_BYTES:
            _refuse("no entry of zeros at its end")
        if not any(entry):
            break
        if len(places) == MAX_ENTRIES:
            _refuse(f"more than {MAX_ENTRIES} entries")
        places.append((entry[:16], int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")))
    found: dict[str, bytes] = {}
    for guid, offset, size in places:
        if offset < at or not 0 < size <= MAX_CHAIN_BYTES or offset + size > len(raw):
            _refuse(f"an entry with {size} bytes at {offset}")
        name = _NAMES.get(guid)
        if name is None:
            continue
        if name in found:
            _refuse(f"two entries for the {name}")
        found[name] = raw[offset : offset + size]
    return found


def build_table(certificates: Mapping[str, bytes]) -> bytes:
    """A table of these certificates. `parse_table` gives them back."""
    offset = _ENTRY_BYTES * (len(certificates) + 1)
    head = b""
    for name, raw in certificates.items():
        head += _GUIDS[name].bytes_le + offset.to_bytes(4, "little") + len(raw).to_bytes(4, "little")
        offset += len(raw)
    return head + bytes(_ENTRY_BYTES) + b"".join(certificates.values())
