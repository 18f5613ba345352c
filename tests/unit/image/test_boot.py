"""Command lines for QEMU, and a machine that is only a script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adyton.errors import NoDevice, RunError, UsageError
from adyton.image.boot import Machine, start
from adyton.image.guest_disks import pack_inputs
from adyton.workflow.image import Boot, boot_image, printed_boot
from tests.support.image_files import AMD_SEV, KERNEL_HASHES, firmware, write_small_image

TDX = ((0x1000, 0x3000, 0xFFFFB000, 0x3000, 0, 1),)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image, with firmware that can do everything."""
    write_small_image(tmp_path / "image")
    (tmp_path / "image/OVMF.fd").write_bytes(firmware(sev=(*AMD_SEV, KERNEL_HASHES), tdx=TDX))
    return tmp_path / "image"


def test_no_device_has_an_option_rom(image: Path) -> None:
    """A guest would run its code, and measure it into PCR 2 and RTMR1."""
    for tee in (None, "tdx", "snp"):
        words = printed_boot(Boot(folder=image, share=image, tee=tee)).split()
        devices = [words[at + 1] for at, word in enumerate(words) if word == "-device"]
        with_rom = [device for device in devices if device.startswith(("virtio-net", "virtio-blk"))]
        assert len(with_rom) == 4
        assert all("romfile=" in device for device in with_rom)
        assert "-nodefaults" in words


def test_snp_is_booted_by_kernel_hashes_and_never_from_the_disk(image: Path) -> None:
    """A UKI on a disk under plain OVMF is not measured there."""
    line = printed_boot(Boot(folder=image, tee="snp"))
    assert "kernel-hashes=on" in line
    assert "-kernel" in line
    assert "-append" not in line
    with pytest.raises(UsageError, match="does not measure what a disk starts"):
        printed_boot(Boot(folder=image, tee="snp", from_disk=True))
    (image / "OVMF.fd").write_bytes(firmware(sev=AMD_SEV, tdx=TDX))
    with pytest.raises(UsageError, match="SEV-SNP would not measure this image"):
        printed_boot(Boot(folder=image, tee="snp"))


def test_tdx_needs_firmware_for_it(image: Path) -> None:
    """And is booted either way."""
    assert "tdx-guest" in printed_boot(Boot(folder=image, tee="tdx"))
    assert "-kernel" not in printed_boot(Boot(folder=image, tee="tdx", from_disk=True))
    (image / "OVMF.fd").write_bytes(firmware())
    with pytest.raises(UsageError, match="cannot start a TDX guest"):
        printed_boot(Boot(folder=image, tee="tdx"))
    with pytest.raises(UsageError, match="no host of kind"):
        printed_boot(Boot(folder=image, tee="sgx"))


def test_comma_in_a_path_is_no_option(tmp_path: Path) -> None:
    """QEMU takes two commas for one."""
    machine = Machine(folder=tmp_path / "a,readonly=off", firmware=tmp_path / "fw")
    assert f"file={tmp_path}/a,,readonly=off/disk.raw" in machine.printed()


def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A program in QEMU's place."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/qemu-system-x86_64"
    program.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_console_is_shown_line_by_line(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last line without its end, and a line that is too long in pieces."""
    fake_qemu(tmp_path, monkeypatch, "sys.stdout.write('one\\r\\n' + 'x' * 9000 + '\\nend')")
    lines: list[str] = []
    assert boot_image(Boot(folder=image), lines.append) == []
    assert lines[0] == "one"
    assert lines[-1] == "end"
    assert "".join(lines[1:-1]) == "x" * 9000


@pytest.mark.parametrize(
    ("code", "match"),
    [("sys.exit(3)", "QEMU failed"), ("print('up', flush=True); time.sleep(60)", "did not end within")],
)
def test_machine_that_fails_or_hangs_is_ended(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, match: str
) -> None:
    """And no process is left."""
    fake_qemu(tmp_path, monkeypatch, code)
    with pytest.raises(RunError, match=match):
        start(Machine(folder=image, firmware=image / "OVMF.fd"), lambda _line: None, 1.0)


def test_missing_program_is_named(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU, and swtpm where a TPM is asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoDevice, match="qemu-system-x86_64 is not installed"):
        boot_image(Boot(folder=image), lambda _line: None)
    with pytest.raises(NoDevice, match="swtpm is not installed"):
        boot_image(Boot(folder=image, tpm=True), lambda _line: None)


def test_share_without_settings_is_refused(image: Path, tmp_path: Path) -> None:
    """The guest would not know what to run."""
    with pytest.raises(UsageError, match="settings of the guest"):
        boot_image(Boot(folder=image, share=tmp_path), lambda _line: None)


def test_share_with_something_else_than_files_is_refused(tmp_path: Path) -> None:
    """A pipe, or a link that leads nowhere."""
    from adyton.image.guest_settings import GuestSettings

    (tmp_path / "share").mkdir()
    (tmp_path / "share/broken").symlink_to("nowhere")
    with pytest.raises(UsageError, match="cannot go into"):
        pack_inputs(GuestSettings("a", "tpm"), tmp_path / "share", tmp_path / "disk")
