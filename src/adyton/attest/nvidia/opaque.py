"""The opaque data of a report: what the device says of itself, as a sequence of {type u16, size u16, data}.

A field of an unknown type is kept and reported. A type that comes twice is refused: two readers could take two values.
Source: NVIDIA's verifiers (nvtrust, attestation-sdk); the types and their meaning are theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC0_STATUS: Final = 11
CHIP_SKU: Final = 15
PROJECT: Final = 17
PROJECT_SKU: Final = 18
FWID: Final = 20
PROTECTED_PCIE_STATUS: Final = 21
SWITCH_PDI: Final = 22
SWITCH_GPU_PDIS: Final = 26
OPAQUE_DATA_VERSION: Final = 34
CHIP_INFO: Final = 35
FEATURE_FLAG: Final = 36
INVALID: Final = 255

KNOWN: Final = frozenset({*range(1, 27), *range(32, 37)})
NVDEC0_DISABLED: Final = 0x55
NVDEC0_ENABLED: Final = 0xAA
PPCIE_ON: Final = 0xAA
FWID_BYTES: Final = 48
PDI_BYTES: Final = 8
_MAX_VERSION: Final = 1
_VBIOS_BYTES: Final = 8
_GPUS_OF_SWITCH: Final = 8
_FEATURES: Final = {0: "mpt", 1: "spt", 2: "ppcie"}
_TEXT: Final = re.compile(rb"[A-Za-z0-9._-]{1,32}")


def _malformed(what: str, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the report's opaque data do not parse: {what}",
        check="parse of the report's opaque data",
        expected=expected,
        seen=seen,
    )


@dataclass(frozen=True)
class Opaque:
    """The fields by type, as they stand in the report. Each property parses one of them."""

    fields: Mapping[int, bytes]

    def _text(self, kind: int, what: str) -> str | None:
        """An ASCII text with NULs behind it. None where the field is absent."""
        raw = self.fields.get(kind)
        if raw is None:
            return None
        content = raw.rstrip(b"\0")
        if _TEXT.fullmatch(content) is None:
            _malformed(what, "1 to 32 of A-Z, a-z, 0-9, dot, dash and underscore", raw[:40].hex())
        return content.decode("ascii")

    @property
    def driver(self) -> str | None:
        """Version of the driver, such as "550.144.03". An NVSwitch has none."""
        return self._text(DRIVER_VERSION, "the driver version")

    @property
    def vbios(self) -> str | None:
        """Version of the VBIOS in upper case, such as "96.00.5E.00.01".

        GPUs give 8 bytes: the first four in reverse order, then the fifth. NVSwitches give ASCII.
        """
        raw = self.fields.get(VBIOS_VERSION)
        if raw is None:
            return None
        if len(raw) != _VBIOS_BYTES:
            text = self._text(VBIOS_VERSION, "the VBIOS version")
            return None if text is None else text.upper()
        if any(raw[5:]):
            _malformed("the VBIOS version", "five bytes and three zeros", raw.hex())
        return ".".join(f"{byte:02X}" for byte in (*raw[3::-1], raw[4]))

    @property
    def project(self) -> str | None:
        """Project, a part of the VBIOS RIM's id."""
        return self._text(PROJECT, "the project")

    @property
    def project_sku(self) -> str | None:
        """SKU of the project, a part of the VBIOS RIM's id."""
        return self._text(PROJECT_SKU, "the project SKU")

    @property
    def chip_sku(self) -> str | None:
        """SKU of the chip, a part of the VBIOS RIM's id."""
        return self._text(CHIP_SKU, "the chip SKU")

    @property
    def chip_info(self) -> str | None:
        """Name of the chip, a part of the driver RIM's id on Blackwell."""
        return self._text(CHIP_INFO, "the chip info")

    @property
    def fwid(self) -> bytes | None:
        """Firmware id (48 bytes) that must be in the leaf certificate. Old firmware does not state it."""
        raw = self.fields.get(FWID)
        if raw is not None and len(raw) != FWID_BYTES:
            _malformed("the FWID", f"{FWID_BYTES} bytes", f"{len(raw)} bytes")
        return raw

    @property
    def nvdec0_disabled(self) -> bool:
        """Whether NVDEC0 is disabled. Measurement 35 is not compared then."""
        return self._flag(NVDEC0_STATUS, "the NVDEC0 status") == NVDEC0_DISABLED

    @property
    def protected_pcie(self) -> bool:
        """Whether protected PCIe (eight GPUs behind NVSwitches) is on."""
        return self._flag(PROTECTED_PCIE_STATUS, "the protected PCIe status") == PPCIE_ON

    def _flag(self, kind: int, what: str) -> int | None:
        raw = self.fields.get(kind)
        if raw is None:
            return None
        if raw not in (b"\xaa", b"\x55"):
            _malformed(what, "AA or 55", raw[:8].hex())
        return raw[0]

    @property
    def switch_pdis(self) -> tuple[bytes, ...]:
        """Of a GPU: what it says of the NVSwitches at its links. Of an NVSwitch: its own identity. 8 bytes each."""
        raw = self.fields.get(SWITCH_PDI, b"")
        if len(raw) % PDI_BYTES:
            _malformed("the switch identities", f"a multiple of {PDI_BYTES} bytes", f"{len(raw)} bytes")
        return tuple(raw[at : at + PDI_BYTES] for at in range(0, len(raw), PDI_BYTES))

    @property
    def linked_switches(self) -> frozenset[bytes]:
        """Of a GPU: the identities of the NVSwitches at its links, as those name themselves (8 bytes each).

        A GPU writes their bytes in the reverse order, and zeros for a link that is off (NVIDIA's topology check; a
        recorded GPU names a recorded NVSwitch so).
        """
        return frozenset(pdi[::-1] for pdi in self.switch_pdis if any(pdi))

    @property
    def gpu_pdis(self) -> tuple[bytes, ...]:
        """Of an NVSwitch: identities of the GPUs that it connects (8 bytes each). A map of its ports follows them."""
        raw = self.fields.get(SWITCH_GPU_PDIS)
        if raw is None:
            return ()
        if len(raw) < _GPUS_OF_SWITCH * PDI_BYTES:
            _malformed("the GPU identities", f"at least {_GPUS_OF_SWITCH * PDI_BYTES} bytes", f"{len(raw)} bytes")
        return tuple(raw[at : at + PDI_BYTES] for at in range(0, _GPUS_OF_SWITCH * PDI_BYTES, PDI_BYTES))

    @property
    def feature(self) -> str | None:
        """The mode of confidential computing: mpt, spt or ppcie. None where the firmware does not state it."""
        raw = self.fields.get(FEATURE_FLAG)
        if raw is None:
            return None
        value = int.from_bytes(raw, "little")
        if value not in _FEATURES:
            _malformed("the feature flag", "0 (mpt), 1 (spt) or 2 (ppcie)", raw[:8].hex())
        return _FEATURES[value]

    @property
    def unknown(self) -> tuple[int, ...]:
        """Types that this module does not know, sorted."""
        return tuple(sorted(set(self.fields) - KNOWN))


def parse_opaque(raw: bytes) -> Opaque:
    """Parse the opaque data. Raises MalformedQuote."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(raw):
        kind, size = (int.from_bytes(raw[at + step : at + step + 2], "little") for step in (0, 2))
        end = at + 4 + size
        if at + 4 > len(raw) or end > len(raw):
            _malformed("a field", "fields that fill the data", f"field {kind} with {size} bytes at {at}")
        if kind in fields or kind == INVALID:
            _malformed("a field", "every type once, and none invalid", f"type {kind}")
        fields[kind] = raw[at + 4 : end]
        at = end
    found = Opaque(fields)
    version = int.from_bytes(fields.get(OPAQUE_DATA_VERSION, b""), "little")
    if version > _MAX_VERSION:
        _malformed("its version", f"at most {_MAX_VERSION}", version)
    # Every field that is judged later has to parse now, so that a report is refused as a whole or not at all.
    _ = found.driver, found.vbios, found.project, found.project_sku, found.chip_sku, found.chip_info, found.fwid
    _ = found.nvdec0_disabled, found.protected_pcie, found.switch_pdis, found.gpu_pdis, found.feature
    return found
