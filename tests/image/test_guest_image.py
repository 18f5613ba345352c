"""Guest images, built and booted under emulation with a software TPM. Minutes each, so only in `make test-long`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.attest.tpm.event_log import SHA256, SHA384, parse_event_log
from adyton.attest.workload_register import states
from adyton.image.boot_events import ImageHashes
from adyton.image.disk import ALIGNMENT, disk_parts
from adyton.image.document import GuestImage
from adyton.image.firmware import FirmwareFile
from adyton.image.host_tables import variable_store_digest
from adyton.image.recipe import NEVER
from adyton.image.uki import UKI, build_uki
from adyton.manifest.sigstruct import parse_sigstruct
from adyton.workflow.image import DOCUMENT, measure_image
from tests.image.conftest import CANARY, Owner, name_server, qemu_of_today, require
from tests.unit.image.test_host_tables import REAL_STORE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MOST_BYTES = 120_000_000
"""Of the disk, without torch."""


def test_two_builds_are_equal_bit_for_bit(image: Path, tmp_path: Path) -> None:
    """In another folder, at another time, under another umask, locale and time zone, as another process."""
    code = "import os, sys\nos.umask(0o077)\nfrom adyton.cli.main import main\nmain(sys.argv[1:])"
    (elsewhere := tmp_path / "else where").mkdir()
    environment = os.environ | {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "TMPDIR": str(elsewhere)}
    command = [sys.executable, "-c", code, "image", "build", "-o", "again"]
    subprocess.run(command, cwd=elsewhere, env=environment, check=True)
    names = sorted(path.name for path in image.iterdir())
    assert names == sorted(path.name for path in (elsewhere / "again").iterdir())
    for name in names:
        assert (image / name).read_bytes() == (elsewhere / "again" / name).read_bytes(), name


def test_image_is_small_and_has_no_shell_or_login(image: Path, tmp_path: Path) -> None:
    """Read back by erofs-utils, not by what wrote it."""
    require("fsck.erofs", "erofs-utils")
    assert (image / "disk.raw").stat().st_size <= MOST_BYTES
    subprocess.run(
        ["fsck.erofs", f"--extract={tmp_path / 'root'}", str(image / "root.erofs")], check=True, capture_output=True
    )
    programs = {path.name for folder in ("usr/bin", "usr/sbin") for path in (tmp_path / "root" / folder).iterdir()}
    assert programs == {"python3", "python3.11", "bwrap", "fusermount3"}
    names = {path.name for path in (tmp_path / "root").rglob("*") if path.is_file() and os.access(path, os.X_OK)}
    assert not names & NEVER
    assert not any(path.stat().st_mode & 0o6000 for path in (tmp_path / "root").rglob("*") if path.is_file())
    assert measure_image(image).differences == ()


@pytest.mark.parametrize("boot", ["kernel-boot", "disk-boot"])
def test_key_is_released_over_the_boots_own_tpm_and_registers_are_as_predicted(
    image: Path, document: GuestImage, owner: Owner, tmp_path: Path, boot: str
) -> None:
    """PCR 4, 9, 11 and 15, PCR 12 and 13 at zeros, the result at the owner's, and the canary nowhere."""
    qemu_of_today()
    with owner.serving():
        ended = owner.boot(image, tmp_path / "out", from_disk=boot == "disk-boot")
    assert ended.status.get("exit_code") == 0, ended.text
    for bank, values in document.pcrs[boot].items():
        for number, value in values.items():
            assert ended.pcr(int(number), bank) == value.hex(), (bank, number)
    workload = parse_sigstruct((owner.share / "app.sig").read_bytes()).measurement
    assert ended.pcr(15) == states(workload, bank="sha256")[-1].hex()
    log = parse_event_log((ended.outputs / "adyton-event-log.bin").read_bytes())
    of = ImageHashes.create(UKI.parse((image / "adyton.efi").read_bytes()), "sha384")
    assert log.extended(9, SHA384) == of.kernel
    assert len(log.extended(2, SHA256)) == 1, "an option ROM ran"
    owner.adyton("decrypt", ended.outputs / "out/result", "-o", tmp_path / "result", "--key", "k")
    assert (tmp_path / "result").read_bytes() == CANARY
    untrusted = [path for folder in (owner.share, ended.outputs, image) for path in folder.rglob("*") if path.is_file()]
    assert len(untrusted) > 10
    for path in untrusted:
        assert CANARY[:20] not in path.read_bytes(), path
    assert CANARY[:20].decode() not in ended.text


