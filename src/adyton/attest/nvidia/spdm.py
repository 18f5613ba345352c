"""A device's report: an SPDM 1.1 GET_MEASUREMENTS request and its signed MEASUREMENTS response, one after the other.

::

    0    37 B  request: 11 E0 01 FF, nonce (32), slot 00
    37         response: 11 60 param1 param2, number of blocks (u8), length of the record (u24), record,
               nonce of the device (32), length of the opaque data (u16), opaque data, signature (96: r, s of P-384)
    block      index (u8, from 1), 01 (DMTF), size (u16), type (u8), size of the value (u16), value (48)

Integers are little-endian. The signature covers all bytes before it. Source: DMTF DSP0274 1.1, sections 10.11 and
10.12, with the values that NVIDIA's GPUs use. The index of a measurement in a RIM is the block's index minus one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.attest.nvidia.layout import MAX_MEASUREMENTS, MAX_REPORT_BYTES, MEASUREMENT_BYTES, NONCE_BYTES
from adyton.attest.nvidia.opaque import Opaque, parse_opaque
from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_BYTES: Final = 37
SIGNATURE_BYTES: Final = 96
_REQUEST_HEAD: Final = b"\x11\xe0\x01\xff"
_RESPONSE_HEAD: Final = b"\x11\x60"
_DMTF: Final = 1
_BLOCK_HEAD_BYTES: Final = 4
_VALUE_HEAD_BYTES: Final = 3
_IMMUTABLE_ROM_TO_CONFIGURATION: Final = range(0x08)
"""DMTF measurement types 0 to 7. Bit 7 would say that the value is raw and not a digest."""


@dataclass(frozen=True)
class Report:
    """One report. Nothing of it is verified."""

    raw: bytes
    nonce: bytes
    """The requester's nonce (32 bytes), in the signed request."""
    device_nonce: bytes
    measurements: Mapping[int, bytes]
    """By index of a RIM (from 0): the measured digest, 48 bytes."""
    opaque: Opaque

    @property
    def signed_part(self) -> bytes:
        """The bytes that the signature covers."""
        return self.raw[:-SIGNATURE_BYTES]

    @cached_property
    def signature(self) -> bytes:
        """r and s of P-384, big-endian, 48 bytes each."""
        return self.raw[-SIGNATURE_BYTES:]


def _malformed(what: str, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the GPU report does not parse: {what}",
        check="parse of the GPU report",
        expected=expected,
        seen=seen,
        remedy="request the report again: NVML's report for a nonce of 32 bytes, unchanged",
    )


def parse_report(raw: bytes) -> Report:
    """Parse one report of a GPU or an NVSwitch. Raises MalformedQuote."""
    if not REQUEST_BYTES < len(raw) <= MAX_REPORT_BYTES:
        _malformed("its size", f"more than {REQUEST_BYTES} and at most {MAX_REPORT_BYTES} bytes", f"{len(raw)} bytes")
    if raw[:4] != _REQUEST_HEAD or raw[REQUEST_BYTES - 1] != 0:
        _malformed("the request", "SPDM 1.1 GET_MEASUREMENTS of all blocks, signed, slot 0", raw[:4].hex())
    response = raw[REQUEST_BYTES:]
    if response[:2] != _RESPONSE_HEAD or len(response) < 8:
        _malformed("the response", "SPDM 1.1 MEASUREMENTS", response[:2].hex())
    blocks, record_bytes = response[4], int.from_bytes(response[5:8], "little")
    end = 8 + record_bytes
    nonce_end = end + NONCE_BYTES
    if not 1 <= blocks <= MAX_MEASUREMENTS or len(response) < nonce_end + 2:
        _malformed("the measurement record", f"1 to {MAX_MEASUREMENTS} blocks inside the report", f"{blocks} blocks")
    opaque_bytes = int.from_bytes(response[nonce_end : nonce_end + 2], "little")
    opaque_end = nonce_end + 2 + opaque_bytes
    if len(response) != opaque_end + SIGNATURE_BYTES:
        _malformed(
            "its length",
            f"{opaque_end + SIGNATURE_BYTES} bytes of response, as its fields say",
            f"{len(response)} bytes",
        )
    return Report(
        raw=bytes(raw),
        nonce=raw[4 : 4 + NONCE_BYTES],
        device_nonce=response[end:nonce_end],
        measurements=_measurements(response[8:end], blocks),
        opaque=parse_opaque(response[nonce_end + 2 : opaque_end]),
    )


def _measurements(record: bytes, blocks: int) -> dict[int, bytes]:
    """The values of all blocks. Their indexes are 1, 2, ..., without a gap, and the blocks fill the record."""
    size = _BLOCK_HEAD_BYTES + _VALUE_HEAD_BYTES + MEASUREMENT_BYTES
    if len(record) != blocks * size:
        _malformed("the measurement record", f"{blocks} blocks of {size} bytes", f"{len(record)} bytes")
    found: dict[int, bytes] = {}
    for number in range(blocks):
        block = record[number * size : (number + 1) * size]
        index, specification, length = block[0], block[1], int.from_bytes(block[2:4], "little")
        kind, value_length = block[4], int.from_bytes(block[5:7], "little")
        if (
            index != number + 1
            or specification != _DMTF
            or length != _VALUE_HEAD_BYTES + MEASUREMENT_BYTES
            or kind not in _IMMUTABLE_ROM_TO_CONFIGURATION
            or value_length != MEASUREMENT_BYTES
        ):
            _malformed(f"block {number + 1}", f"index {number + 1}, DMTF, a digest of 48 bytes", block[:7].hex())
        found[index - 1] = block[7:]
    return found
