"""`image.json`: what a guest image consists of, and what hardware will report when it boots. Pure.

The document is parsed strictly: exactly these members, each of its one type, and no length above its limit. It comes
from the image's builder. `adyton image measure` says whether it agrees with the image's files, and not what is in them.
So whoever did not build the image builds it, too, and compares, before she approves it. docs/registers.md has every
member.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from adyton.attest.tdx_boot import TABLES
from adyton.errors import Error, UsageError
from adyton.manifest.measure import combine
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object
from adyton.values import Digest, Measurement

FORMAT: Final = "adyton-guest-image/1"
MAX_BYTES: Final = 1 << 20
MAX_INPUTS: Final = 4096
MAX_FILES: Final = 64
MAX_PARTS: Final = 256
MAX_ENTRIES: Final = 1024
"""Most entries of `tdx`, and of `snp`."""
MAX_COMMAND_LINE_CHARACTERS: Final = 2047
"""The kernel's limit of x86, without the NUL at the end."""

FILES: Final = ("adyton.efi", "disk.raw", "root.erofs", "root.verity")
"""The files that every image has."""
BOOTS: Final = ("disk-boot", "kernel-boot")
"""Ways to boot: from the disk's boot entry; or by QEMU's `-kernel`. They leave different values in PCR 4 and RTMR1."""
PAGE_ORDERS: Final = ("single-pass", "two-pass")
"""The order in which a host adds and measures the firmware's pages: QEMU from 9.0 on; and before."""
PCRS: Final = ("4", "11", "12", "13")
ZERO_PCRS: Final = ("12", "13")
"""Registers that must hold zeros: a value there means companion files or load options that no owner approved."""
BANKS: Final[Mapping[str, int]] = MappingProxyType({"sha256": 32, "sha384": 48})
COVERED: Final = ("cmdline", "initrd", "kernel")
"""What a SEV-SNP launch digest can cover besides the firmware. It never covers the host's ACPI tables."""

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TEXT: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A package or wheel that the image was built from."""

    name: str
    version: str
    sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A file of the image: its SHA-256, and its size in bytes."""

    sha256: Digest
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """The dm-verity tree over the root file system. Block sizes are 4096 bytes and the hash is SHA-256, always."""

    root_hash: Digest
    salt: bytes
    data_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PEHashes:
    """Authenticode hashes of a PE file: SHA-256 (32 bytes) and SHA-384 (48 bytes)."""

    sha256: bytes
    sha384: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """A firmware file, by the name that people call it and its SHA-256."""

    name: str
    sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTables:
    """RTMR0 with the ACPI tables that this version of QEMU writes for this shape of machine."""

    rtmr0: Measurement
    qemu: str
    machine: str
    tables: Mapping[str, Measurement] | None = None
    """SHA-384 of each of QEMU's files, by the names of `attest.tdx_boot.TABLES`. None where they are not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDXEntry:
    """What a TDX module reports of this image under one firmware, loaded and booted in one way."""

    firmware: Firmware
    page_order: str
    mrtd: Measurement
    rtmr1: Measurement
    rtmr2: Measurement
    boot: str
    acpi: HostTables | None = None
    """None where the host's ACPI tables are not known. Then nothing pins RTMR0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPEntry:
    """What SEV-SNP reports of this image under one firmware, with so many processors of one type."""

    firmware: Firmware
    vcpus: int
    vcpu_type: str
    guest_features: int
    launch_digest: Measurement
    covers: tuple[str, ...]
    """What the launch digest covers besides the firmware: names out of COVERED, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """The whole document."""

    version: str
    """The release of Adyton in the image."""
    source_date_epoch: int
    inputs: tuple[Input, ...]
    files: Mapping[str, ImageFile]
    verity: Verity
    command_line: str
    runtime: Mapping[str, Digest]
    """Part -> digest, as the runtime identity takes it (docs/measurement.md)."""
    uki: PEHashes
    linux: PEHashes
    pcrs: Mapping[str, Mapping[str, Mapping[str, bytes]]]
    """Boot -> bank -> number of the register, as text -> value."""
    tdx: tuple[TDXEntry, ...] = ()
    snp: tuple[SNPEntry, ...] = ()

    @property
    def runtime_identity(self) -> Digest:
        """The identity of the Adyton in the image, as the workload measurement takes it."""
        return combine(self.runtime)

    def pcr(self, boot: str, number: int, bank: str = "sha256") -> bytes:
        """The predicted value of a PCR. Raises KeyError where the document does not predict it."""
        return self.pcrs[boot][bank][str(number)]

    def to_dict(self) -> dict[str, Any]:
        """The document as plain data."""
        return {
            "format": FORMAT,
            "version": self.version,
            "architecture": "x86_64",
            "source_date_epoch": self.source_date_epoch,
            "inputs": [
                {"name": item.name, "version": item.version, "sha256": item.sha256.hex()} for item in self.inputs
            ],
            "files": {
                name: {"sha256": file.sha256.hex(), "bytes": file.bytes} for name, file in sorted(self.files.items())
            },
            "verity": {
                "root_hash": self.verity.root_hash.hex(),
                "salt": self.verity.salt.hex(),
                "data_blocks": self.verity.data_blocks,
                "data_block_size": 4096,
                "hash_block_size": 4096,
                "hash": "sha256",
            },
            "command_line": self.command_line,
            "runtime": {
                "identity": self.runtime_identity.hex(),
                "parts": {name: digest.hex() for name, digest in sorted(self.runtime.items())},
            },
            "pe": {"uki": _hashes(self.uki), "linux": _hashes(self.linux)},
            "pcrs": {
                boot: {
                    bank: {number: value.hex() for number, value in values.items()} for bank, values in banks.items()
                }
                for boot, banks in self.pcrs.items()
            },
            "tdx": [_tdx(entry) for entry in self.tdx],
            "snp": [_snp(entry) for entry in self.snp],
        }

    def to_bytes(self) -> bytes:
        """The document's one canonical form: ASCII JSON, names sorted, indented by two spaces, one newline at the end.

        It is parsed again first, so nothing is written that would be refused when it is read. Raises UsageError.
        """
        raw = (json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n").encode("ascii")
        parse_image(raw)
        return raw


def parse_image(raw: bytes) -> GuestImage:
    """Parse `image.json`. Spaces and the order of members do not matter. Raises UsageError for everything else."""
    top = TypedDocument(
        parse_json_object(raw, what="guest image document", refuse=UsageError, limit_bytes=MAX_BYTES), _wrong
    )
    top.only(
        {"format", "version", "architecture", "source_date_epoch", "inputs", "files", "verity", "command_line"}
        | {"runtime", "pe", "pcrs", "tdx", "snp"}
    )
    _exactly(top, "format", FORMAT)
    _exactly(top, "architecture", "x86_64")
    pe = top.inner("pe")
    pe.only({"uki", "linux"})
    return GuestImage(
        version=_text(top, "version", 64),
        source_date_epoch=top.number("source_date_epoch", 1 << 40),
        inputs=tuple(_input(item) for item in top.inner_list("inputs", MAX_INPUTS)),
        files=_files(top),
        verity=_verity(top.inner("verity")),
        command_line=_text(top, "command_line", MAX_COMMAND_LINE_CHARACTERS),
        runtime=_runtime(top.inner("runtime")),
        uki=_pe(pe.inner("uki")),
        linux=_pe(pe.inner("linux")),
        pcrs=_pcrs(top.inner("pcrs")),
        tdx=tuple(_tdx_entry(item) for item in top.inner_list("tdx", MAX_ENTRIES)),
        snp=tuple(_snp_entry(item) for item in top.inner_list("snp", MAX_ENTRIES)),
    )


def _wrong(place: str, expected: str, seen: str) -> Error:
    return UsageError(
        f"the guest image document is wrong: {place}: expected {expected}, seen {seen[:160]}",
        check=f"guest image: {place}",
        expected=expected,
        seen=seen[:160],
        remedy="take the image.json that `adyton image build` or `adyton image measure` wrote",
    )


def _text(document: TypedDocument, name: str, limit: int) -> str:
    value = document.text(name, limit)
    if _TEXT.fullmatch(value) is None:
        raise document.wrong(name, "printable ASCII, not empty, no space at either end", "something else")
    return value


def _exactly(document: TypedDocument, name: str, expected: str | int) -> None:
    value = document[name]
    if type(value) is not type(expected) or value != expected:
        raise document.wrong(name, repr(expected), repr(value)[:80])


def _choice(document: TypedDocument, name: str, allowed: tuple[str, ...]) -> str:
    value = document.text(name)
    if value not in allowed:
        raise document.wrong(name, " or ".join(allowed), value[:80])
    return value


def _input(item: TypedDocument) -> Input:
    item.only({"name", "version", "sha256"})
    return Input(
        name=_text(item, "name", 128),
        version=_text(item, "version", 128),
        sha256=Digest(item.hexadecimal("sha256", 32)),
    )


def _files(top: TypedDocument) -> Mapping[str, ImageFile]:
    files = top.inner("files")
    if not set(FILES) <= set(files) or len(files) > MAX_FILES or not all(map(_FILE_NAME.fullmatch, files)):
        raise top.wrong(
            "files", f"{', '.join(FILES)}, and at most {MAX_FILES} plain names in all", f"{len(files)} names"
        )
    found = {}
    for name in sorted(files):
        file = files.inner(name)
        file.only({"sha256", "bytes"})
        found[name] = ImageFile(sha256=Digest(file.hexadecimal("sha256", 32)), bytes=file.number("bytes", 1 << 50))
    return MappingProxyType(found)


def _verity(document: TypedDocument) -> Verity:
    document.only({"root_hash", "salt", "data_blocks", "data_block_size", "hash_block_size", "hash"})
    for name in ("data_block_size", "hash_block_size"):
        _exactly(document, name, 4096)
    _exactly(document, "hash", "sha256")
    salt = document.text("salt", 512)
    return Verity(
        root_hash=Digest(document.hexadecimal("root_hash", 32)),
        salt=document.hexadecimal("salt", max(1, len(salt) // 2)),
        data_blocks=document.number("data_blocks", 1 << 40),
    )


def _runtime(document: TypedDocument) -> Mapping[str, Digest]:
    document.only({"identity", "parts"})
    parts = document.inner("parts")
    if not 1 <= len(parts) <= MAX_PARTS or not all(len(name) <= 128 and _TEXT.fullmatch(name) for name in parts):
        raise document.wrong("parts", f"1 to {MAX_PARTS} parts with names of printable ASCII", f"{len(parts)} members")
    found = {name: Digest(parts.hexadecimal(name, 32)) for name in sorted(parts)}
    identity = Digest(document.hexadecimal("identity", 32))
    if combine(found) != identity:
        raise document.wrong("identity", f"{combine(found)}, as the parts give it", str(identity))
    return MappingProxyType(found)


def _pe(document: TypedDocument) -> PEHashes:
    document.only(BANKS)
    return PEHashes(**{bank: document.hexadecimal(bank, size) for bank, size in BANKS.items()})


def _pcrs(document: TypedDocument) -> Mapping[str, Mapping[str, Mapping[str, bytes]]]:
    document.only(BOOTS)
    found: dict[str, Mapping[str, Mapping[str, bytes]]] = {}
    for boot in BOOTS:
        banks = document.inner(boot)
        banks.only(BANKS)
        values: dict[str, Mapping[str, bytes]] = {}
        for bank, size in BANKS.items():
            registers = banks.inner(bank)
            registers.only(PCRS)
            values[bank] = MappingProxyType({number: registers.hexadecimal(number, size) for number in PCRS})
            for number in PCRS:
                if any(values[bank][number]) is (number in ZERO_PCRS):
                    expected = "zeros" if number in ZERO_PCRS else "a register that something was measured into"
                    raise registers.wrong(number, expected, values[bank][number].hex())
        found[boot] = MappingProxyType(values)
    return MappingProxyType(found)


def _firmware(document: TypedDocument) -> Firmware:
    document.only({"name", "sha256"})
    return Firmware(name=_text(document, "name", 128), sha256=Digest(document.hexadecimal("sha256", 32)))


def _tdx_entry(item: TypedDocument) -> TDXEntry:
    item.only({"firmware", "page_order", "mrtd", "rtmr1", "rtmr2", "boot"}, {"acpi"})
    tables = None
    if "acpi" in item:
        acpi = item.inner("acpi")
        acpi.only({"rtmr0", "qemu", "machine"}, {"tables"})
        named = None
        if "tables" in acpi:
            inner = acpi.inner("tables")
            inner.only(TABLES)
            named = MappingProxyType({name: _register(inner, name) for name in TABLES})
        tables = HostTables(
            rtmr0=_register(acpi, "rtmr0"),
            qemu=_text(acpi, "qemu", 64),
            machine=_text(acpi, "machine", 256),
            tables=named,
        )
    return TDXEntry(
        firmware=_firmware(item.inner("firmware")),
        page_order=_choice(item, "page_order", PAGE_ORDERS),
        mrtd=_register(item, "mrtd"),
        rtmr1=_register(item, "rtmr1"),
        rtmr2=_register(item, "rtmr2"),
        boot=_choice(item, "boot", BOOTS),
        acpi=tables,
    )


def _snp_entry(item: TypedDocument) -> SNPEntry:
    item.only({"firmware", "vcpus", "vcpu_type", "guest_features", "launch_digest", "covers"})
    covers = item.texts("covers", len(COVERED))
    if covers != sorted(set(covers) & set(COVERED)):
        raise item.wrong("covers", f"names out of {', '.join(COVERED)}, sorted, each once", "something else")
    vcpus = item.number("vcpus", 4096)
    if vcpus == 0:
        raise item.wrong("vcpus", "1 to 4096", "0")
    return SNPEntry(
        firmware=_firmware(item.inner("firmware")),
        vcpus=vcpus,
        vcpu_type=_text(item, "vcpu_type", 64),
        guest_features=item.number("guest_features", (1 << 64) - 1),
        launch_digest=_register(item, "launch_digest"),
        covers=tuple(covers),
    )


def _register(document: TypedDocument, name: str) -> Measurement:
    raw = document.hexadecimal(name, 48)
    if not any(raw):
        raise document.wrong(name, "a register that something was measured into", "zeros")
    return Measurement(raw)


def _hashes(hashes: PEHashes) -> dict[str, str]:
    return {"sha256": hashes.sha256.hex(), "sha384": hashes.sha384.hex()}


def _tdx(entry: TDXEntry) -> dict[str, Any]:
    found: dict[str, Any] = {
        "firmware": {"name": entry.firmware.name, "sha256": entry.firmware.sha256.hex()},
        "page_order": entry.page_order,
        "mrtd": entry.mrtd.hex(),
        "rtmr1": entry.rtmr1.hex(),
        "rtmr2": entry.rtmr2.hex(),
        "boot": entry.boot,
    }
    if entry.acpi is not None:
        found["acpi"] = {
            "rtmr0": entry.acpi.rtmr0.hex(),
            "qemu": entry.acpi.qemu,
            "machine": entry.acpi.machine,
        }
        if entry.acpi.tables is not None:
            found["acpi"]["tables"] = {name: value.hex() for name, value in entry.acpi.tables.items()}
    return found


def _snp(entry: SNPEntry) -> dict[str, Any]:
    return {
        "firmware": {"name": entry.firmware.name, "sha256": entry.firmware.sha256.hex()},
        "vcpus": entry.vcpus,
        "vcpu_type": entry.vcpu_type,
        "guest_features": entry.guest_features,
        "launch_digest": entry.launch_digest.hex(),
        "covers": list(entry.covers),
    }