def test_program_that_was_watched_here_runs_there_from_a_pack(image: Path, owner: Owner, tmp_path: Path) -> None:
    """What `adyton new` proposes names absolute files of this machine: a pack brings them into the guest."""
    qemu_of_today()
    require("strace", "strace")
    share = tmp_path / "share"
    owner.prepare_pack(share)
    with owner.serving():
        ended = owner.boot(image, tmp_path / "boot", from_disk=False, share=share)
    assert ended.status.get("exit_code") == 0, ended.text
    brought = {path.relative_to(ended.outputs).as_posix() for path in ended.outputs.rglob("*") if path.is_file()}
    assert not [name for name in brought if "/host/" in name], "what the pack brought came out again"
    result = ended.outputs / "shout/work/encrypted/out/result"
    words = ("decrypt", result, "-o", tmp_path / "result", "--key", "k", "--check-path", "encrypted/out/result")
    owner.adyton(*words)
    assert (tmp_path / "result").read_bytes() == CANARY.upper()
    assert CANARY[:20] not in b"".join(path.read_bytes() for path in ended.outputs.rglob("*") if path.is_file())


def test_machine_without_a_shared_folder_brings_a_result_to_its_owner(
    image: Path, owner: Owner, tmp_path: Path
) -> None:
    """As in a cloud: the disks of an export, an address by DHCP, keys over that boot's TPM, outputs on a disk."""
    qemu_of_today()
    require("strace", "strace")
    owner.prepare_pack(tmp_path / "packed", name="cloud")
    rented = tmp_path / "rented"
    rented.mkdir()
    owner.adyton("image", "export", image, "--cloud", "gcp", "-o", tmp_path / "upload")
    for name in ("outputs", "disk"):
        subprocess.run(["tar", "-xzf", str(tmp_path / f"upload/{name}.tar.gz"), "-C", str(rented)], check=True)
        (rented / "disk.raw").rename(rented / f"{name}.image")
    (rented / "disk.image").rename(rented / "disk.raw")
    (rented / "OVMF.fd").symlink_to(image / "OVMF.fd")
    inputs, outputs = tmp_path / "inputs.raw", rented / "outputs.image"
    words: list[str | Path] = ["image", "disk", tmp_path / "packed/shout.adyton", "-o", inputs, "--tee", "tpm"]
    words += ["--key-server", f"keys.example:{owner.port}", "--name-server", "10.0.2.2"]
    owner.adyton(*words)
    with name_server("10.0.2.2"), owner.serving():
        console = owner.boot_with_disks(rented, inputs, outputs)
    assert any("the address is 10.0.2.15/24, by DHCP" in line for line in console), console
    assert any("keys.example is 10.0.2.2" in line for line in console), console
    names = owner.adyton("image", "outputs", outputs, "-o", tmp_path / "back").splitlines()
    assert "shout/work/encrypted/out/result" in names, console
    assert json.loads((tmp_path / "back/adyton-status.json").read_text())["exit_code"] == 0
    result = tmp_path / "back/shout/work/encrypted/out/result"
    owner.adyton("decrypt", result, "-o", tmp_path / "plain", "--key", "k", "--check-path", "encrypted/out/result")
    assert (tmp_path / "plain").read_bytes() == CANARY.upper()
    assert CANARY[:20] not in inputs.read_bytes()
    with outputs.open("rb") as disk:
        assert not any(CANARY[:20] in piece for piece in iter(lambda: disk.read(1 << 20), b""))
    assert CANARY[:20].decode() not in "\n".join(console)


def other(image: Path, folder: Path) -> Path:
    """A copy of an image, to be changed."""
    shutil.copytree(image, folder)
    return folder


