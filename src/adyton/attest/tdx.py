"""TDX quotes of versions 4 and 5 (TD 1.0, 1.5 and 1.5 extended): bytes to values and back. Nothing is verified here.

Source: Intel TDX DCAP quoting library API, "TD Quote Body"; Intel TDX module base architecture, "TDREPORT".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from adyton.attest.devices import NO_DEVICES
from adyton.attest.layout import Span, pack
from adyton.attest.quote import (
    BODY_BYTES,
    BODY_TD10,
    BODY_TD15,
    BODY_TD15_EXTENDED,
    TEE_TDX,
    QuoteHeader,
    SignatureData,
    put_together,
    refuse,
    signed_part,
    unpack,
)
from adyton.attest.workload_register import workload_register
from adyton.errors import UsageError
from adyton.values import Measurement

FIELDS: Final[dict[str, Span]] = {
    "tee_tcb_svn": Span(0, 16),
    "mrseam": Span(16, 48),
    "mrsigner_seam": Span(64, 48),
    "seam_attributes": Span(112, 8),
    "td_attributes": Span(120, 8),
    "xfam": Span(128, 8),
    "mrtd": Span(136, 48),
    "mrconfigid": Span(184, 48),
    "mrowner": Span(232, 48),
    "mrownerconfig": Span(280, 48),
    "rtmr0": Span(328, 48),
    "rtmr1": Span(376, 48),
    "rtmr2": Span(424, 48),
    "rtmr3": Span(472, 48),
    "report_data": Span(520, 64),
}
"""TD report 1.0: field -> place."""

FIELDS_15: Final[dict[str, Span]] = FIELDS | {"tee_tcb_svn2": Span(584, 16), "mrservicetd": Span(600, 48)}
"""TD report 1.5."""

FIELDS_15_EXTENDED: Final[dict[str, Span]] = FIELDS_15 | {
    "vmid": Span(648, 1),
    "td_id": Span(649, 32),
    "devinfo": Span(681, 48),
    "init_servtd_hash": Span(729, 48),
    "init_servtd_attr": Span(777, 8),
    "init_cpusvn": Span(785, 16),
    "init_tee_tcb_svn": Span(801, 16),
    "init_tee_fmspc": Span(817, 12),
    "curr_servtd_hash": Span(829, 48),
    "curr_servtd_attr": Span(877, 8),
}
"""TD report 1.5 extended."""

_LAYOUT: Final = {584: FIELDS, 648: FIELDS_15, 885: FIELDS_15_EXTENDED}
_BODY_TYPE: Final = {BODY_BYTES[kind]: kind for kind in (BODY_TD10, BODY_TD15, BODY_TD15_EXTENDED)}

ATTRIBUTE_DEBUG: Final = 0xFF
"""Bits 0 to 7: any of them means that the TD can be looked into."""
ATTRIBUTE_SEPT_VE_DISABLE: Final = 1 << 28
ATTRIBUTE_MIGRATABLE: Final = 1 << 29
KNOWN_ATTRIBUTES: Final = 0xFF | sum(1 << bit for bit in (16, 27, 28, 29, 30, 31, 62, 63))


@dataclass(frozen=True, slots=True)
class TDReport:
    """A TD report body of 584 (1.0), 648 (1.5) or 885 (1.5 extended) bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) not in _LAYOUT:
            refuse(
                f"a TD report has 584, 648 or 885 bytes, got {len(self.raw)}",
                check="size of the TD report",
                expected="584, 648 or 885 bytes",
                seen=f"{len(self.raw)} bytes",
            )

    @classmethod
    def build(cls, size: int = 584, **fields: bytes | int) -> Self:
        """Make a TD report of that size from named fields. Everything not named is zero."""
        return cls(pack(size, _LAYOUT[size], fields))

    def replace(self, **fields: bytes | int) -> Self:
        """The same report with some fields changed."""
        return type(self)(pack(len(self.raw), _LAYOUT[len(self.raw)], fields, self.raw))

    def to_bytes(self) -> bytes:
        """The report body."""
        return self.raw

    def field(self, name: str) -> bytes:
        """A field by name. Raises UsageError where this size of report has no such field."""
        layout = _LAYOUT[len(self.raw)]
        if name not in layout:
            raise UsageError(f"a TD report of {len(self.raw)} bytes has no field {name!r}")
        return layout[name].of(self.raw)

    @property
    def is_15(self) -> bool:
        """Whether it has the fields of TDX 1.5."""
        return len(self.raw) >= 648

    @property
    def tee_tcb_svn(self) -> bytes:
        """[0] the TDX module's SVN, [1] its major version, [2] the loader's; 16 bytes."""
        return FIELDS["tee_tcb_svn"].of(self.raw)

    @property
    def tee_tcb_svn2(self) -> bytes | None:
        """What `tee_tcb_svn` would be after a relaunch now (TDX 1.5), 16 bytes."""
        return FIELDS_15["tee_tcb_svn2"].of(self.raw) if self.is_15 else None

    @property
    def mrseam(self) -> bytes:
        """Measurement of the TDX module, 48 bytes."""
        return FIELDS["mrseam"].of(self.raw)

    @property
    def mrsigner_seam(self) -> bytes:
        """Signer of the TDX module, 48 bytes; zeros for Intel's."""
        return FIELDS["mrsigner_seam"].of(self.raw)

    @property
    def seam_attributes(self) -> bytes:
        """Attributes of the TDX module, 8 bytes; zeros."""
        return FIELDS["seam_attributes"].of(self.raw)

    @property
    def td_attributes(self) -> int:
        """TD attributes, a 64-bit mask."""
        return FIELDS["td_attributes"].number(self.raw)

    @property
    def debug(self) -> bool:
        """Whether the host may look into the TD."""
        return bool(self.td_attributes & ATTRIBUTE_DEBUG)

    @property
    def xfam(self) -> int:
        """Extended features that the TD may use, a 64-bit mask."""
        return FIELDS["xfam"].number(self.raw)

    @property
    def mrtd(self) -> bytes:
        """Measurement of the TD's initial contents, 48 bytes."""
        return FIELDS["mrtd"].of(self.raw)

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The four run-time measurement registers, 48 bytes each."""
        raw = self.raw
        return raw[328:376], raw[376:424], raw[424:472], raw[472:520]

    @property
    def mrservicetd(self) -> bytes | None:
        """Hash of the service TDs bound to this one (TDX 1.5), 48 bytes; zeros when there is none."""
        return FIELDS_15["mrservicetd"].of(self.raw) if self.is_15 else None

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the TD chose."""
        return FIELDS["report_data"].of(self.raw)


