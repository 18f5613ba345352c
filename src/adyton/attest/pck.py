"""Intel's extension of a PCK certificate: which platform it is and which security versions it has.

OID 1.2.840.113741.1.13.1, a SEQUENCE of (OID, value). Source: Intel SGX PCK Certificate and CRL Profile Specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adyton.attest import der
from adyton.errors import MalformedQuote

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")

SGX_TYPES: Final = ("standard", "scalable", "scalable with integrity")


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform, as its PCK certificate describes it."""

    ppid: bytes
    components: bytes
    """The 16 component SVNs of the TCB that the certificate is for."""
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: str
    instance_id: bytes | None = None
    dynamic: bool | None = None
    cached_keys: bool | None = None
    smt: bool | None = None


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the PCK certificate's SGX extension is wrong: {what}",
        check="PCK certificate SGX extension",
        expected="PPID, TCB, PCEID, FMSPC and SGX type, once each",
        seen=what,
    )


def _items(content: bytes, prefix: bytes) -> dict[int, tuple[int, bytes]]:
    """Sub-identifier -> (tag, content). Refuses foreign OIDs and duplicates."""
    found: dict[int, tuple[int, bytes]] = {}
    for tag, item in der.children(content):
        parts = der.children(item) if tag == der.SEQUENCE else []
        if len(parts) != 2 or parts[0][0] != der.OID:
            raise _malformed("an item that is no pair")
        name = parts[0][1]
        if len(name) != len(prefix) + 1 or not name.startswith(prefix):
            raise _malformed(f"an item with the OID bytes {name.hex()}")
        if name[-1] in found:
            raise _malformed(f"item {name[-1]} twice")
        found[name[-1]] = parts[1]
    return found


def _value(items: dict[int, tuple[int, bytes]], number: int, tag: int, size: int | None, what: str) -> bytes:
    found = items.get(number)
    if found is None:
        raise _malformed(f"no {what}")
    if found[0] != tag or (size is not None and len(found[1]) != size):
        raise _malformed(f"{what} of another type or size")
    return found[1]


def parse_sgx_extension(raw: bytes) -> Platform:
    """Read the extension's value (DER)."""
    items = _items(der.only(raw, der.SEQUENCE), _PREFIX)
    tcb = _items(_value(items, 2, der.SEQUENCE, None, "TCB"), _PREFIX + b"\x02")
    components = bytes(
        der.unsigned(_value(tcb, number, der.INTEGER, None, f"TCB component {number}"), 255) for number in range(1, 17)
    )
    sgx_type = der.unsigned(_value(items, 5, der.ENUMERATED, 1, "SGX type"), 255)
    if sgx_type >= len(SGX_TYPES):
        raise _malformed(f"SGX type {sgx_type}")
    configuration: dict[int, bool] = {}
    if 7 in items:
        entries = _items(_value(items, 7, der.SEQUENCE, None, "configuration"), _PREFIX + b"\x07")
        configuration = {
            number: der.boolean(_value(entries, number, der.BOOLEAN, 1, f"configuration {number}"))
            for number in entries
        }
    return Platform(
        ppid=_value(items, 1, der.OCTET_STRING, 16, "PPID"),
        components=components,
        pce_svn=der.unsigned(_value(tcb, 17, der.INTEGER, None, "PCESVN"), 65535),
        cpu_svn=_value(tcb, 18, der.OCTET_STRING, 16, "CPUSVN"),
        pce_id=_value(items, 3, der.OCTET_STRING, 2, "PCEID"),
        fmspc=_value(items, 4, der.OCTET_STRING, 6, "FMSPC"),
        sgx_type=SGX_TYPES[sgx_type],
        instance_id=_value(items, 6, der.OCTET_STRING, 16, "platform instance id") if 6 in items else None,
        dynamic=configuration.get(1),
        cached_keys=configuration.get(2),
        smt=configuration.get(3),
    )
