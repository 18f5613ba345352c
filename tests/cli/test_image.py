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
