"""Checks of `adyton doctor`: the needs of a protected program on this machine, for any TEE."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from adyton.errors import MAX_ENCODED_BYTES, SandboxFailed
from adyton.tee.machine import Machine
from adyton.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIAL_S: Final = 10.0
_TIME_ERROR: Final = 5
_TIMEX_BYTES: Final = 512
_DRIVER_FILES: Final = frozenset({"bind", "module", "uevent", "unbind"})
_GENERATION_DEVICES: Final = ("VM_GEN_COUNTER", "VMGENCTR")
"""ACPI names of a virtual machine's generation counter. Source: drivers/virt/vmgenid.c of Linux."""
_RELEASED: Final = 1_750_000_000
"""The time of Adyton's release (seconds since 1970). An earlier clock is wrong."""


def python(machine: Machine) -> Iterator[Finding]:
    """Interpreter, cryptography, and the compiled parts."""
    del machine
    from cryptography.hazmat.backends.openssl import backend

    yield Finding("host", "Python", "ok", sys.version.split()[0])
    yield Finding("host", "OpenSSL", "ok", backend.openssl_version_text())
    try:
        import adyton.pfile._gcm
        import adyton.vfs._reads  # noqa: F401
    except ImportError:
        yield Finding(
            "host",
            "compiled parts",
            "warning",
            "not built: files are sealed with `cryptography` and read through Python, several times slower",
            "install a C compiler and OpenSSL's headers (libssl-dev), and install Adyton again",
        )
    else:
        yield Finding("host", "compiled parts", "ok", "built")


def fuse(machine: Machine) -> Iterator[Finding]:
    """FUSE: the device, its helper, the library."""
    usable = machine.usable("/dev/fuse")
    seen = "/dev/fuse" if usable else ("no permission" if machine.has("/dev/fuse") else "absent")
    remedy = "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
    yield Finding("host", "FUSE device", "ok" if usable else "missing", seen, None if usable else remedy)
    helper = machine.program("fusermount3")
    yield Finding(
        "host",
        "fusermount3",
        "ok" if helper else "missing",
        helper or "not in PATH",
        None if helper else "apt-get install fuse3",
    )
    from adyton.errors import Error

    try:
        from adyton.vfs import libfuse

        bindings = libfuse.load()
    except (Error, OSError, ImportError) as error:
        seen, remedy = str(error)[:200], getattr(error, "remedy", None) or "apt-get install fuse3"
        yield Finding("host", "libfuse3", "missing", seen, remedy)
    else:
        version = ".".join(map(str, libfuse.bound_version(bindings)))
        yield Finding("host", "libfuse3", "ok", f"{version} ({libfuse.bound_name(bindings)})")


def sandbox(machine: Machine) -> Iterator[Finding]:
    """bubblewrap and user namespaces. They are tried as in a run, since too many settings decide."""
    program = machine.program("bwrap")
    if program is None:
        yield Finding("host", "bubblewrap", "missing", "no bwrap in PATH", "apt-get install bubblewrap")
        return
    try:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TRIAL_S, check=True)
        tried = _try_bubblewrap(program)
    except SandboxFailed as error:  # no filter for this processor, or no user for the program
        yield Finding("host", "namespaces", "missing", error.message, error.remedy)
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("host", "bubblewrap", "missing", str(error)[:200], "apt-get install --reinstall bubblewrap")
        return
    yield Finding("host", "bubblewrap", "ok", version.stdout.strip() or program)
    complaint = ""
    if tried.returncode:
        complaint = tried.stderr.strip()[:200] or f"bwrap ended with {tried.returncode}"
    complaint = complaint or _private_view()
    if not complaint:
        who = "as root" if os.geteuid() == 0 else "as an ordinary user"
        yield Finding("host", "namespaces", "ok", f"a sandbox starts {who}")
        return
    yield Finding("host", "namespaces", "missing", complaint, _allow_namespaces(machine))


def _try_bubblewrap(program: str) -> subprocess.CompletedProcess[str]:
    """Start `true` as a run starts a program: with its user, its own /proc, and its system call filter."""
    from adyton.runtime import callfilter, unprivileged
    from adyton.vfs.owner import Owner

    owner = unprivileged.owner()
    other = owner != Owner.caller()
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        with os.fdopen(into, "wb") as pipe:
            pipe.write(callfilter.program(os.uname().machine, host_files=True))
        words = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--seccomp", str(out)]
        return subprocess.run(
            [program, *words, "--ro-bind", "/", "/", "--proc", "/proc", "true"],
            capture_output=True,
            text=True,
            timeout=_TRIAL_S,
            check=False,
            pass_fds=(out,),
            cwd="/",
            user=owner.uid if other else None,
            group=owner.gid if other else None,
            extra_groups=() if other else None,
        )
    finally:
        os.close(out)


def _private_view() -> str:
    """The error that keeps this process from a private mount namespace, as a run's keeper has it. Empty if none."""
    from adyton.runtime import namespace

    out, into = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            namespace.enter()
        except SandboxFailed as error:
            os.write(into, error.to_bytes())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        told = pipe.read(MAX_ENCODED_BYTES + 1)
    os.waitpid(child, 0)
    return SandboxFailed.parse(told).message[:200] if told else ""


def _allow_namespaces(machine: Machine) -> str:
    """The obstacle, as far as the machine's settings show it, and its remedy."""
    if machine.text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1":
        return (
            "AppArmor keeps user namespaces from programs without a profile, as on Ubuntu since 23.10:"
            " sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return (
        "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container: --security-opt seccomp=unconfined"
    )


