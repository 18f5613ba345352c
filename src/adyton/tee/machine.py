"""Which TEE this machine has, and what is missing for each: read from /proc, /sys and /dev, nothing is started.

A processor may offer a TEE that the operating system cannot use, or that Adyton cannot use. So each step is looked at
by itself, and the first that is missing is named, with a remedy.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.attest.names import TRUSTED
from adyton.sim.files import platform_directory
from adyton.tee.source import TEES
from adyton.tee.system import TPM_DEVICE, TPM_EVENT_LOG
from adyton.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CPUINFO_BYTES: Final = 1 << 20
CHASSIS_TAG: Final = "/sys/class/dmi/id/chassis_asset_tag"
SYSTEM_VENDOR: Final = "/sys/class/dmi/id/sys_vendor"
AMAZON: Final = "Amazon EC2"
AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
"""What the chassis of every machine of Azure's says. Anybody's can: it proves nothing."""
UNTRIED: Final = "Adyton's part of it has never run on hardware; it is tested against doubles"


@dataclass(frozen=True)
class Machine:
    """The files of a machine under `root`, and its search path. Tests give others than this machine's."""

    root: Path = Path("/")
    path: str | None = None

    def has(self, name: str) -> bool:
        """Whether something exists at this path."""
        try:
            return self._at(name).exists()
        except OSError:
            return False

    def usable(self, name: str) -> bool:
        """Whether it can be read and written."""
        return os.access(self._at(name), os.R_OK | os.W_OK)

    def text(self, name: str) -> str:
        """The file's text, empty where there is none."""
        try:
            with self._at(name).open("rb") as file:
                return file.read(_CPUINFO_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def names(self, folder: str) -> tuple[str, ...]:
        """The names in a folder, in order. None of them where there is no folder."""
        try:
            return tuple(sorted(child.name for child in self._at(folder).iterdir()))
        except OSError:
            return ()

    def program(self, name: str) -> str | None:
        """Where a program lies."""
        return shutil.which(name, path=self.path)

    def _at(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def cpu_flags(self) -> frozenset[str]:
        """The processor's feature flags, as the kernel names them."""
        found = re.search(r"^flags\s*:(.*)$", self.text("/proc/cpuinfo"), re.MULTILINE)
        return frozenset(found[1].split()) if found else frozenset()

    def vendor(self) -> str:
        """The processor's vendor."""
        found = re.search(r"^vendor_id\s*:\s*(\S+)", self.text("/proc/cpuinfo"), re.MULTILINE)
        return found[1] if found else "unknown"

    def kernel(self) -> tuple[int, int]:
        """The kernel's version."""
        found = re.match(r"(\d+)\.(\d+)", self.text("/proc/sys/kernel/osrelease"))
        return (int(found[1]), int(found[2])) if found else (0, 0)


def _step(tee: str, name: str, ok: bool, yes: str, no: str, remedy: str) -> Finding:
    return Finding(tee, name, "ok" if ok else "missing", yes if ok else no, None if ok else remedy)


def sgx(machine: Machine) -> Iterator[Finding]:
    """Steps to SGX: processor, kernel, Gramine, quoting service."""
    flags = machine.cpu_flags()
    yield _step(
        "sgx",
        "processor with SGX and flexible launch control",
        {"sgx", "sgx_lc"} <= flags,
        "sgx, sgx_lc",
        f"{machine.vendor()}: " + (", ".join(sorted(flags & {"sgx", "sgx_lc"})) or "no sgx"),
        "use an Intel Xeon Scalable of the 3rd generation or newer, with SGX switched on in the BIOS (in a virtual "
        "machine: an instance type with SGX)",
    )
    yield _step(
        "sgx",
        "device /dev/sgx_enclave",
        machine.usable("/dev/sgx_enclave"),
        "/dev/sgx_enclave",
        "no permission" if machine.has("/dev/sgx_enclave") else "absent",
        "use a kernel of 5.11 or newer with CONFIG_X86_SGX, and join the group that owns the device",
    )
    yield _step(
        "sgx",
        "device /dev/sgx_provision",
        machine.usable("/dev/sgx_provision"),
        "/dev/sgx_provision",
        "no permission" if machine.has("/dev/sgx_provision") else "absent",
        "add the user to the group sgx_prv: without it there are enclaves, but no attestation",
    )
    gramine = machine.program("gramine-sgx")
    yield _step(
        "sgx",
        "Gramine",
        gramine is not None,
        str(gramine),
        "no gramine-sgx in PATH",
        "install Gramine 1.7 or newer, from its own package repository",
    )
    yield _step(
        "sgx",
        "quoting service (AESM)",
        machine.has("/var/run/aesmd/aesm.socket"),
        "/var/run/aesmd/aesm.socket",
        "no aesm.socket",
        "install sgx-aesm-service with libsgx-aesm-quote-ex-plugin and libsgx-dcap-default-qpl, and set its PCCS",
    )


def _configfs(machine: Machine, tee: str, provider: str, module: str) -> Finding:
    root = "/sys/kernel/config/tsm/report"
    if machine.has(root):
        return Finding(tee, "attestation reports (configfs-tsm)", "ok", root)
    old = machine.kernel() < (6, 7)
    remedy = (
        "use a kernel of 6.7 or newer with CONFIG_TSM_REPORTS"
        if old
        else f"modprobe {module}, then mount -t configfs none /sys/kernel/config"
    )
    return Finding(tee, "attestation reports (configfs-tsm)", "missing", f"no {root} for {provider}", remedy)


def tdx(machine: Machine) -> Iterator[Finding]:
    """Steps to TDX, as seen from inside the guest."""
    yield _step(
        "tdx",
        "trust domain",
        "tdx_guest" in machine.cpu_flags() or machine.has("/dev/tdx_guest"),
        "this is a TDX guest",
        "this is no TDX guest",
        "run inside a TDX guest (a confidential virtual machine on Intel Xeon of the 5th generation or newer)",
    )
    yield _configfs(machine, "tdx", "tdx_guest", "tdx_guest")
    register = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
    yield _step(
        "tdx",
        "run-time register RTMR3",
        machine.usable(register),
        register,
        "cannot be extended",
        "use a kernel of 6.16 or newer in the guest, and run as root",
    )


def snp(machine: Machine) -> Iterator[Finding]:
    """Steps to SEV-SNP, as seen from inside the guest."""
    yield _step(
        "snp",
        "SEV-SNP guest",
        machine.has("/dev/sev-guest"),
        "/dev/sev-guest",
        "this is no SEV-SNP guest, or its driver is not loaded",
        "run inside a SEV-SNP guest (a confidential virtual machine on AMD EPYC of the 3rd generation or newer), and "
        "modprobe sev-guest",
    )
    report = _configfs(machine, "snp", "sev_guest", "sev-guest")
    if report.state == "missing" and machine.usable("/dev/sev-guest"):
        report = Finding("snp", report.name, "note", "absent; /dev/sev-guest serves instead")
    yield report


def tpm(machine: Machine) -> Iterator[Finding]:
    """Steps to a measured boot by a TPM, as seen from inside the machine."""
    yield _step(
        "tpm",
        "device /dev/tpmrm0",
        machine.usable(TPM_DEVICE),
        TPM_DEVICE,
        "no permission" if machine.has(TPM_DEVICE) else "absent",
        "give the machine a virtual TPM 2.0, and run as root or in the group tss",
    )
    yield _step(
        "tpm",
        "event log of the boot",
        machine.has(TPM_EVENT_LOG),
        TPM_EVENT_LOG,
        "absent",
        "boot by UEFI firmware that measures, and mount securityfs at /sys/kernel/security",
    )
    yield Finding("tpm", "what it protects", "note", "a TPM measures the boot, and encrypts no memory")


def azure(machine: Machine) -> Iterator[Finding]:
    """Steps to an Azure confidential machine. Nothing where this is no machine of Azure's."""
    if machine.text(CHASSIS_TAG).strip() != AZURE_TAG:
        return
    name = "az-tdx" if machine.vendor() == "GenuineIntel" else "az-snp"
    yield _step(
        name,
        "TPM of the paravisor",
        machine.usable(TPM_DEVICE),
        TPM_DEVICE,
        "no permission" if machine.has(TPM_DEVICE) else "absent",
        "use a confidential machine (DCasv5, DCesv6 and others), and run as root or in the group tss",
    )
    yield Finding(name, "what you trust", "note", f"{TRUSTED[name]}, which can read the guest's memory")


def nitrotpm(machine: Machine) -> Iterator[Finding]:
    """Steps to an EC2 instance with a NitroTPM. Nothing where this is no machine of Amazon's."""
    if machine.text(SYSTEM_VENDOR).strip() != AMAZON:
        return
    yield _step(
        "nitrotpm",
        "NitroTPM",
        machine.usable(TPM_DEVICE),
        TPM_DEVICE,
        "no permission" if machine.has(TPM_DEVICE) else "absent",
        "register the image with --boot-mode uefi --tpm-support v2.0, and run as root or in the group tss",
    )
    yield Finding("nitrotpm", "what you trust", "note", f"{TRUSTED['nitrotpm']}, which can read the guest's memory")


def sim() -> Iterator[Finding]:
    """Whether there is a simulated platform already. The simulated TEE works anywhere."""
    folder = platform_directory()
    exists = (folder / "machine" / "machine.json").is_file()
    yield Finding(
        "sim",
        "simulated platform",
        "ok" if exists else "note",
        f"{folder}" if exists else f"none in {folder}",
        None if exists else "adyton platform new DIR, then --sim-platform DIR",
    )
    yield Finding("sim", "what it protects", "note", "nothing from this machine's administrator: it is for trying")


def tee_findings(machine: Machine | None = None) -> list[Finding]:
    """Every step of every TEE."""
    here = machine or Machine()
    found: list[Finding] = []
    for steps in (sgx, tdx, snp, tpm, azure, nitrotpm):
        rows = list(steps(here))
        found += rows
        if rows and all(row.state != "missing" for row in rows):
            found.append(Finding(rows[0].group, "tried", "note", UNTRIED))
    return found + list(sim())


def usable_tees(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The TEEs of which no step is missing. `sim` is always among them."""
    rows = list(findings)
    names = dict.fromkeys(row.group for row in rows if row.group in TEES)
    return tuple(name for name in names if all(row.state != "missing" for row in rows if row.group == name))
