"""Guest images: build one, say what hardware reports of it, boot it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import write_file
from adyton.attest.tdx_boot import read_boot
from adyton.attest.tpm.event_log import MAX_LOG_BYTES
from adyton.capped_read import read_capped
from adyton.errors import Error, UsageError
from adyton.image import firmware, gpu_files, lock
from adyton.image.boot import Machine, software_tpm, start
from adyton.image.document import FILES, MAX_BYTES, GuestImage, parse_image
from adyton.image.firmware import FirmwareFile
from adyton.image.guest_disks import OUTPUT_BYTES, new_output_disk, pack_inputs, unpack_outputs
from adyton.image.guest_settings import MEMBER
from adyton.image.host_tables import with_host_tables
from adyton.image.measure import differences, firmware_entries, measure
from adyton.image.measure_snp import takes_kernel_hashes
from adyton.image.recipe import FIRMWARE_NAME
from adyton.workflow.guest_disks import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.image.document import SNPEntry, TDXEntry

DOCUMENT: Final = "image.json"
MAX_FILE_BYTES: Final = 2 << 30
_MAX_GPU_FILES: Final = 16
"""Most files of a driver's folder that are read. Too many are refused by their names."""
OWN_LOCK: Final = Path(lock.__file__).with_name("lock.json")
"""The lock file of this release."""


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """The document as the files give it, and in what it differs from `image.json`. None where the files are damaged."""

    image: GuestImage | None
    differences: tuple[str, ...]
    unchecked: tuple[str, ...]
    """Names of firmware in `image.json` that was not at hand."""
    tables_unchecked: bool = False
    """`image.json` pins ACPI tables, and no log was given: they are its maker's word, and left out here."""


def build_image(
    folder: Path,
    *,
    lock_file: Path = OWN_LOCK,
    pool: Path | None = None,
    mirrors: Sequence[str] = (),
    gpu: Path | None = None,
    note: Callable[[str], None],
) -> GuestImage:
    """Build an image into a folder, as `adyton image build` does. `gpu` is a folder with a driver for GPUs.

    Raises FetchFailed where a package is gone, UsageError, NoDevice, RunError and StorageFailed.
    """
    from adyton.image.build import build, write_image
    from adyton.image.pool import Pool, default_pool

    locked = lock.parse_lock(read_capped(lock_file, lock.MAX_BYTES, "lock file of the image"))
    driver = None if gpu is None else _gpu_files(gpu, locked.kernel)
    built = build(locked, Pool(pool or default_pool(), mirrors, note), note, driver)
    write_image(built, folder)
    return built.image