@dataclass(frozen=True, slots=True)
class TDXQuote:
    """A parsed TDX quote. Everything in it is unverified."""

    header: QuoteHeader
    report: TDReport
    signature: SignatureData
    padding: int = 0
    """Zero bytes that followed the quote."""

    @property
    def version(self) -> int:
        """Quote version: 4 or 5."""
        return self.header.version

    @property
    def signed_part(self) -> bytes:
        """The bytes under the attestation key's signature."""
        return signed_part(self.header, self.report.raw, _BODY_TYPE[len(self.report.raw)])

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the TD chose."""
        return self.report.report_data

    def to_bytes(self) -> bytes:
        """The quote as it was parsed, byte for byte."""
        return put_together(self.signed_part, self.signature, self.version, self.padding)


def parse_quote(raw: bytes) -> TDXQuote:
    """Parse a TDX quote. Raises MalformedQuote."""
    header, body, signature, padding = unpack(raw)
    if header.tee_type != TEE_TDX:
        refuse(
            "this is a quote of SGX, not of TDX", check="TEE type", expected="0x81 (TDX)", seen=f"{header.tee_type:#x}"
        )
    return TDXQuote(header, TDReport(body), signature, padding)


def workload_rtmr3(workload: Measurement, devices: bytes = NO_DEVICES) -> Measurement:
    """RTMR3 while this workload runs on a machine with these devices (`attest.workload_register`, SHA-384)."""
    return Measurement(workload_register(workload, devices, bank="sha384"))
