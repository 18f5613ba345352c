"""What hardware will report of an image, from the image's files alone. Pure.

Nothing is believed that can be computed: hashes, the verity tree, the disk, PCRs, RTMRs, launch digests. What cannot
be computed from the files is the builder's word: the list of inputs, the release, and the runtime's identity.

So a document that agrees with its files is not a good image. A hostile builder puts a changed Adyton into root.erofs
and writes the genuine identity into the document. Such a guest measures whatever it likes into its workload register.
Only an own build tells: the same lock file and the same Adyton give the same bytes.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from adyton.attest.tpm.pe import authenticode
from adyton.image.boot_events import Predicted, predict
from adyton.image.disk import disk_parts
from adyton.image.document import (
    COVERED,
    PAGE_ORDERS,
    Firmware,
    GuestImage,
    ImageFile,
    PEHashes,
    SNPEntry,
    TDXEntry,
    Verity,
)
from adyton.image.firmware import FirmwareFile
from adyton.image.gpt import SECTOR, TABLE_SECTORS, measured_table
from adyton.image.measure_snp import Launch, launch_digest, takes_kernel_hashes
from adyton.image.measure_tdx import mrtd
from adyton.image.uki import UKI
from adyton.image.verity import BLOCK, verity_tree
from adyton.values import Digest, Measurement

VCPU_TYPES: Final = ("EPYC-v4", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin")
"""Types of processors that launch digests are computed for. QEMU's default, and one for each generation."""
_UUID: Final = slice(16, 32)
"""Where the superblock of a dm-verity tree has its UUID."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The document as the files give it, what each boot leaves in registers, and what does not belong together."""

    image: GuestImage
    predicted: Mapping[str, Predicted]
    problems: tuple[str, ...]


def measure(files: Mapping[str, bytes], told: GuestImage) -> Measured:
    """Compute the document of an image anew. `files` holds the four files that every image has; others are hashed.

    The builder's words are taken from `told`. Entries for firmware are not in the result: see `firmware_entries`.
    Raises UsageError where a file is not of its kind.
    """
    kernel_image, root, tree, disk = (files[name] for name in ("adyton.efi", "root.erofs", "root.verity", "disk.raw"))
    uki = UKI.parse(kernel_image)
    computed, root_hash = verity_tree(root, told.verity.salt, uuid.UUID(bytes=tree[_UUID].ljust(16, b"\0")))
    problems = []
    if computed != tree:
        problems.append("root.verity is not the dm-verity tree over root.erofs with the salt of image.json")
    if uki.command_line.split().count(f"adyton.root={root_hash.hex()}") != 1:
        problems.append(f"adyton.efi does not name the root hash {root_hash.hex()} on its command line")
    if not _is_disk(disk, disk_parts(kernel_image, root, tree)):
        problems.append("disk.raw is not the disk of adyton.efi, root.erofs and root.verity")
    predicted = predict(uki, measured_table(disk[: TABLE_SECTORS * SECTOR]))
    image = replace(
        told,
        files={name: _file(raw) for name, raw in sorted(files.items())},
        verity=Verity(root_hash=Digest(root_hash), salt=told.verity.salt, data_blocks=len(root) // BLOCK),
        command_line=uki.command_line,
        uki=_hashes(uki.file.raw),
        linux=_hashes(uki.linux),
        pcrs=MappingProxyType({boot: found.pcrs for boot, found in predicted.items()}),
        tdx=(),
        snp=(),
    )
    return Measured(image, predicted, tuple(problems))


def _is_disk(disk: bytes, parts: Iterable[bytes]) -> bool:
    at = 0
    for part in parts:
        if disk[at : at + len(part)] != part:
            return False
        at += len(part)
    return at == len(disk)


def firmware_entries(
    kernel_image: bytes, predicted: Mapping[str, Predicted], name: str, raw: bytes, vcpus: Sequence[int]
) -> tuple[list[TDXEntry], list[SNPEntry]]:
    """What TDX and SEV-SNP report of an image under one firmware file. Raises UsageError.

    TDX: one entry for each order of pages and way to boot. SEV-SNP: one for each number of processors and type, by
    -kernel alone, and none where the firmware has no page for the hashes: then it would start any kernel.
    """
    firmware = FirmwareFile.parse(raw)
    named = Firmware(name=name, sha256=_digest(raw))
    tdx: list[TDXEntry] = []
    if firmware.tdx:
        for order in PAGE_ORDERS:
            measured = Measurement(mrtd(firmware, order))
            for boot, registers in predicted.items():
                tdx.append(
                    TDXEntry(
                        firmware=named,
                        page_order=order,
                        mrtd=measured,
                        rtmr1=Measurement(registers.rtmr1),
                        rtmr2=Measurement(registers.rtmr2),
                        boot=boot,
                    )
                )
    snp: list[SNPEntry] = []
    if firmware.sev and takes_kernel_hashes(firmware):
        launch = Launch(kernel_image)
        for count in vcpus:
            for kind in VCPU_TYPES:
                value = launch_digest(firmware, launch, vcpus=count, vcpu_type=kind)
                snp.append(
                    SNPEntry(
                        firmware=named,
                        vcpus=count,
                        vcpu_type=kind,
                        guest_features=1,
                        launch_digest=Measurement(value),
                        covers=COVERED,
                    )
                )
    return tdx, snp


def differences(stated: GuestImage, computed: GuestImage) -> list[str]:
    """The members of two documents that differ, and entries for firmware that only one of two has under its hash."""
    one, other = stated.to_dict(), computed.to_dict()
    found = [name for name in sorted(one) if name not in ("tdx", "snp") and one[name] != other[name]]
    for name in ("tdx", "snp"):
        known = {entry["firmware"]["sha256"] for entry in other[name]}
        computed_entries = [_without_tables(entry) for entry in other[name]]
        wrong = [
            entry
            for entry in one[name]
            if entry["firmware"]["sha256"] in known and _without_tables(entry) not in computed_entries
        ]
        found += [name] if wrong else []
    return found


def _without_tables(entry: Mapping[str, object]) -> dict[str, object]:
    """An entry without the host's ACPI tables: no file of the image says what they are."""
    return {name: value for name, value in entry.items() if name != "acpi"}


def _file(raw: bytes) -> ImageFile:
    return ImageFile(sha256=_digest(raw), bytes=len(raw))


def _digest(raw: bytes) -> Digest:
    return Digest(hashlib.sha256(raw).digest())


def _hashes(raw: bytes) -> PEHashes:
    return PEHashes(sha256=authenticode(raw, "sha256"), sha384=authenticode(raw, "sha384"))
