"""SEV-SNP attestation reports, versions 2 to 5: bytes to values and back. Nothing is verified here.

Source: AMD, SEV Secure Nested Paging Firmware ABI Specification (56860), "ATTESTATION_REPORT".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from adyton.attest.layout import Span, check_size, pack
from adyton.attest.quote import refuse
from adyton.attest.snp_table import build_table, parse_table

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0

FIELDS: Final[dict[str, Span]] = {
    "version": Span(0x000, 4),
    "guest_svn": Span(0x004, 4),
    "policy": Span(0x008, 8),
    "family_id": Span(0x010, 16),
    "image_id": Span(0x020, 16),
    "vmpl": Span(0x030, 4),
    "signature_algorithm": Span(0x034, 4),
    "current_tcb": Span(0x038, 8),
    "platform_info": Span(0x040, 8),
    "key_info": Span(0x048, 4),
    "reserved0": Span(0x04C, 4),
    "report_data": Span(0x050, 64),
    "measurement": Span(0x090, 48),
    "host_data": Span(0x0C0, 32),
    "id_key_digest": Span(0x0E0, 48),
    "author_key_digest": Span(0x110, 48),
    "report_id": Span(0x140, 32),
    "report_id_ma": Span(0x160, 32),
    "reported_tcb": Span(0x180, 8),
    "cpuid_family": Span(0x188, 1),
    "cpuid_model": Span(0x189, 1),
    "cpuid_stepping": Span(0x18A, 1),
    "reserved1": Span(0x18B, 21),
    "chip_id": Span(0x1A0, 64),
    "committed_tcb": Span(0x1E0, 8),
    "current_build": Span(0x1E8, 1),
    "current_minor": Span(0x1E9, 1),
    "current_major": Span(0x1EA, 1),
    "reserved2": Span(0x1EB, 1),
    "committed_build": Span(0x1EC, 1),
    "committed_minor": Span(0x1ED, 1),
    "committed_major": Span(0x1EE, 1),
    "reserved3": Span(0x1EF, 1),
    "launch_tcb": Span(0x1F0, 8),
    "launch_mitigations": Span(0x1F8, 8),
    "current_mitigations": Span(0x200, 8),
    "reserved4": Span(0x208, 152),
    "signature_r": Span(0x2A0, 72),
    "signature_s": Span(0x2E8, 72),
    "reserved5": Span(0x330, 368),
}
"""Field -> place. The fields fill the report."""

POLICY_SMT: Final = 1 << 16
POLICY_MUST_BE_ONE: Final = 1 << 17
POLICY_MIGRATE_MA: Final = 1 << 18
POLICY_DEBUG: Final = 1 << 19
POLICY_SINGLE_SOCKET: Final = 1 << 20

PLATFORM_SMT: Final = 1 << 0
PLATFORM_TSME: Final = 1 << 1
PLATFORM_ALIAS_CHECK: Final = 1 << 5

KEY_VCEK: Final = 0
KEY_VLEK: Final = 1
KEY_NONE: Final = 7

TURIN_FAMILY: Final = 0x1A


@dataclass(frozen=True, slots=True, order=False)
class TCBVersion:
    """The security versions of AMD's firmware parts. `fmc` exists from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    @classmethod
    def parse(cls, raw: bytes, *, turin: bool) -> Self:
        """Read a TCB_VERSION, 8 bytes, in the layout of the product."""
        if turin:
            return cls(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
        return cls(bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])

    def to_bytes(self) -> bytes:
        """The 8 bytes, in Turin's layout where there is an FMC."""
        if self.fmc is not None:
            return bytes((self.fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode))
        return bytes((self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode))

    def to_dict(self) -> dict[str, int]:
        """Part -> security version."""
        parts = {"fmc": self.fmc, "bootloader": self.bootloader, "tee": self.tee, "snp": self.snp}
        return {name: svn for name, svn in parts.items() if svn is not None} | {"microcode": self.microcode}

    def below(self, minimum: TCBVersion) -> list[str]:
        """The parts whose version is under the minimum."""
        mine = self.to_dict()
        return [name for name, svn in minimum.to_dict().items() if mine.get(name, -1) < svn]

    def __str__(self) -> str:
        return ", ".join(f"{name} {svn}" for name, svn in self.to_dict().items())


