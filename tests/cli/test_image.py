"""`adyton image` on the command line, with small images: no package is fetched and no machine boots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adyton.cli import main as command_line
from adyton.image.document import parse_image
from tests.support.image_files import AMD_SEV, KERNEL_HASHES, firmware, write_small_image


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `adyton image`."""
    with pytest.raises(SystemExit) as ended:
        command_line.main(["image", *map(str, words)])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_measure_prints_what_the_document_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As lines for people, and as the same document for programs."""
    image = write_small_image(tmp_path)
    status, out, err = call(capsys, "measure", tmp_path)
    assert status == 0
    assert "not what is in it" in err  # only an own build tells that
    assert f"disk-boot  sha256  PCR 4   {image.pcr('disk-boot', 4).hex()}" in out
    status, out, _ = call(capsys, "measure", tmp_path, "--json")
    assert status == 0
    assert parse_image(out.encode()) == image
    (tmp_path / "fw").write_bytes(firmware(sev=(*AMD_SEV, KERNEL_HASHES)))
    status, out, _ = call(capsys, "measure", tmp_path, "--firmware", tmp_path / "fw", "--vcpus", "3", "--json")
    assert {entry["vcpus"] for entry in json.loads(out)["snp"]} == {3}


def test_measure_ends_with_one_where_something_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And names it on standard error."""
    write_small_image(tmp_path)
    raw = bytearray((tmp_path / "disk.raw").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "disk.raw").write_bytes(raw)
    status, _, err = call(capsys, "measure", tmp_path)
    assert status == 1
    assert "disk.raw is not the disk of" in err


def test_build_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder; for a new lock file also where to write it, and the wheels' hashes; a lock file that is none."""
    assert call(capsys, "build")[0] == 2
    assert call(capsys, "build", "--update-lock", "-o", tmp_path / "x")[0] == 2
    (tmp_path / "lock").write_text("{}")
    status, _, err = call(capsys, "build", "-o", tmp_path / "x", "--lock", tmp_path / "lock")
    assert status == 2
    assert "lock file of the image is wrong" in err


def test_boot_prints_the_command_line_of_a_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never one under which SEV-SNP would not measure the image."""
    write_small_image(tmp_path)
    (tmp_path / "OVMF.fd").write_bytes(firmware(sev=AMD_SEV))
    assert call(capsys, "boot", tmp_path, "--print")[0] == 0
    status, out, err = call(capsys, "boot", tmp_path, "--tee", "snp", "--print")
    assert (status, out) == (2, "")
    assert "would not measure this image" in err
    (tmp_path / "OVMF.fd").write_bytes(firmware(sev=(*AMD_SEV, KERNEL_HASHES)))
    assert "kernel-hashes=on" in call(capsys, "boot", tmp_path, "--tee", "snp", "--print")[1]


def test_program_goes_to_a_cloud_and_its_results_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Disk, export, outputs: what each prints, and what it refuses."""
    write_small_image(tmp_path / "image")
    (tmp_path / "x.adyton").write_bytes(b"pack")
    words = ("disk", tmp_path / "x.adyton", "-o", tmp_path / "in.raw", "--tee", "tdx")
    assert call(capsys, *words, "--host", "keys")[0] == 2
    assert call(capsys, *words, "--host", "keys=10.0.0.9", "--host", "keys=10.0.0.8")[0] == 2
    status, out, _ = call(capsys, *words, "--host", "keys=10.0.0.9", "--name-server", "10.0.0.1", "--", "-x", "--tee")
    assert (status, "1.0 MB, for a guest on tdx that runs x.adyton" in out) == (0, True)
    assert b'"arguments": ["-x", "--tee"]' in (tmp_path / "in.raw").read_bytes()
    assert call(capsys, *words)[0] == 86
    status, out, _ = call(capsys, "export", tmp_path / "image", "--cloud", "gcp", "-o", tmp_path / "up")
    assert (status, "disk.tar.gz" in out, "outputs.tar.gz" in out) == (0, True, True)
    assert call(capsys, "export", tmp_path / "in.raw", "--cloud", "gcp", "-o", tmp_path / "up")[0] == 0
    assert call(capsys, "export", tmp_path / "in.raw", "--cloud", "azure", "-o", tmp_path / "up")[0] == 2
    status, out, _ = call(capsys, "outputs", tmp_path / "in.raw", "-o", tmp_path / "back")
    assert (status, out.split()) == (0, ["adyton-guest.json", "x.adyton"])
    assert call(capsys, "outputs", tmp_path / "in.raw", "-o", tmp_path / "back")[0] == 86


def test_boot_takes_a_folder_or_disks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not both: one of the two would be forgotten."""
    write_small_image(tmp_path)
    (tmp_path / "OVMF.fd").write_bytes(firmware(sev=AMD_SEV))
    words = ("boot", tmp_path, "--inputs", "in.raw", "--output-disk", "out.raw", "--print")
    status, out, _ = call(capsys, *words)
    assert (status, "in.raw" in out, "out.raw" in out) == (0, True, True)
    assert call(capsys, *words, "--share", tmp_path)[0] == 2
