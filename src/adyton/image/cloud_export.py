"""The form in which each cloud takes a raw disk, and how a machine of this image is made there.

Two exports of one disk have the same bytes. For a tar.gz that holds with the same zlib; what is in it is always the
same. Nothing here was tried on a rented machine. Sources: Azure, "Prepare a Linux VHD"; Google Cloud, "Manually import
boot disks"; AWS, "RegisterImage".
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, cast

from adyton.atomic_file import atomic_target
from adyton.errors import DigestMismatch
from adyton.image.vhd import ALIGNMENT, fixed_footer
from adyton.values import Digest

_CHUNK: Final = 1 << 20
_GIB: Final = 1 << 30
DISK_IN_TAR: Final = "disk.raw"
"""The name that Google's importer looks for."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file of an export: its size, the disk's size in it, and the digest of the raw disk that it was made from."""

    name: str
    size_bytes: int
    disk_bytes: int
    source_sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """A cloud: the form of its disks, which TEEs get keys there, and the words that make image and machine."""

    name: str
    suffix: str
    tees: tuple[str, ...]
    image: tuple[str, ...]
    """Words of the command that makes an image of the uploaded disk."""
    machine: tuple[str, ...]
    """Words of the command that makes a machine of that image."""
    write: Callable[[IO[bytes], int, IO[bytes]], tuple[int, Digest]]
    """Write a disk of so many bytes in the cloud's form. Gives the disk's size in it, and the digest of the source."""


def export_disk(
    cloud: Cloud, source: Path, folder: Path, name: str, *, expected: Digest | None = None, force: bool = False
) -> Written:
    """Write a raw disk in the form of a cloud, as `name` with the cloud's suffix.

    Raises DigestMismatch where the raw disk has another digest than `expected`, TargetExists without `force`, OSError
    and StorageFailed. Then nothing is written.
    """
    target = folder / f"{name}{cloud.suffix}"
    with (
        source.open("rb", buffering=0) as disk,
        atomic_target(target, force=force, mode=0o666) as descriptor,
        open(descriptor, "wb", buffering=_CHUNK, closefd=False) as out,
    ):
        disk_bytes, digest = cloud.write(disk, os.fstat(disk.fileno()).st_size, out)
        if expected is not None and digest != expected:
            raise DigestMismatch(
                f"{source} is not the disk that its image.json names",
                check=f"SHA-256 of {source.name}",
                expected=str(expected),
                seen=str(digest),
                remedy="build the image again (`adyton image build`)",
            )
    return Written(target.name, target.stat().st_size, disk_bytes, digest)


def _write_raw(disk: IO[bytes], size: int, out: IO[bytes]) -> tuple[int, Digest]:
    digest = _copy(disk, size, out, sparse=True)
    whole = _up(size, ALIGNMENT)
    out.truncate(whole)
    return whole, digest


def _write_vhd(disk: IO[bytes], size: int, out: IO[bytes]) -> tuple[int, Digest]:
    whole, digest = _write_raw(disk, size, out)
    out.seek(whole)
    out.write(fixed_footer(whole, uuid.UUID(bytes=digest.raw[:16], version=4)))
    return whole, digest


def _write_tar(disk: IO[bytes], size: int, out: IO[bytes]) -> tuple[int, Digest]:
    whole = _up(size, _GIB)
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) as packed:
        packed.write(sparse_header(DISK_IN_TAR, size, whole))
        digest = _copy(disk, size, cast("IO[bytes]", packed), sparse=False)
        content = _up(size, tarfile.BLOCKSIZE)
        used = tarfile.BLOCKSIZE + content
        packed.write(bytes(content - size + _up(used + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE) - used))
    return whole, digest


def sparse_header(name: str, size: int, whole: int) -> bytes:
    """The header of a file of `whole` bytes whose first `size` bytes follow. The rest is a hole, so zeros.

    It is the old GNU format with one piece and the end, as GNU tar's --format=oldgnu --sparse writes it (tar's manual,
    "Old GNU Format").
    """
    info = tarfile.TarInfo(name)
    info.size = size
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[156:157] = tarfile.GNUTYPE_SPARSE
    for at, value in ((386, 0), (398, size), (410, whole), (422, 0), (483, whole)):
        raw[at : at + 12] = _number(value)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def _number(value: int) -> bytes:
    """A number of 12 bytes in a header: octal digits, or base 256 beyond 8 GiB."""
    return b"%011o\0" % value if value < 1 << 33 else b"\x80" + value.to_bytes(11, "big")


def _copy(disk: IO[bytes], size: int, out: IO[bytes], *, sparse: bool) -> Digest:
    """Copy `size` bytes. With `sparse`, zeros become holes. Raises OSError where the disk became shorter."""
    digest = hashlib.sha256()
    left = size
    while left:
        piece = disk.read(min(_CHUNK, left))
        if not piece:
            raise OSError(0, "the disk became shorter while it was read")
        digest.update(piece)
        if sparse and not piece.strip(b"\0"):
            out.seek(len(piece), os.SEEK_CUR)
        else:
            out.write(piece)
        left -= len(piece)
    return Digest(digest.digest())


def _up(size: int, unit: int) -> int:
    return -(-max(size, 1) // unit) * unit


CLOUDS: Final[Mapping[str, Cloud]] = MappingProxyType(
    {
        "azure": Cloud(
            name="azure",
            suffix=".vhd",
            tees=("az-snp", "az-tdx"),
            image=(
                *("az", "sig", "image-definition", "create", "--os-type", "Linux", "--os-state", "Specialized"),
                *("--hyper-v-generation", "V2", "--features", "SecurityType=ConfidentialVmSupported"),
            ),
            machine=(
                *("az", "vm", "create", "--specialized", "--security-type", "ConfidentialVM"),
                *("--os-disk-security-encryption-type", "VMGuestStateOnly"),
                *("--enable-vtpm", "true", "--enable-secure-boot", "false"),
            ),
            write=_write_vhd,
        ),
        "gcp": Cloud(
            name="gcp",
            suffix=".tar.gz",
            tees=("tdx",),
            image=(
                *("gcloud", "compute", "images", "create", "--architecture=X86_64"),
                "--guest-os-features=UEFI_COMPATIBLE,TDX_CAPABLE,GVNIC",
            ),
            machine=(
                *("gcloud", "compute", "instances", "create", "--confidential-compute-type=TDX"),
                *("--maintenance-policy=TERMINATE", "--no-shielded-secure-boot"),
            ),
            write=_write_tar,
        ),
        "aws": Cloud(
            name="aws",
            suffix=".raw",
            tees=("nitrotpm",),
            image=(
                *("aws", "ec2", "register-image", "--architecture", "x86_64", "--virtualization-type", "hvm"),
                *("--boot-mode", "uefi", "--tpm-support", "v2.0", "--ena-support", "--root-device-name", "/dev/xvda"),
            ),
            machine=("aws", "ec2", "run-instances"),
            write=_write_raw,
        ),
    }
)
"""The Secure Boot setting of each stands in its words. The image is not signed: its boot is measured, and the verifier
knows the only good one. AWS has Secure Boot off where `register-image` gets no `--uefi-data`."""
