"""Boot an image in QEMU: on this machine under emulation or KVM with a software TPM, or the same on a TDX or SNP host.

The host is the adversary of a confidential guest. So nothing here protects the guest: these are the arguments of a
well-meaning host. No device has an option ROM, because a guest would run (and measure) its code.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import selectors
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adyton.errors import NoDevice, RunError, UsageError
from adyton.image.guest import OUTPUT_MARK
from adyton.image.guest_settings import MEMBER, GuestSettings
from adyton.image.plain_archive import BLOCK, MAX_MEMBERS, Member, Reader, Writer

OUTPUT_BYTES: Final = 1 << 30
"""Size of the disk for outputs. It is a sparse file."""
MEMORY_MIB: Final = 2048
HOSTS: Final = ("tdx", "snp")
_KVM: Final = ("-accel", "kvm")
_SECTOR: Final = 512
_QEMU: Final = "qemu-system-x86_64"
_LONGEST_WAIT_S: Final = 3600.0
"""The kernel takes no longer time-outs than some days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The virtual machine to start. Files are paths; without `inputs` and `outputs` it has only its own disk."""

    folder: Path
    firmware: Path
    from_disk: bool = False
    """Start the disk's boot entry. Otherwise the kernel image is given with -kernel."""
    inputs: Path | None = None
    outputs: Path | None = None
    tpm_socket: Path | None = None
    memory_mib: int = MEMORY_MIB
    vcpus: int = 1
    network: bool = True
    host: str | None = None
    """`tdx` or `snp` for such a host. None for this machine."""
    accelerated: bool = False

    def command(self) -> list[str]:
        """The command line. Raises UsageError for what a host must not do."""
        words = [_QEMU, "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]
        words += ["-m", str(self.memory_mib), "-smp", str(self.vcpus), *self._processor()]
        words += self._disk("root", self.folder / "disk.raw", readonly=True)
        if not self.from_disk:
            words += ["-kernel", str(self.folder / "adyton.efi")]
        if self.inputs is not None:
            words += self._disk("inputs", self.inputs, readonly=True)
        if self.outputs is not None:
            words += self._disk("outputs", self.outputs, readonly=False)
        if self.network:
            words += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
        if self.tpm_socket is not None:
            words += ["-chardev", f"socket,id=tpm,path={_plain(self.tpm_socket)}"]
            words += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
        return [*words, "-device", "virtio-rng-pci"]

    def _processor(self) -> list[str]:
        firmware = ["-bios", str(self.firmware)]
        if self.host == "tdx":
            machine = "q35,kernel-irqchip=split,confidential-guest-support=tee,hpet=off"
            return [*_KVM, "-cpu", "host", "-object", "tdx-guest,id=tee", "-machine", machine, *firmware]
        if self.host == "snp":
            if self.from_disk:
                raise UsageError(
                    "SEV-SNP does not measure what a disk starts",
                    check="way to boot on SEV-SNP",
                    expected="-kernel with kernel-hashes=on",
                    seen="from the disk",
                    remedy="leave out --from-disk",
                )
            guest = "sev-snp-guest,id=tee,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on"
            machine = "q35,confidential-guest-support=tee,memory-backend=ram"
            memory = f"memory-backend-memfd,id=ram,size={self.memory_mib}M,share=true"
            return [*_KVM, "-cpu", "EPYC-v4", "-object", guest, "-machine", machine, "-object", memory, *firmware]
        accelerator = [*_KVM, "-cpu", "host"] if self.accelerated else ["-accel", "tcg", "-cpu", "max"]
        drive = f"if=pflash,format=raw,readonly=on,file={_plain(self.firmware)}"
        return [*accelerator, "-machine", "q35,smm=off", "-drive", drive]

    @staticmethod
    def _disk(name: str, path: Path, *, readonly: bool) -> list[str]:
        mode = "on" if readonly else "off"
        drive = f"if=none,id={name},format=raw,readonly={mode},file={_plain(path)}"
        return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},romfile="]

    def printed(self) -> str:
        """The command line as a shell takes it."""
        return shlex.join(self.command())


@contextmanager
def software_tpm(folder: Path, *, for_qemu: bool = True) -> Iterator[Path]:
    """A TPM 2.0 by swtpm with its state in `folder`, while this lasts. Gives its socket. Raises NoDevice without swtpm.

    QEMU speaks to the control channel. Others speak TPM commands to the server's socket. A TPM ends with its QEMU, so
    each boot has one of its own; the state stays.
    """
    socket = folder / ("control.sock" if for_qemu else "tpm.sock")
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
    if for_qemu:
        command += ["--ctrl", f"type=unixio,path={socket}", "--flags", "startup-clear"]
    else:
        command += ["--server", f"type=unixio,path={socket}", "--flags", "not-need-init,startup-clear"]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=_end_with_parent
        )
    except FileNotFoundError as error:
        raise _missing("swtpm", "swtpm") from error
    try:
        ends_s = time.monotonic() + 30
        while not socket.exists():
            if child.poll() is not None or time.monotonic() > ends_s:
                raise RunError("swtpm did not start", check="software TPM", expected=str(socket), seen="no socket")
            time.sleep(0.05)
        yield socket
    finally:
        child.terminate()
        child.wait()