@dataclass(frozen=True, slots=True)
class SNPReport:
    """An attestation report, unverified. The fields are read from the bytes as they are asked for."""

    raw: bytes
    vlek: bytes | None = None
    """The VLEK certificate (DER) that came behind the report, from the host and unverified."""

    def __post_init__(self) -> None:
        check_size(self.raw, REPORT_BYTES, "SEV-SNP report")

    @classmethod
    def build(cls, **fields: bytes | int) -> Self:
        """Make a report from named fields. Everything not named is zero."""
        return cls(pack(REPORT_BYTES, FIELDS, fields))

    def replace(self, **fields: bytes | int) -> Self:
        """The same report with some fields changed."""
        return type(self)(pack(REPORT_BYTES, FIELDS, fields, self.raw))

    def to_bytes(self) -> bytes:
        """The 1184 bytes, and behind them a table with the VLEK where there is one."""
        return self.raw if self.vlek is None else self.raw + build_table({"VLEK": self.vlek})

    def field(self, name: str) -> bytes:
        """A field by name."""
        return FIELDS[name].of(self.raw)

    def number(self, name: str) -> int:
        """A field by name, as an integer."""
        return FIELDS[name].number(self.raw)

    @property
    def version(self) -> int:
        """Report version."""
        return self.number("version")

    @property
    def policy(self) -> int:
        """The guest's policy, a 64-bit mask."""
        return self.number("policy")

    @property
    def debug(self) -> bool:
        """Whether the host may look into the guest."""
        return bool(self.policy & POLICY_DEBUG)

    @property
    def signing_key(self) -> int:
        """Which key signed: 0 VCEK, 1 VLEK, 7 none."""
        return self.number("key_info") >> 2 & 7

    @property
    def masks_chip_key(self) -> bool:
        """Whether the host masked the chip's *key* (MASK_CHIP_KEY). It says nothing of the chip id."""
        return bool(self.number("key_info") & 2)

    @property
    def masks_chip_id(self) -> bool:
        """Whether the host masked the chip *id* (MASK_CHIP_ID): no bit says so, the id is zeros."""
        return not any(self.chip_id)

    @property
    def author_key_enabled(self) -> bool:
        """Whether the author key digest means anything."""
        return bool(self.number("key_info") & 1)

    @property
    def product(self) -> str | None:
        """Product name as AMD's key server uses it, from the CPUID fields; None in version 2 or where unknown."""
        family, model = self.number("cpuid_family"), self.number("cpuid_model")
        if family == 0x19 and model <= 0x0F:
            return "Milan"
        if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
            return "Genoa"
        if family == TURIN_FAMILY and model <= 0x1F:
            return "Turin"
        return None

    @property
    def measurement(self) -> bytes:
        """Launch measurement, 48 bytes."""
        return self.field("measurement")

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the guest chose."""
        return self.field("report_data")

    @property
    def chip_id(self) -> bytes:
        """Chip id, 64 bytes; zeros when masked."""
        return self.field("chip_id")

    @property
    def signed_part(self) -> bytes:
        """The bytes under the signature."""
        return self.raw[:SIGNED_BYTES]

    @property
    def signature(self) -> bytes | None:
        """The signature as r, s of 48 bytes each, big-endian. None where a half is too long for P-384."""
        r, s = self.field("signature_r"), self.field("signature_s")
        if any(r[48:]) or any(s[48:]):
            return None
        return r[47::-1] + s[47::-1]


def parse_extended_report(raw: bytes) -> SNPReport:
    """Parse a report of 1184 bytes with a certificate table behind it, of which only a VLEK is kept.

    A VCEK is left out, because AMD's service has it. Zeros behind the table are left out, too. Raises MalformedQuote.
    """
    report = parse_report(raw[:REPORT_BYTES])
    vlek = parse_table(raw[REPORT_BYTES:]).get("VLEK")
    return report if report.signing_key != KEY_VLEK else replace(report, vlek=vlek)


def parse_report(raw: bytes) -> SNPReport:
    """Parse an attestation report of exactly 1184 bytes. Raises MalformedQuote."""
    report = SNPReport(bytes(raw))
    if report.version not in (2, 3, 4, 5):
        refuse(
            f"SEV-SNP report version {report.version} is not known",
            check="report version",
            expected="2, 3, 4 or 5",
            seen=report.version,
        )
    if report.number("signature_algorithm") != 1:
        refuse(
            "the report is not signed with ECDSA P-384",
            check="signature algorithm",
            expected="1 (ECDSA P-384, SHA-384)",
            seen=report.number("signature_algorithm"),
        )
    if not report.policy & POLICY_MUST_BE_ONE:
        refuse("bit 17 of the guest policy is not set", check="guest policy", expected="bit 17 set", seen="clear")
    reserved = ["reserved0", "reserved1", "reserved2", "reserved3", "reserved4", "reserved5"]
    stray = [name for name in reserved if any(report.field(name))]
    if stray:
        refuse(
            "reserved fields of the report are not zero",
            check="reserved fields",
            expected="zeros",
            seen=", ".join(stray),
        )
    return report