def swap(machine: Machine) -> Iterator[Finding]:
    """Unencrypted swap, which writes plaintext to a disk."""
    from adyton.runtime.host import unencrypted_swap

    areas = unencrypted_swap(machine.text("/proc/swaps"), sys=machine.root / "sys")
    if areas:
        seen = "in clear: " + ", ".join(areas)
        yield Finding("host", "swap", "warning", seen, "swapoff -a, or put swap on dm-crypt; refused on a real TEE")
    else:
        yield Finding("host", "swap", "ok", "none, or encrypted")


def clock(machine: Machine) -> Iterator[Finding]:
    """The clock, by which evidence and certificates are judged."""
    del machine
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _RELEASED:
        yield Finding("host", "clock", "warning", f"{shown}: in the past", "set the clock, and keep it with NTP")
        return
    if _synchronised():
        yield Finding("host", "clock", "ok", f"{shown}, synchronised")
    else:
        yield Finding(
            "host",
            "clock",
            "warning",
            f"{shown}, not known to be synchronised",
            "keep it with NTP (systemd-timesyncd, chrony): old collateral passes where the clock is behind",
        )


def _synchronised() -> bool:
    """Whether the clock is synchronised, by adjtimex(2): TIME_ERROR (5) means that it is not."""
    buffer = (ctypes.c_char * _TIMEX_BYTES)()
    libc = ctypes.CDLL(None, use_errno=True)
    state = int(libc.adjtimex(buffer))
    return 0 <= state != _TIME_ERROR


def clones(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel reseeds its random generator after a clone or restore (Linux 5.18, VMGENID)."""
    name = "cloned or restored machine"
    if "hypervisor" not in machine.cpu_flags():
        yield Finding("host", name, "ok", "this is no virtual machine")
        return
    bound = [
        device
        for bus in ("platform", "acpi")
        for device in machine.names(f"/sys/bus/{bus}/drivers/vmgenid")
        if device not in _DRIVER_FILES
    ]
    if bound:
        yield Finding(
            "host", name, "ok", f"the kernel draws new random bytes when the hypervisor tells it ({bound[0]})"
        )
        return
    offered = any(
        word in machine.text(f"/sys/bus/acpi/devices/{device}/modalias").upper()
        for device in machine.names("/sys/bus/acpi/devices")
        for word in _GENERATION_DEVICES
    )
    yield Finding(
        "host",
        name,
        "warning" if offered else "note",
        "the kernel will not notice; the random bytes of a clone may repeat for a minute"
        + ("" if offered else ", and the hypervisor would not tell"),
        ("modprobe vmgenid; " if offered else "")
        + "restart adyton serve and adyton run after cloning or restoring this machine (files and stored keys are"
        " sealed so that repeated bytes do no harm)",
    )


def collateral(machine: Machine) -> Iterator[Finding]:
    """The owner's collateral: whether any is about to expire."""
    del machine
    from datetime import UTC, datetime

    from adyton.collateral.store import CollateralStore, expires_soon
    from adyton.keystore.home import default_home

    folder = default_home() / "collateral"
    held = list(CollateralStore(folder).held())
    now = datetime.now(UTC)
    if not held:
        yield Finding("owner", "collateral", "note", f"none in {folder}", "adyton collateral fetch")
        return
    refused = [row.name for row in held if row.verified is None]
    ends = [row.verified.expires_at for row in held if row.verified is not None]
    if refused:
        yield Finding("owner", "collateral", "warning", "refused: " + ", ".join(refused), "adyton collateral show")
    elif min(ends) < now:
        yield Finding("owner", "collateral", "warning", "some has expired", "adyton collateral fetch")
    elif any(row.verified is not None and expires_soon(row.verified, now) for row in held):
        seen = f"first expiry {min(ends):%Y-%m-%d %H:%M} UTC"
        yield Finding("owner", "collateral", "warning", seen, "adyton collateral fetch")
    else:
        yield Finding("owner", "collateral", "ok", f"{len(held)} documents, valid until {min(ends):%Y-%m-%d}")


def memory(machine: Machine) -> Iterator[Finding]:
    """Private memory, which holds the plaintext."""
    import re

    found = re.search(r"^MemAvailable:\s*(\d+) kB", machine.text("/proc/meminfo"), re.MULTILINE)
    if found is None:
        return
    available_mib = int(found[1]) // 1024
    state = "ok" if available_mib >= 1024 else "warning"
    remedy = None if state == "ok" else "staged files live in memory: free some, or lower the manifest's memory_budget"
    yield Finding("host", "memory", "ok" if state == "ok" else "warning", f"{available_mib} MiB available", remedy)


def kernel(machine: Machine) -> Iterator[Finding]:
    """The kernel, and whether core files leave this machine's memory."""
    release = machine.text("/proc/sys/kernel/osrelease").strip()
    yield Finding("host", "kernel", "ok", release or "unknown")
    pattern = machine.text("/proc/sys/kernel/core_pattern").strip()
    if pattern.startswith("|"):
        yield Finding(
            "host",
            "core files",
            "note",
            f"piped to {pattern[1:].split()[0] if pattern[1:].split() else '?'}",
            "protected programs run with core files off, but one that sets its own limit to 0 would be handed over:"
            " refused where the TEE is real (sysctl -w kernel.core_pattern=core)",
        )
