"""`adyton image measure`: computed anew from the files, and every change of them seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from adyton.cli.main import main
from adyton.errors import UsageError
from adyton.image.document import parse_image
from adyton.workflow.image import measure_image
from tests.support.image_files import AMD_SEV, KERNEL_HASHES, firmware, write_small_image

TDX = ((0x1000, 0x3000, 0xFFFFB000, 0x3000, 0, 1),)
FIRMWARE = firmware(sev=(*AMD_SEV, KERNEL_HASHES), tdx=TDX)


def test_image_measures_as_it_says(tmp_path: Path) -> None:
    """Nothing differs, and the computed document is the stated one."""
    stated = write_small_image(tmp_path)
    found = measure_image(tmp_path)
    assert found.differences == ()
    assert found.image == stated


@pytest.mark.parametrize("name", ["adyton.efi", "root.erofs", "root.verity", "disk.raw"])
def test_one_flipped_bit_in_a_file_is_seen(tmp_path: Path, name: str) -> None:
    """At its start, in its middle, at its end."""
    write_small_image(tmp_path)
    good = (tmp_path / name).read_bytes()
    for at in (0, len(good) // 2, len(good) - 1):
        changed = bytearray(good)
        changed[at] ^= 1
        (tmp_path / name).write_bytes(changed)
        assert measure_image(tmp_path).differences, at


def test_root_of_another_image_is_seen(tmp_path: Path) -> None:
    """A root with a good tree of its own, under the right names."""
    write_small_image(tmp_path / "one")
    write_small_image(tmp_path / "other", "evil")
    for name in ("root.erofs", "root.verity"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    found = measure_image(tmp_path / "one").differences
    assert any("does not name the root hash" in text for text in found)
    assert any("disk.raw is not the disk" in text for text in found)


@pytest.mark.parametrize("path", ["pcrs", "pe", "verity", "command_line", "files"])
def test_document_that_says_something_else_is_seen(tmp_path: Path, path: str) -> None:
    """Each computed part is compared with the stated one."""
    write_small_image(tmp_path)
    document = json.loads((tmp_path / "image.json").read_text())
    if path == "pcrs":
        document["pcrs"]["disk-boot"]["sha256"]["4"] = "11" * 32
    elif path == "pe":
        document["pe"]["uki"]["sha256"] = "11" * 32
    elif path == "verity":
        document["verity"]["root_hash"] = "11" * 32
    elif path == "files":
        document["files"]["disk.raw"]["bytes"] += 1
    else:
        document["command_line"] += " init=/bin/sh"
    (tmp_path / "image.json").write_text(json.dumps(document))
    assert measure_image(tmp_path).differences == (f"{path} differs from image.json",)


def test_firmware_adds_entries_that_are_checked_afterwards(tmp_path: Path) -> None:
    """For TDX each order of pages and way to boot, for SEV-SNP each type of processor with -kernel."""
    write_small_image(tmp_path)
    (tmp_path / "OVMF.fd").write_bytes(FIRMWARE)
    found = measure_image(tmp_path, firmware_files=(tmp_path / "OVMF.fd",), vcpus=(1, 4))
    assert found.image is not None
    assert found.differences == ()
    assert {(entry.page_order, entry.boot) for entry in found.image.tdx} == {
        (order, boot) for order in ("single-pass", "two-pass") for boot in ("disk-boot", "kernel-boot")
    }
    assert {entry.vcpus for entry in found.image.snp} == {1, 4}
    assert all(entry.covers == ("cmdline", "initrd", "kernel") for entry in found.image.snp)
    raw = found.image.to_bytes()
    (tmp_path / "image.json").write_bytes(raw)
    assert measure_image(tmp_path).unchecked == ("OVMF.fd",)
    again = measure_image(tmp_path, firmware_files=(tmp_path / "OVMF.fd",))
    assert (again.differences, again.image) == ((), parse_image(raw))
    digest = found.image.snp[0].launch_digest.hex()
    (tmp_path / "image.json").write_bytes(raw.replace(digest.encode(), b"11" * 48))
    assert measure_image(tmp_path, firmware_files=(tmp_path / "OVMF.fd",)).differences == (
        "snp differs from image.json",
    )


def test_firmware_that_measures_no_kernel_gets_no_entry_for_sev_snp(tmp_path: Path) -> None:
    """A launch digest over the firmware alone would allow every kernel."""
    write_small_image(tmp_path)
    (tmp_path / "fw").write_bytes(firmware(sev=AMD_SEV, tdx=TDX))
    found = measure_image(tmp_path, firmware_files=(tmp_path / "fw",))
    assert found.image is not None
    assert found.image.snp == ()
    assert len(found.image.tdx) == 4


def test_firmware_of_the_image_that_was_changed_is_seen(tmp_path: Path) -> None:
    """Its tables are damaged, so nothing can be computed for it."""
    write_small_image(tmp_path)
    (tmp_path / "OVMF.fd").write_bytes(FIRMWARE)
    document = json.loads((tmp_path / "image.json").read_text())
    document["files"]["OVMF.fd"] = {"sha256": hashlib.sha256(FIRMWARE).hexdigest(), "bytes": len(FIRMWARE)}
    (tmp_path / "image.json").write_text(json.dumps(document))
    found = measure_image(tmp_path)
    assert found.image is not None
    assert found.differences == ()
    assert len(found.image.tdx) == 4
    (tmp_path / "OVMF.fd").write_bytes(FIRMWARE.replace(b"TDVF", b"XDVF"))
    assert "files differs from image.json" in measure_image(tmp_path).differences


def test_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    """It says what is missing."""
    with pytest.raises(UsageError, match="guest image document"):
        measure_image(tmp_path)


def test_hostile_image_under_the_genuine_identity_agrees_and_the_verb_says_what_that_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in an image cannot be computed. So the verb never lets its silence be taken for trust."""
    genuine = write_small_image(tmp_path / "genuine")
    hostile = write_small_image(tmp_path / "hostile", "evil")
    assert hostile.runtime_identity == genuine.runtime_identity
    assert hostile.files != genuine.files
    assert measure_image(tmp_path / "hostile").differences == ()
    with pytest.raises(SystemExit) as ended:
        main(["image", "measure", str(tmp_path / "hostile")])
    assert not ended.value.code
    assert "if you did not build it, compare it" in capsys.readouterr().err
