"""The forms in which clouds take a disk: read back by the tools of others, and the same bytes twice."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import uuid
from pathlib import Path

import pytest

from adyton.errors import DigestMismatch, MalformedManifest, RunError, TargetExists, UsageError
from adyton.image.cloud_export import CLOUDS, export_disk, sparse_header
from adyton.image.guest import OUTPUT_MARK
from adyton.image.vhd import fixed_footer
from adyton.workflow.guest_disks import settings_for, write_input_disk
from adyton.workflow.image_export import export
from tests.support.image_files import write_small_image

MIB = 1 << 20
IDENTIFIER = uuid.UUID("12345678-9abc-4ef0-8123-456789abcdef")


def require(program: str, package: str) -> str:
    """The path of a program. Skipped by name where it is missing."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (apt-get install {package})")
    return path


def disk(tmp_path: Path, size: int = 3 * MIB + 5) -> Path:
    """A disk with data at its start, zeros, and data at its end."""
    path = tmp_path / "some.raw"
    path.write_bytes(b"start" * 1000 + bytes(size - 5001) + b"e")
    return path


def test_footer_is_the_one_that_qemu_writes(tmp_path: Path) -> None:
    """Byte for byte, but for time, identifier, and the checksum over them."""
    program = require("qemu-img", "qemu-utils")
    (tmp_path / "raw").write_bytes(bytes(7 * MIB))
    words = [program, "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size"]
    subprocess.run([*words, str(tmp_path / "raw"), str(tmp_path / "vhd")], check=True)
    theirs = bytearray((tmp_path / "vhd").read_bytes()[-512:])
    own = bytearray(fixed_footer(7 * MIB, IDENTIFIER))
    for field in (slice(24, 28), slice(64, 84)):
        theirs[field] = own[field] = bytes(len(own[field]))
    theirs[32:36] = own[32:36]  # their version
    assert own == theirs


def test_checksum_and_size_of_the_footer() -> None:
    """The checksum is the complement of the sum of the other bytes."""
    raw = fixed_footer(5 * MIB, IDENTIFIER)
    assert len(raw) == 512
    assert raw[:8] == b"conectix"
    assert int.from_bytes(raw[40:48], "big") == int.from_bytes(raw[48:56], "big") == 5 * MIB
    assert int.from_bytes(raw[64:68], "big") == ~(sum(raw) - sum(raw[64:68])) & 0xFFFFFFFF
    assert raw[68:84] == IDENTIFIER.bytes
    for size in (0, -MIB, MIB + 512):
        with pytest.raises(UsageError, match="no size for a VHD"):
            fixed_footer(size, IDENTIFIER)


def test_azure_disk_is_a_vhd_of_whole_mib(tmp_path: Path) -> None:
    """qemu-img reads it back, and finds the same disk."""
    source = disk(tmp_path)
    found = export_disk(CLOUDS["azure"], source, tmp_path / "out", "disk")
    assert (found.name, found.disk_bytes, found.size_bytes) == ("disk.vhd", 4 * MIB, 4 * MIB + 512)
    program = require("qemu-img", "qemu-utils")
    shown = subprocess.run(
        [program, "info", "-f", "vpc", "--output=json", str(tmp_path / "out/disk.vhd")], capture_output=True, check=True
    )
    assert json.loads(shown.stdout)["virtual-size"] == 4 * MIB
    compared = [program, "compare", "-f", "vpc", "-F", "raw", str(tmp_path / "out/disk.vhd"), str(source)]
    assert b"identical" in subprocess.run(compared, capture_output=True, check=True).stdout


def test_google_disk_is_one_file_in_a_tar_of_the_old_form(tmp_path: Path) -> None:
    """Python and GNU tar read it back, the hole at its end too."""
    source = disk(tmp_path)
    found = export_disk(CLOUDS["gcp"], source, tmp_path / "out", "disk")
    assert (found.name, found.disk_bytes) == ("disk.tar.gz", 1 << 30)
    raw = gzip.decompress((tmp_path / "out/disk.tar.gz").read_bytes())
    assert len(raw) % tarfile.RECORDSIZE == 0
    assert raw[257:265] == b"ustar  \0"
    assert raw[-1024:] == bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.size, member.issparse()) == ("disk.raw", 1 << 30, True)
    tar = require("tar", "tar")
    subprocess.run([tar, "xzf", str(tmp_path / "out/disk.tar.gz"), "-C", str(tmp_path)], check=True)
    with (tmp_path / "disk.raw").open("rb") as back:
        assert back.read(3 * MIB + 5) == source.read_bytes()
        assert (tmp_path / "disk.raw").stat().st_size == 1 << 30
        assert not back.read(MIB).strip(b"\0")