def _gpu_files(folder: Path, kernel: str) -> gpu_files.GPUFiles:
    """The folder's files but SHA256SUMS, checked by it."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    contents = {
        name: read_capped(folder / name, gpu_files.MAX_FILE_BYTES, "driver for GPUs", unreadable=UsageError)
        for name in names[:_MAX_GPU_FILES]
    }
    sums = contents.pop(gpu_files.SUMS, b"")
    return gpu_files.GPUFiles.parse(contents, sums, kernel)


def update_lock(
    lock_file: Path, requirements: Path, *, mirrors: Sequence[str] = (), note: Callable[[str], None]
) -> lock.Lock:
    """Write a lock file with what mirrors and package index have now. Raises FetchFailed, NoDevice and UsageError."""
    from adyton.image.update_lock import new_lock

    found = new_lock(requirements, mirrors, note)
    write_file(lock_file, found.to_bytes())
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBoot:
    """A boot that the owner made on her own TDX machine: its event log (CCEL), and her words for QEMU and machine."""

    log: Path
    qemu: str
    machine: str


def measure_image(
    folder: Path,
    *,
    firmware_files: Sequence[Path] = (),
    vcpus: Sequence[int] = (),
    host_boot: HostBoot | None = None,
) -> MeasuredImage:
    """Compute the document of an image from its files, as `adyton image measure` does.

    Firmware is taken from `firmware_files`, and from the folder. Without `vcpus`, launch digests are computed for the
    numbers of processors that `image.json` has. `host_boot` pins the ACPI tables (RTMR0) of the entries that it is a
    boot of. Raises UsageError where there is no image or the log is of another boot, EvidenceError where the log does
    not parse, and StorageFailed.
    """
    stated = parse_image(read_capped(folder / DOCUMENT, MAX_BYTES, "guest image document", unreadable=UsageError))
    files = {name: read_capped(folder / name, MAX_FILE_BYTES, "file of the image") for name in stated.files}
    try:
        measured = measure(files, stated)
    except Error as error:  # a file is not even of its kind
        return MeasuredImage(None, (error.message,), ())
    given = {path.name: read_capped(path, firmware.MAX_BYTES, "firmware") for path in firmware_files}
    known = {name: files[name] for name in stated.files if name not in FILES} | given
    counts = tuple(vcpus) or tuple(sorted({entry.vcpus for entry in stated.snp})) or (1,)
    tdx: list[TDXEntry] = []
    snp: list[SNPEntry] = []
    wrong = list(measured.problems)
    for name, raw in known.items():
        try:
            more_tdx, more_snp = firmware_entries(files["adyton.efi"], measured.predicted, name, raw, counts)
        except Error as error:
            if name in given:
                raise
            wrong.append(f"{name}: {error.message}")
            continue
        tdx += more_tdx
        snp += more_snp
    if host_boot is not None:
        log = read_capped(host_boot.log, MAX_LOG_BYTES, "event log", unreadable=UsageError)
        files_of = {entry.firmware.name: FirmwareFile.parse(known[entry.firmware.name]) for entry in tdx}
        tdx = list(with_host_tables(tdx, read_boot(log), files_of, qemu=host_boot.qemu, machine=host_boot.machine))
    image = replace(measured.image, tdx=tuple(tdx), snp=tuple(snp))
    wrong += [f"{name} differs from {DOCUMENT}" for name in differences(stated, image)]
    at_hand = {entry.firmware.sha256 for entry in tdx} | {entry.firmware.sha256 for entry in snp}
    named = {entry.firmware for entry in stated.tdx} | {entry.firmware for entry in stated.snp}
    unchecked = sorted(item.name for item in named if item.sha256 not in at_hand)
    told = any(entry.acpi is not None for entry in stated.tdx) and host_boot is None
    return MeasuredImage(image, tuple(wrong), tuple(unchecked), tables_unchecked=told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """How to boot an image: see `adyton image boot`."""

    folder: Path
    share: Path | None = None
    outputs: Path | None = None
    inputs: Path | None = None
    """A disk as `adyton image disk` wrote it, in the place of `share`. Nothing is unpacked then."""
    output_disk: Path | None = None
    """The disk for outputs beside `inputs`. It is made where it is missing."""
    tpm: bool = False
    sim_platform: Path | None = None
    """Who certifies the software TPM's attestation key. It proves the protocol, and protects nothing."""
    from_disk: bool = False
    firmware: Path | None = None
    tee: str | None = None
    kvm: bool = False
    memory_mib: int = 2048
    vcpus: int = 1
    timeout_s: float = 600.0
    until: Callable[[str], bool] | None = None
    """The line of the console up to which `timeout_s` counts. None: up to the machine's end."""
    output_bytes: int = OUTPUT_BYTES
    """Size of the disk for outputs, a sparse file."""


def printed_boot(boot: Boot) -> str:
    """The command line that boots this image, for a shell. Nothing is started. Raises UsageError."""
    _check_disks(boot)
    _check_firmware(boot)
    inputs = boot.inputs if boot.share is None else Path("inputs.raw")
    outputs = boot.output_disk if boot.share is None else Path("outputs.raw")
    return _machine(boot, inputs, outputs, Path("tpm.sock") if boot.tpm else None).printed()


