"""The attestation report of Microsoft's paravisor (HCL), as it stands in the TPM's NV memory. Nothing is verified here.

::

    0     "HCLA" | u32 version 1, 2 | u32 size (not to be relied on) | u32 request type 2 | u32 status 0 | 12 zeros
    32    hardware report, 1184 bytes: a SEV-SNP report, or a TDREPORT of 1024 bytes and zeros
    1216  u32 size (20 + N) | u32 version 1 | u32 type: 2 SNP, 4 TDX | u32 hash: 1 SHA-256 | u32 N
    1236  N bytes of JSON: the runtime claims; zeros up to the end

Integers are little-endian. Source: Microsoft, "Azure confidential VMs: guest attestation design", attestation report.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NoReturn

from adyton.attest import snp
from adyton.attest.azure.claims import RuntimeClaims, parse_claims
from adyton.attest.layout import Span, check_size
from adyton.errors import MalformedQuote

MAX_HCL_BYTES: Final = 4096
REPORT_AT: Final = 32
REPORT_BYTES: Final = 1184
DATA_AT: Final = REPORT_AT + REPORT_BYTES
CLAIMS_AT: Final = DATA_AT + 20
KIND_SNP: Final = 2
KIND_TDX: Final = 4
HASH_SHA256: Final = 1
TD_REPORT_BYTES: Final = 1024

_HEAD: Final = struct.Struct("<4sIIII12s")
_DATA: Final = struct.Struct("<5I")
_REQUEST: Final = 2

TD_REPORT_FIELDS: Final[dict[str, Span]] = {
    "report_type": Span(0, 4),
    "report_data": Span(128, 64),
    "td_attributes": Span(512, 8),
    "xfam": Span(520, 8),
    "mrtd": Span(528, 48),
    "mrconfigid": Span(576, 48),
    "mrowner": Span(624, 48),
    "mrownerconfig": Span(672, 48),
    "rtmr0": Span(720, 48),
    "rtmr1": Span(768, 48),
    "rtmr2": Span(816, 48),
    "rtmr3": Span(864, 48),
}
"""TDREPORT: field -> place (Intel TDX module base architecture, REPORTMACSTRUCT and TDINFO)."""


@dataclass(frozen=True, slots=True)
class TDREPORT:
    """A TDREPORT: only its own machine can check its MAC, so it counts for nothing without a quote that agrees."""

    raw: bytes

    def __post_init__(self) -> None:
        check_size(self.raw, TD_REPORT_BYTES, "TDREPORT")

    def field(self, name: str) -> bytes:
        """A field by name."""
        return TD_REPORT_FIELDS[name].of(self.raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class HCLReport:
    """The paravisor's report, unverified."""

    raw: bytes
    hardware: snp.SNPReport | TDREPORT
    claims_json: bytes
    """The runtime claims as they were hashed."""
    claims: RuntimeClaims


def _refuse(what: str, *, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the report of Azure's paravisor does not parse: {what}",
        check=f"HCL report: {what}",
        expected=expected,
        seen=seen,
        remedy="read it again from the TPM: NV index 0x01400001",
    )


def parse_hcl_report(raw: bytes) -> HCLReport:
    """Parse a paravisor's report, up to its last padding byte. Raises MalformedQuote."""
    if not CLAIMS_AT < len(raw) <= MAX_HCL_BYTES:
        _refuse("size", expected=f"{CLAIMS_AT + 1} to {MAX_HCL_BYTES} bytes", seen=f"{len(raw)} bytes")
    magic, version, _, request, status, reserved = _HEAD.unpack_from(raw)
    if magic != b"HCLA" or version not in (1, 2):
        _refuse("magic and version", expected="HCLA, 1 or 2", seen=f"{magic.hex()}, {version}")
    if request != _REQUEST or status != 0 or any(reserved):
        _refuse("request", expected=f"type {_REQUEST}, status 0, zeros", seen=f"type {request}, status {status}")
    size, data_version, kind, hashed, length = _DATA.unpack_from(raw, DATA_AT)
    if data_version != 1 or hashed != HASH_SHA256 or kind not in (KIND_SNP, KIND_TDX):
        _refuse(
            "runtime data",
            expected="version 1, type 2 (SNP) or 4 (TDX), hash 1 (SHA-256)",
            seen=f"version {data_version}, type {kind}, hash {hashed}",
        )
    end = CLAIMS_AT + length
    if size != _DATA.size + length or end > len(raw):
        _refuse("size of the runtime data", expected=f"{_DATA.size} + {length}, inside the report", seen=size)
    if any(raw[end:]):
        _refuse("padding", expected="zeros behind the runtime claims", seen="other bytes")
    claims = raw[CLAIMS_AT:end]
    return HCLReport(
        raw=bytes(raw),
        hardware=_hardware(raw[REPORT_AT:DATA_AT], kind),
        claims_json=claims,
        claims=parse_claims(claims),
    )


def _hardware(raw: bytes, kind: int) -> snp.SNPReport | TDREPORT:
    if kind == KIND_SNP:
        return snp.parse_report(raw)
    report, rest = raw[:TD_REPORT_BYTES], raw[TD_REPORT_BYTES:]
    if any(rest):
        _refuse("hardware report", expected="zeros behind the TDREPORT", seen="other bytes")
    found = TDREPORT(report)
    if found.field("report_type")[0] != 0x81:
        _refuse("hardware report", expected="type 0x81 (TDX)", seen=f"{report[0]:#x}")
    return found