def start(
    machine: Machine, console: Callable[[str], None], timeout_s: float, *, until: Callable[[str], bool] | None = None
) -> None:
    """Run the machine to its end. Each line of its console goes to `console`.

    With `until`, the time counts only up to the first line of which it says true. From then on the machine takes as
    long as it wants. Raises NoDevice without QEMU, and RunError where it fails or takes longer than `timeout_s`.
    """
    try:
        child = subprocess.Popen(
            machine.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )
    except FileNotFoundError as error:
        raise _missing(_QEMU, "qemu-system-x86") from error
    limit = _Limit(time.monotonic() + timeout_s)
    try:
        for line in _lines(child, limit):
            console(line)
            if until is not None and until(line):
                limit.ends_s = math.inf
        status = child.wait(timeout=max(1.0, limit.left_s()))
    except subprocess.TimeoutExpired as error:
        what = "start the program" if until is not None else "end"
        raise RunError(
            f"the machine did not {what} within {timeout_s:.0f} s",
            check="time of the machine",
            expected=f"at most {timeout_s:.0f} s",
            seen="still running",
            remedy="its console says how far it came; give it longer with --timeout, or more memory",
        ) from error
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if status != 0:
        raise RunError("QEMU failed", check="exit code of QEMU", expected="0", seen=str(status))


@dataclass(slots=True)
class _Limit:
    """When a machine is given up, on the monotonic clock. It may be never (infinity)."""

    ends_s: float

    def left_s(self) -> float:
        """The seconds until then, at most an hour."""
        return max(0.0, min(_LONGEST_WAIT_S, self.ends_s - time.monotonic()))


def _end_with_parent() -> None:
    """Have the kernel kill this process when Adyton ends, however that happens: no machine stays behind."""
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def _lines(child: subprocess.Popen[bytes], limit: _Limit) -> Iterator[str]:
    """The console's lines, each cut at 4096 bytes: the guest may write without end."""
    if child.stdout is None:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        pending = b""
        while True:
            while not selector.select(timeout=limit.left_s()):
                if limit.left_s() == 0:
                    raise subprocess.TimeoutExpired(child.args, 0)
            piece = os.read(child.stdout.fileno(), 4096)
            *whole, pending = (pending + piece).split(b"\n")
            for line in whole if piece else [pending]:
                yield line.decode("utf-8", "replace").rstrip("\r")
            if not piece:
                return
            if len(pending) > BLOCK * 8:
                yield pending.decode("utf-8", "replace")
                pending = b""


def pack_inputs(settings: GuestSettings, share: Path, target: Path) -> None:
    """Write the archive that a guest gets: its settings, then every file and folder below `share`.

    A link inside `share` is written as the file or folder that it leads to. Raises UsageError for anything else, and
    MalformedManifest for names that an archive cannot have.
    """
    with target.open("wb") as stream:
        writer = Writer(stream, 1 << 50)
        raw = settings.to_bytes()
        writer.add(Member(MEMBER, len(raw)), io.BytesIO(raw))
        for path, name in _files(share):
            if path.is_dir():
                writer.add(Member(name, 0, is_folder=True))
                continue
            with path.open("rb") as content:
                found = os.fstat(content.fileno())
                writer.add(Member(name, found.st_size, executable=bool(found.st_mode & 0o100)), content)
        writer.close()
        stream.truncate(-(-stream.tell() // _SECTOR) * _SECTOR)


def _files(share: Path) -> Iterator[tuple[Path, str]]:
    """Every folder and file below `share` with its name in the archive, each folder before what is in it."""
    count = 0
    for parent, folders, names in os.walk(share, followlinks=True):
        folders.sort()
        for name in sorted([*folders, *names]):
            path = Path(parent, name)
            count += 1
            if count > MAX_MEMBERS or not (path.is_file() or path.is_dir()):
                raise UsageError(
                    f"{path} cannot go into the guest's archive",
                    check="files for the guest",
                    expected=f"at most {MAX_MEMBERS} files and folders, and nothing else",
                    seen="too many" if count > MAX_MEMBERS else "neither",
                )
            shown = path.relative_to(share).as_posix()
            if shown != MEMBER:
                yield path, shown


def new_output_disk(path: Path, size_bytes: int = OUTPUT_BYTES) -> None:
    """Make the disk to which a guest appends its outputs."""
    with path.open("wb") as file:
        file.write(OUTPUT_MARK)
        file.truncate(size_bytes)


def unpack_outputs(disk: Path, folder: Path) -> list[str]:
    """Unpack what a guest wrote into a folder; gives the names. Files there are replaced, other files stay.

    The guest may be anybody's, so names are taken only as `plain_archive` allows, and no link is followed. Raises
    MalformedManifest where the archive is not plain or has no end, and RunError where the guest wrote nothing.
    """
    with disk.open("rb") as probe:
        if probe.read(len(OUTPUT_MARK)) == OUTPUT_MARK:
            raise RunError(
                "the guest wrote no outputs",
                check="outputs of the guest",
                expected="an archive",
                seen="an empty disk",
                remedy="its console says why it ended",
            )
    names: list[str] = []
    with disk.open("rb", buffering=1 << 20) as stream:
        reader = Reader(stream, disk.stat().st_size)
        for member in reader:
            target = folder / member.name
            for above in reversed(target.relative_to(folder).parents[:-1]):
                _real_folder(folder / above)
            if member.is_folder:
                _real_folder(target)
                continue
            part = target.with_name(f".{len(names)}.adyton-part")
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                for piece in reader.content():
                    file.write(piece)
            part.replace(target)
            names.append(member.name)
    return names


def _real_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise UsageError(f"{path} is a link", check="folder for outputs", expected="a folder", seen="a link")


def _plain(path: Path) -> str:
    """A path as an option of QEMU takes it: a comma is written twice."""
    return str(path.absolute()).replace(",", ",,")


def _missing(program: str, package: str) -> NoDevice:
    return NoDevice(
        f"{program} is not installed",
        check=program,
        expected=program,
        seen="nothing",
        remedy=f"apt-get install {package}",
    )
