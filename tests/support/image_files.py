"""Small files in the form of a guest image's: a stub, a kernel, firmware, and a whole image of a few blocks."""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adyton.image import verity
from adyton.image.disk import disk_parts, identifier
from adyton.image.document import GuestImage, parse_image
from adyton.image.erofs import Node, place, write
from adyton.image.measure import measure
from adyton.image.uki import build_uki
from tests.support.image_factory import image_document


def pe_file(sections: Mapping[str, bytes], *, headers_bytes: int = 0x600) -> bytes:
    """A PE32+ file for x86-64 with these sections."""
    optional = struct.pack("<HBBIIIIIQII", 0x20B, 0, 0, 0, 0, 0, 0x1000, 0x1000, 0, 0x1000, 512)
    optional += struct.pack("<HHHHHHIIIIHHQQQQII", 0, 0, 0, 0, 0, 0, 0, 0, headers_bytes, 0, 10, 0, 0, 0, 0, 0, 0, 16)
    optional += bytes(16 * 8)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22) + optional
    body, address = b"", 0x1000
    for name, content in sections.items():
        padded = content.ljust(-(-len(content) // 512) * 512, b"\0")
        place_in_file = headers_bytes + len(body) if padded else 0
        head += struct.pack(
            "<8sIIIIIIHHI", name.encode(), len(content), address, len(padded), place_in_file, 0, 0, 0, 0, 0x40000040
        )
        body += padded
        address += -(-len(content) // 4096) * 4096
    return head.ljust(headers_bytes, b"\0") + body


def stub() -> bytes:
    """A stub with the sections of systemd's."""
    names = (".text", ".rodata", ".data", ".sbat", ".sdmagic", ".reloc")
    return pe_file({name: f"content of {name}".encode() for name in names})


def kernel(seed: bytes = b"kernel") -> bytes:
    """A kernel of 8 KiB."""
    return pe_file({".text": hashlib.shake_256(seed).digest(7000)}, headers_bytes=0x200)


def firmware(
    *,
    sev: Sequence[tuple[int, int, int]] = ((0x800000, 0x9000, 1), (0x80A000, 0x3000, 1), (0x80D000, 0x1000, 2)),
    hashes_at: int | None = 0x80F400,
    reset: int | None = 0x80B004,
    tdx: Sequence[tuple[int, int, int, int, int, int]] = (),
    size: int = 0x8000,
    seed: bytes = b"firmware",
) -> bytes:
    """Firmware with the tables at its end that OVMF has. `sev` are address, size and kind; `tdx` are TDVF's fields."""
    entries: list[tuple[str, bytes]] = []
    tail_at = size - 0x1000
    body = bytearray(hashlib.shake_256(seed).digest(size))
    if sev:
        raw = b"ASEV" + struct.pack("<III", 16 + 12 * len(sev), 1, len(sev))
        raw += b"".join(struct.pack("<III", *item) for item in sev)
        body[tail_at : tail_at + len(raw)] = raw
        entries.append(("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", size - tail_at)))
    if tdx:
        at = tail_at + 0x400
        raw = b"TDVF" + struct.pack("<III", 16 + 32 * len(tdx), 1, len(tdx))
        raw += b"".join(struct.pack("<IIQQII", *item) for item in tdx)
        body[at : at + len(raw)] = raw
        entries.append(("e47a6535-984a-4798-865e-4685a7bf8ec2", struct.pack("<I", size - at)))
    if hashes_at is not None:
        entries.append(("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<II", hashes_at, 0x400)))
    if reset is not None:
        entries.append(("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", reset)))
    table = b"".join(
        content + struct.pack("<H", len(content) + 18) + uuid.UUID(name).bytes_le for name, content in entries
    )
    table += struct.pack("<H", len(table) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    body[size - 32 - len(table) : size - 32] = table
    return bytes(body)


AMD_SEV = ((0x800000, 0x9000, 1), (0x80A000, 0x3000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
KERNEL_HASHES = (0x80F000, 0x1000, 0x10)


def image_files(text: str = "hello") -> tuple[dict[str, bytes], GuestImage]:
    """A whole small image: its files by name, and its document without entries for firmware."""
    tree = Node.folder()
    place(tree, "etc/motd", Node.file(text.encode()))
    place(tree, "usr/bin/true", Node.file(b"\x7fELF", executable=True))
    place(tree, "bin", Node.link("usr/bin"))
    root = write(tree, epoch=1_700_000_000, identifier=identifier("root", b""))
    salt = hashlib.sha256(root).digest()
    hashes, root_hash = verity.verity_tree(root, salt, identifier("verity", root))
    uki = build_uki(
        stub(),
        linux=kernel(),
        initrd=b"initrd",
        command_line=f"adyton.root={root_hash.hex()} panic=-1",
        os_release="ID=adyton\n",
        kernel="7.3.4",
    )
    files = {"adyton.efi": uki, "root.erofs": root, "root.verity": hashes}
    files["disk.raw"] = b"".join(disk_parts(uki, root, hashes))
    document = image_document()
    document["verity"]["salt"] = salt.hex()
    told = parse_image(json.dumps(document).encode())
    return files, replace(measure(files, told).image, tdx=(), snp=())


def write_small_image(folder: Path, text: str = "hello") -> GuestImage:
    """Write such an image into a folder."""
    files, image = image_files(text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "image.json").write_bytes(image.to_bytes())
    return image
