"""The first program of a guest image after the initrd: `python3 -I -m adyton.image.guest`, as process 1.

Its steps, in their order:

1. mount the file systems of the kernel and of memory
2. load the kernel's modules, and those of GPUs; then allow no further one, and check that the kernel is locked down
3. wait until the kernel's random generator is ready
4. find the disk with the archive, unpack the archive into memory, and a pack in it, and read the settings in it
5. set the network's address, or ask for one by DHCP, and ask for the addresses of key servers
6. `adyton run` in a process of its own, which extends the workload register and proves what it is
7. append what the run wrote to the disk for outputs
8. power off

Whatever fails, the machine powers off. Nothing is started but `adyton run`, and nobody can log in. All input comes from
an untrusted host and stays data.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from adyton import pack_archive
from adyton.errors import Error, RunError
from adyton.image import guest_gpus, guest_kernel, guest_names, guest_network, guest_result, guest_settings
from adyton.image.guest_kernel import wait_for
from adyton.image.guest_settings import GuestSettings
from adyton.image.network import resolver_file
from adyton.image.plain_archive import BLOCK, Member, Reader, Writer
from adyton.pack_archive import SUFFIX

OUTPUT_MARK: Final = guest_result.FORMAT.encode("ascii") + b"\n"
"""How the first block of the disk for outputs begins before a run."""
STATUS_MEMBER: Final = "adyton-status.json"
"""The last file of the outputs: without it the archive was cut."""
SAYS: Final = "adyton guest: "
"""How each line of this process on the console begins."""
STARTING: Final = "starting"
ENDED: Final = "adyton run ended with"
SHARE: Final = Path("/run/adyton/share")
EVENT_LOG_MEMBER: Final = "adyton-event-log.bin"
EVENT_LOGS: Final = (
    Path("/sys/kernel/security/tpm0/binary_bios_measurements"),
    Path("/sys/firmware/acpi/tables/data/CCEL"),
)
"""The firmware's log of the boot: of a TPM, or of a TDX guest. The first that is there goes to the host."""
_MAX_LOG_BYTES: Final = 256 << 10
MODULES: Final = Path("/usr/lib/adyton/modules")
LOCKED_DOWN: Final = "[confidentiality]"
_UNPACKED_SHARE_OF_MEMORY: Final = 0.5
_MAX_OUTPUT_FILES: Final = 100_000
_OUTPUTS_TIMEOUT_S: Final = 2.0
"""How long the disk for outputs may take to show after the other one."""
_ENVIRONMENT: Final = {"PATH": "/usr/bin", "HOME": "/run", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108

Stamp = tuple[int, int, int, int]


def say(text: str) -> None:
    """One line on the console, which the host reads."""
    shown = text.encode("ascii", "backslashreplace").decode("ascii")
    sys.stderr.write("".join(c if c.isprintable() or c == "\n" else "?" for c in f"{SAYS}{shown}") + "\n")
    sys.stderr.flush()


def mount_all() -> None:
    """Step 1. Raises OSError; what a kernel does not have is left out."""
    memory = guest_kernel.NO_SUID | guest_kernel.NO_DEVICES
    for kind, target, flags, options in (
        ("tmpfs", "/run", memory, "mode=755"),
        ("tmpfs", "/tmp", memory, "mode=1777"),  # noqa: S108
        ("devpts", "/dev/pts", guest_kernel.NO_SUID | guest_kernel.NO_EXECUTION, "mode=600,ptmxmode=666"),
        ("tmpfs", "/dev/shm", memory, "mode=1777"),  # noqa: S108
        ("securityfs", "/sys/kernel/security", memory, ""),
        ("configfs", "/sys/kernel/config", memory, ""),
    ):
        if target.startswith("/dev/"):
            Path(target).mkdir(exist_ok=True)
        elif not Path(target).is_dir():
            continue
        guest_kernel.mount(kind, target, flags, options)
    for name in ("adyton", "adyton/share"):
        Path("/run", name).mkdir(mode=0o755)


def shut_the_door(system: Path = Path("/")) -> None:
    """The end of step 2: no module, no other kernel, no core file, no kernel addresses. Raises RunError."""
    for name, value in {
        "kernel/modules_disabled": "1",
        "kernel/kexec_load_disabled": "1",
        "kernel/core_pattern": "\n",  # an empty text would not be written at all
        "kernel/kptr_restrict": "2",
        "kernel/dmesg_restrict": "1",
        "kernel/sysrq": "0",
    }.items():
        path = system / "proc/sys" / name
        if path.exists():
            path.write_text(value, encoding="ascii")
    for path, expected in (
        (system / "proc/sys/kernel/modules_disabled", "1"),
        (system / "sys/kernel/security/lockdown", LOCKED_DOWN),
    ):
        seen = path.read_text(encoding="ascii") if path.exists() else "nothing"
        if expected not in seen.split():
            raise RunError(
                "the kernel is not locked down", check=path.name, expected=expected, seen=seen.strip(), remedy=None
            )


def block_devices(system: Path = Path("/")) -> list[Path]:
    """The whole disks of the machine, sorted by name, without those that the kernel makes itself."""
    names = sorted(path.name for path in (system / "sys/block").iterdir())
    return [system / "dev" / name for name in names if not name.startswith(("dm-", "loop", "ram", "zram", "sr", "fd"))]


def find_disk(disks: list[Path], what: str, begins: Callable[[bytes], bool]) -> Path | None:
    """The one disk whose first block begins as `begins` says; None where there is none. Raises RunError for two."""
    found = []
    for disk in disks:
        try:
            with disk.open("rb") as file:
                first = file.read(BLOCK)
        except OSError:  # a drive without a medium
            continue
        if begins(first):
            found.append(disk)
    if len(found) > 1:
        raise RunError(f"two disks for {what}", check=what, expected="one disk", seen=str(len(found)))
    return found[0] if found else None


def find_inputs() -> Path | None:
    """The disk with the archive. Raises RunError for two."""
    return find_disk(
        block_devices(), "the archive", lambda first: first.startswith(guest_settings.MEMBER.encode() + b"\0")
    )


def find_outputs() -> Path | None:
    """The disk for outputs. Raises RunError for two."""
    return find_disk(block_devices(), "the outputs", takes_outputs)


def takes_outputs(first: bytes) -> bool:
    """Whether a disk whose first block is this takes outputs: nothing was written to it, or no output of a program.

    So a disk serves again after a run that was refused. It never loses a result.
    """
    nothing = (EVENT_LOG_MEMBER, STATUS_MEMBER)
    return first.startswith((OUTPUT_MARK, *(name.encode("ascii") + b"\0" for name in nothing)))


def first_settings(reader: Reader, members: Iterator[Member]) -> GuestSettings:
    """The settings, which are the first file of an archive. Raises RunError and MalformedManifest."""
    first = next(members, None)
    if first is None or first.name != guest_settings.MEMBER or first.size > guest_settings.MAX_BYTES:
        raise RunError(
            "the archive does not begin with the settings",
            check="first file of the archive",
            expected=f"{guest_settings.MEMBER}, at most {guest_settings.MAX_BYTES} bytes",
            seen="something else",
        )
    return guest_settings.parse_settings(b"".join(reader.content()))


def unpack(disk: Path, target: Path, limit_bytes: int) -> tuple[GuestSettings, dict[str, Stamp]]:
    """Step 4: the settings, and each file's stamp after it was unpacked. Raises MalformedManifest and OSError."""
    stamps: dict[str, Stamp] = {}
    with disk.open("rb", buffering=1 << 20) as stream:
        reader = Reader(stream, limit_bytes)
        members = iter(reader)
        settings = first_settings(reader, members)
        for member in members:
            path = target / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.is_folder:
                path.mkdir(exist_ok=True)
                continue
            with path.open("xb") as file:
                for piece in reader.content():
                    file.write(piece)
            path.chmod(0o755 if member.executable else 0o644)
            stamps[member.name] = _stamp(path)
    return settings, stamps


def unpack_pack(settings: GuestSettings, folder: Path) -> dict[str, Stamp]:
    """Unpack a pack (`adyton pack`) beside itself, where `adyton run` goes on. Each file's stamp, none for a manifest.

    Raises FileFormatError, IntegrityError and StorageFailed.
    """
    if not settings.manifest.endswith(SUFFIX):
        return {}
    target = (folder / settings.manifest).with_suffix("")
    pack_archive.unpack(folder / settings.manifest, target)
    return {path.relative_to(folder).as_posix(): _stamp(path) for path in target.rglob("*") if path.is_file()}


def new_files(folder: Path, before: Mapping[str, Stamp]) -> list[str]:
    """The files below a folder that are new or were written since, sorted by name."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            shown = path.relative_to(folder).as_posix()
            if path.is_file() and not path.is_symlink() and before.get(shown) != _stamp(path):
                found.append(shown)
    return sorted(found)


def removed_files(folder: Path, before: Mapping[str, Stamp]) -> list[str]:
    """The files that were there and are gone, sorted by name."""
    return sorted(name for name in before if not os.path.lexists(folder / name))


def write_outputs(disk: Path, folder: Path, before: Mapping[str, Stamp], status: Mapping[str, object]) -> None:
    """Step 7. Raises Error and OSError: then the archive has no end, and whoever reads it sees that."""
    with disk.open("rb") as probe:
        size = probe.seek(0, os.SEEK_END)
    with os.fdopen(os.open(disk, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=1 << 20) as stream:
        writer = Writer(stream, size)
        names = new_files(folder, before)
        if len(names) > _MAX_OUTPUT_FILES:
            raise RunError("too many outputs", expected=f"at most {_MAX_OUTPUT_FILES} files", seen=str(len(names)))
        for name in names:
            with (folder / name).open("rb") as content:
                writer.add(Member(name, os.fstat(content.fileno()).st_size), content)
        for log in EVENT_LOGS:
            if log.exists():
                with log.open("rb") as file:
                    raw = file.read(_MAX_LOG_BYTES)
                writer.add(Member(EVENT_LOG_MEMBER, len(raw)), io.BytesIO(raw))
                break
        raw = json.dumps({**status, "removed": removed_files(folder, before)}).encode("ascii")
        writer.add(Member(STATUS_MEMBER, len(raw)), io.BytesIO(raw))
        writer.close()
        stream.flush()
        os.fsync(stream.fileno())


def registers(system: Path = Path("/")) -> dict[str, dict[str, str]]:
    """Bank -> number -> value of the TPM's PCRs, as the kernel shows them. For diagnosis: nobody signed them."""
    found: dict[str, dict[str, str]] = {}
    for bank in ("sha256", "sha384"):
        folder = system / f"sys/class/tpm/tpm0/pcr-{bank}"
        if folder.is_dir():
            found[bank] = {str(n): (folder / str(n)).read_text(encoding="ascii").strip().lower() for n in range(24)}
    return found


def run(settings: GuestSettings) -> int:
    """Step 6: the exit code of `adyton run`. Orphans that become children of this process are waited for too."""
    command = [sys.executable, "-I", "-B", "-m", "adyton", *settings.command()]
    child = subprocess.Popen(command, cwd=SHARE, env=_ENVIRONMENT, stdin=subprocess.DEVNULL)
    while True:
        ended, status = os.wait()
        if ended == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode


def start() -> int:
    """All steps but the last. Gives the exit code of the run. Raises Error and OSError."""
    mount_all()
    for path in sorted(MODULES.iterdir()):
        guest_kernel.load_module(path)
    gpus = guest_gpus.set_up()
    if gpus:
        say(f"{gpus} GPUs")
    shut_the_door()
    os.getrandom(32)
    source = wait_for(find_inputs)
    if source is None:
        raise RunError(
            "no disk holds an archive for this guest",
            check="disk for inputs",
            expected=f"a disk that begins with {guest_settings.MEMBER} in a plain archive",
            seen=", ".join(disk.name for disk in block_devices()) or "no disk",
            remedy="make one with `adyton image disk`, and give it to the machine",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    settings, stamps = unpack(source, SHARE, int(memory * _UNPACKED_SHARE_OF_MEMORY))
    stamps |= unpack_pack(settings, SHARE)
    name_servers = guest_network.set_up(settings.network, say)
    Path("/run/adyton/resolv.conf").write_text(resolver_file(name_servers), encoding="ascii")
    names = settings.names_to_ask_for()
    found = guest_names.resolve(names) if name_servers else {}
    for name in names:
        say(f"{name} is {found[name]}" if name in found else f"no name server told the address of {name}")
    Path("/run/adyton/hosts").write_text(settings.hosts_file(found), encoding="ascii")
    if wait_for(find_outputs, _OUTPUTS_TIMEOUT_S) is None:
        say("there is no disk for outputs: what the program writes will be lost")
    say(f"{STARTING} {settings.manifest}")
    status = run(settings)
    say(f"{ENDED} {status}")
    target = find_outputs()
    if target is not None:
        write_outputs(target, SHARE, stamps, _status(status))
    return status


def _status(code: int) -> dict[str, object]:
    code = 128 - code if code < 0 else code  # a signal ended it
    return {"format": guest_result.FORMAT, "exit_code": code, "pcrs": registers()}


def main() -> None:
    """Process 1: start, say how it ended, and power off."""
    try:
        start()
    except Error as error:
        say("\n".join([error.message, *(f"  {name}: {text}" for name, text in error.details().items())]))
    except BaseException as error:  # whatever it is, this machine must end
        say(f"unexpected: {type(error).__name__}: {error}")
    finally:
        guest_kernel.power_off()


def _stamp(path: Path) -> Stamp:
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


if __name__ == "__main__":
    main()
