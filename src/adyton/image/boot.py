"""Boot an image in QEMU: on this machine under emulation or KVM with a software TPM, or the same on a TDX or SNP host.

The host is the adversary of a confidential guest. So nothing here protects the guest: these are the arguments of a
well-meaning host. No device has an option ROM, because a guest would run (and measure) its code.
"""

from __future__ import annotations

import ctypes
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

MEMORY_MIB: Final = 2048
HOSTS: Final = ("tdx", "snp")
_MAX_LINE_BYTES: Final = 4096
_KVM: Final = ("-accel", "kvm")
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
            if len(pending) > _MAX_LINE_BYTES:
                yield pending.decode("utf-8", "replace")
                pending = b""


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