def boot_image(boot: Boot, console: Callable[[str], None]) -> list[str]:
    """Boot an image and wait until it powers off. Gives the names of the outputs, which lie below `outputs` then.

    Raises UsageError, NoDevice, RunError and MalformedManifest.
    """
    _check_disks(boot)
    _check_firmware(boot)
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adyton-boot-")))
        inputs, outputs = boot.inputs, boot.output_disk
        if boot.share is not None:
            inputs, outputs = temporary / "inputs.raw", temporary / "outputs.raw"
            pack_inputs(read_settings(boot.share / MEMBER), boot.share, inputs)
        if outputs is not None and not outputs.exists():
            new_output_disk(outputs, boot.output_bytes)
        if boot.sim_platform is not None:
            _certify(temporary, boot.sim_platform)
        socket = stack.enter_context(software_tpm(temporary)) if boot.tpm else None
        start(_machine(boot, inputs, outputs, socket), console, boot.timeout_s, until=boot.until)
        if outputs is None or boot.share is None:
            return []
        with outputs.open("rb") as disk:
            return unpack_outputs(disk, outputs.stat().st_size, boot.outputs or boot.share)


def _certify(folder: Path, platform: Path) -> None:
    """Have a software TPM's key certified by a simulated platform, before the machine that has this TPM starts."""
    from adyton.sim.platform import SimPlatform
    from adyton.sim.software_tpm import SoftwareTPM
    from adyton.tee.tpm_device import TPMDevice
    from adyton.tee.tpm_guest import certify

    with software_tpm(folder, for_qemu=False) as socket:
        device = TPMDevice(SoftwareTPM(socket))
        try:
            certify(device, SimPlatform.load(platform))
        finally:
            device.close()


def _machine(boot: Boot, inputs: Path | None, outputs: Path | None, socket: Path | None) -> Machine:
    return Machine(
        folder=boot.folder,
        firmware=_firmware_of(boot),
        from_disk=boot.from_disk,
        inputs=inputs,
        outputs=outputs,
        tpm_socket=socket,
        memory_mib=boot.memory_mib,
        vcpus=boot.vcpus,
        host=boot.tee,
        accelerated=boot.kvm,
    )


def _firmware_of(boot: Boot) -> Path:
    return boot.firmware or boot.folder / FIRMWARE_NAME


def _check_disks(boot: Boot) -> None:
    given = boot.inputs is not None or boot.output_disk is not None
    if boot.share is not None and given:
        raise UsageError(
            "a folder and disks for one guest",
            check="files for the guest",
            expected="--share, or --inputs and --output-disk",
            seen="both",
        )


def _check_firmware(boot: Boot) -> None:
    path = _firmware_of(boot)
    if boot.sim_platform is not None and not boot.tpm:
        raise UsageError("a simulated platform certifies a TPM", check="--sim-platform", expected="--tpm", seen="none")
    if boot.tee not in (None, "tdx", "snp"):
        raise UsageError(f"no host of kind {boot.tee!r}", check="--tee", expected="tdx or snp", seen=str(boot.tee))
    if boot.tee is None:
        return
    found = FirmwareFile.parse(read_capped(path, firmware.MAX_BYTES, "firmware", unreadable=UsageError))
    if boot.tee == "snp" and not takes_kernel_hashes(found):
        raise UsageError(
            f"under {path} SEV-SNP would not measure this image",
            check="firmware for SEV-SNP",
            expected="OVMF's AmdSev build, which checks kernel, initrd and command line against measured hashes",
            seen="a firmware without a page for these hashes",
            remedy="give such a build with --firmware (Debian: ovmf-amdsev)",
        )
    if boot.tee == "tdx" and not found.tdx:
        raise UsageError(f"{path} cannot start a TDX guest", check="firmware for TDX", expected="TDVF", seen="none")
