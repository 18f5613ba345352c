"""The events that firmware, stub and kernel measure when an image boots, and the registers that follow. Pure.

Sources: TCG PC Client Platform Firmware Profile 1.06, chapters 3 and 10 (PCR use, events of EFI boots); EDK2's
DxeTpm2MeasureBootLib and TdTcg2Dxe; systemd's src/boot/measure.c; the kernel's drivers/firmware/efi/libstub. A boot
under OVMF and swtpm leaves exactly these values in PCR 4, 5, 9 and 11, in both banks (docs/tested.md).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from adyton.attest.tpm.pe import authenticode
from adyton.attest.workload_register import extend
from adyton.image.cpio import as_booted
from adyton.image.document import BANKS, BOOTS, PCRS
from adyton.image.uki import MEASURED, UKI

_CALLING: Final = b"Calling EFI Application from Boot Option"
_SEPARATOR: Final = bytes(4)
_EXITING: Final = b"Exit Boot Services Invocation"
_EXITED: Final = b"Exit Boot Services Returned with Success"

Hash = Callable[[bytes], bytes]
Bank = Literal["sha256", "sha384"]
_BANKS: Final[tuple[Bank, ...]] = ("sha256", "sha384")


@dataclass(frozen=True, slots=True)
class ImageHashes:
    """The digests of an image's own parts in one bank."""

    bank: Bank
    uki: bytes
    linux: bytes
    sections: tuple[bytes, ...]
    """The events of PCR 11."""
    kernel: tuple[bytes, ...]
    """The events of PCR 9: the command line and the initrd as the kernel finds them."""

    @classmethod
    def create(cls, uki: UKI, bank: Bank) -> ImageHashes:
        """Hash an image's parts. Raises MalformedQuote where firmware would not start it."""
        hashed = _hash(bank)
        sections: list[bytes] = []
        for name in MEASURED:
            sections += [hashed(name.encode("ascii") + b"\0"), hashed(uki.sections[name])]
        initrd = as_booted(uki.sections[".initrd"], uki.sections[".osrel"])
        kernel = (hashed(load_options(uki.command_line)), hashed(initrd))
        return cls(bank, authenticode(uki.file.raw, bank), authenticode(uki.linux, bank), tuple(sections), kernel)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one boot leaves in the registers: PCRs by bank and number, and RTMR1 and RTMR2."""

    pcrs: Mapping[str, Mapping[str, bytes]]
    rtmr1: bytes
    rtmr2: bytes


def predict(uki: UKI, partition_table: bytes) -> Mapping[str, Predicted]:
    """Boot -> registers. `partition_table` is what `gpt.measured_table` gives. Nothing is measured into PCR 12 and 13.

    Raises MalformedQuote where firmware would not start the image.
    """
    hashes = {bank: ImageHashes.create(uki, bank) for bank in _BANKS}
    found: dict[str, Predicted] = {}
    for boot in BOOTS:
        values: dict[str, Mapping[str, bytes]] = {}
        for bank, of in hashes.items():
            zeros = bytes(BANKS[bank])
            four, eleven = replay(applications(of, boot), bank), replay(of.sections, bank)
            values[bank] = MappingProxyType(dict(zip(PCRS, (four, eleven, zeros, zeros), strict=True)))
        found[boot] = Predicted(MappingProxyType(values), *tdx_registers(hashes["sha384"], boot, partition_table))
    return MappingProxyType(found)


def applications(of: ImageHashes, boot: str) -> tuple[bytes, ...]:
    """The events of PCR 4.

    With `-kernel` QEMU's firmware loads the UKI before it says that it starts a boot option. From a disk it says so
    first.
    """
    hashed = _hash(of.bank)
    started = (hashed(_CALLING), hashed(_SEPARATOR))
    return (*started, of.uki, of.linux) if boot == BOOTS[0] else (of.uki, *started, of.linux)


def tdx_registers(of: ImageHashes, boot: str, partition_table: bytes) -> tuple[bytes, bytes]:
    """RTMR1 and RTMR2 of a TDX guest, 48 bytes each.

    RTMR1 takes what a TPM takes into PCR 2 to 6, with one separator for all. RTMR2 takes PCR 8 to 15 (TCG PC Client
    profile; UEFI 2.10, section 38.4.1). Before the disk's boot entry starts, its partition table is measured.
    """
    hashed = _hash(of.bank)
    events = list(applications(of, boot))
    if boot == BOOTS[0]:
        events.insert(2, hashed(partition_table))
    events += [hashed(_EXITING), hashed(_EXITED)]
    return replay(events, of.bank), replay([*of.sections, *of.kernel], of.bank)


def replay(digests: Iterable[bytes], bank: str) -> bytes:
    """The value of a register that started at zeros, after these events in their order."""
    value = bytes(BANKS[bank])
    for digest in digests:
        value = extend(value, digest, bank=bank)
    return value


def load_options(command_line: str) -> bytes:
    """What the kernel measures as its command line: UTF-16, little-endian, with a NUL."""
    return struct.pack(f"<{len(command_line) + 1}H", *command_line.encode("ascii"), 0)


def _hash(bank: str) -> Hash:
    return lambda raw: hashlib.new(bank, raw).digest()