def test_google_header_is_the_one_that_tar_writes(tmp_path: Path) -> None:
    """GNU tar with --format=oldgnu --sparse, as Google's documentation asks for it."""
    tar = require("tar", "tar")
    with (tmp_path / "disk.raw").open("wb") as file:
        file.write(b"x" * MIB)
        file.truncate(64 * MIB)
    words = [tar, "--format=oldgnu", "-Scf", "-", "--mtime=@0", "--mode=644", "--owner=0", "--group=0"]
    done = subprocess.run([*words, "--numeric-owner", "disk.raw"], cwd=tmp_path, capture_output=True, check=True)
    if done.stdout[156:157] != b"S":
        pytest.skip("this file system tells tar of no holes")
    assert done.stdout[:512] == sparse_header("disk.raw", MIB, 64 * MIB)


def test_header_says_sizes_beyond_eight_gib() -> None:
    """In base 256, which Python reads."""
    raw = sparse_header("disk.raw", 9 << 30, 10 << 30)
    info = tarfile.TarInfo.frombuf(raw, "utf-8", "strict")
    assert info.size == 9 << 30


@pytest.mark.parametrize("cloud", sorted(CLOUDS))
def test_two_exports_are_the_same(tmp_path: Path, cloud: str) -> None:
    """In other folders, and at other times."""
    source = disk(tmp_path)
    files = []
    for folder in ("one", "two"):
        found = export_disk(CLOUDS[cloud], source, tmp_path / folder, "disk")
        assert found.source_sha256.raw == hashlib.sha256(source.read_bytes()).digest()
        files.append((tmp_path / folder / found.name).read_bytes())
    assert files[0] == files[1]
    with pytest.raises(TargetExists):
        export_disk(CLOUDS[cloud], source, tmp_path / "one", "disk")


@pytest.mark.parametrize("cloud", sorted(CLOUDS))
def test_image_is_exported_with_a_disk_for_outputs_and_its_settings(tmp_path: Path, cloud: str) -> None:
    """And Secure Boot is off, by name where the cloud has a word for it."""
    write_small_image(tmp_path / "image")
    found = export(tmp_path / "image", cloud, tmp_path / "out")
    suffix = CLOUDS[cloud].suffix
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"disk{suffix}", f"outputs{suffix}", "export.json"}
    told = json.loads((tmp_path / "out/export.json").read_text())
    assert told == found.to_dict()
    assert (told["cloud"], told["secure_boot"], told["uefi"], told["tpm"]) == (cloud, False, True, "2.0")
    words = " ".join([*told["image_command"], *told["machine_command"]])
    switched_off = {"azure": "--enable-secure-boot false", "gcp": "--no-shielded-secure-boot", "aws": ""}[cloud]
    assert switched_off in words
    assert "--uefi-data" not in words
    if cloud == "aws":
        assert (tmp_path / "out/outputs.raw").read_bytes() == OUTPUT_MARK.ljust(MIB, b"\0")
        assert (tmp_path / "out/disk.raw").read_bytes() == (tmp_path / "image/disk.raw").read_bytes()


def test_changed_disk_is_not_exported(tmp_path: Path) -> None:
    """The machine would not start, or get no key. Nothing is left."""
    write_small_image(tmp_path / "image")
    with (tmp_path / "image/disk.raw").open("r+b") as file:
        file.seek(MIB)
        file.write(b"?")
    with pytest.raises(DigestMismatch, match="not the disk"):
        export(tmp_path / "image", "azure", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_inputs_are_exported_only_where_their_machine_is(tmp_path: Path) -> None:
    """Settings for another cloud's machine would start a guest that gets no key."""
    (tmp_path / "x.adyton").write_bytes(b"pack")
    write_input_disk(tmp_path / "x.adyton", tmp_path / "in.raw", settings_for(tmp_path / "x.adyton", tee="az-snp"))
    found = export(tmp_path / "in.raw", "azure", tmp_path / "out")
    assert [item.name for item in found.files] == ["inputs.vhd"]
    assert (tmp_path / "out/inputs.vhd").read_bytes()[:-512] == (tmp_path / "in.raw").read_bytes()
    for cloud in ("gcp", "aws"):
        with pytest.raises(UsageError, match="gets no keys"):
            export(tmp_path / "in.raw", cloud, tmp_path / "out")


def test_what_is_no_disk_for_inputs_is_refused(tmp_path: Path) -> None:
    """A cloud would take it, and the guest would not find it."""
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    with pytest.raises(MalformedManifest, match="header"):
        export(tmp_path / "noise", "azure", tmp_path / "out")
    with tarfile.open(tmp_path / "tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("other"))
    with pytest.raises(RunError, match="settings"):
        export(tmp_path / "tar", "azure", tmp_path / "out")
    with pytest.raises(UsageError, match="no export for a cloud"):
        export(tmp_path / "noise", "ibm", tmp_path / "out")
    with pytest.raises(UsageError, match="guest image document"):
        export(tmp_path, "azure", tmp_path / "out")