def test_changed_root_does_not_start(image: Path, owner: Owner, tmp_path: Path) -> None:
    """One bit of the first block that is read: the kernel stops, and nothing of the guest runs."""
    qemu_of_today()
    copy = other(image, tmp_path / "copy")
    root = (copy / "root.erofs").read_bytes()[:4096]
    disk = bytearray((copy / "disk.raw").read_bytes())
    at = next(at for at in range(0, len(disk), ALIGNMENT) if disk[at : at + 4096] == root)
    disk[at + 1100] ^= 1
    (copy / "disk.raw").write_bytes(disk)
    assert measure_image(copy).differences
    ended = owner.boot(copy, tmp_path / "out", from_disk=False)
    assert "adyton guest: starting" not in ended.text
    assert ended.status == {}


def test_changed_command_line_does_not_start(image: Path, owner: Owner, tmp_path: Path) -> None:
    """Another PCR 4 and 11, and the first program sees it too."""
    qemu_of_today()
    copy = other(image, tmp_path / "copy")
    uki = UKI.parse((copy / "adyton.efi").read_bytes())
    stub = (copy / "adyton.efi").read_bytes()[: min(s.offset for s in uki.file.sections if s.name == ".osrel")]
    raw = bytearray(stub)
    count = len(uki.file.sections)
    added = {".osrel", ".cmdline", ".uname", ".initrd", ".linux"}
    raw[uki.file.optional_header - 18 : uki.file.optional_header - 16] = (count - len(added)).to_bytes(2, "little")
    start = uki.file.section_table + 40 * (count - len(added))
    raw[start : start + 40 * len(added)] = bytes(40 * len(added))
    changed = build_uki(
        bytes(raw),
        linux=uki.linux,
        initrd=uki.sections[".initrd"],
        command_line=uki.command_line + " lockdown=none",
        os_release=uki.sections[".osrel"].decode(),
        kernel=uki.sections[".uname"].decode(),
    )
    (copy / "adyton.efi").write_bytes(changed)
    parts = disk_parts(changed, (copy / "root.erofs").read_bytes(), (copy / "root.verity").read_bytes())
    (copy / "disk.raw").write_bytes(b"".join(parts))
    assert "pcrs differs from image.json" in measure_image(copy).differences
    ended = owner.boot(copy, tmp_path / "out", from_disk=True)
    assert "the kernel command line is not the image's" in ended.text
    assert ended.status == {}


def test_credential_beside_the_kernel_image_gets_no_key(
    image: Path, document: GuestImage, owner: Owner, tmp_path: Path
) -> None:
    """PCR 4 and 11 are the good ones, PCR 12 is not zeros, and the key server refuses."""
    qemu_of_today()
    require("mcopy", "mtools")
    copy = other(image, tmp_path / "copy")
    (tmp_path / "evil.cred").write_bytes(b"a credential of the host's")
    partition = f"{copy / 'disk.raw'}@@{ALIGNMENT}"
    subprocess.run(["mmd", "-i", partition, "::EFI/BOOT/BOOTX64.EFI.extra.d"], check=True)
    words = ["mcopy", "-i", partition, str(tmp_path / "evil.cred"), "::EFI/BOOT/BOOTX64.EFI.extra.d/evil.cred"]
    subprocess.run(words, check=True)
    with owner.serving():
        ended = owner.boot(copy, tmp_path / "out", from_disk=True)
    assert ended.pcr(4) == document.pcr("disk-boot", 4).hex(), ended.text
    assert ended.pcr(11) == document.pcr("disk-boot", 11).hex()
    assert ended.pcr(12) != bytes(32).hex()
    assert ended.status["exit_code"] != 0
    assert not (ended.outputs / "out/result").exists()
    entries = json.loads(owner.adyton("audit", "list", "--json"))["entries"]
    assert any("PCR 12" in json.dumps(entry) for entry in entries)


def test_document_of_the_cached_image_is_whole(image: Path) -> None:
    """The image that the other tests used is what its document says, firmware included."""
    found = measure_image(image)
    assert (found.differences, found.unchecked) == ((), ())
    assert found.image is not None
    assert found.image.to_bytes() == (image / DOCUMENT).read_bytes()
    store = variable_store_digest(FirmwareFile.parse((image / "OVMF.fd").read_bytes()))
    assert store is not None
    assert store.hex().startswith(REAL_STORE), "another store of variables than in the logs of real TDX guests"
