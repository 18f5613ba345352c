"""The program's file tree around its staged and served files: what the sandbox needs, and what programs expect."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adyton.errors import MountFailed
from adyton.runtime import launcher, namespace, resolver_config, sandbox
from adyton.runtime.absent_files import AbsentFiles
from adyton.runtime.interfaces import interfaces, parse_mountinfo
from adyton.runtime.resolver_config import NAME_SERVICE
from adyton.runtime.run_plan import HOSTS_FILE, NAME_SERVICE_FILE, MemoryMount, Plan, Point
from adyton.vfs.mount_lookup import below
from adyton.vfs.owner import Owner
from adyton.vfs.stage import FIXED_TIME_S


class Root:
    """The tree at `path`, in private memory. Nothing that leads below `private` is shown as a file of the host."""

    def __init__(self, path: str, plan: Plan, *, private: str, owner: Owner, note: Callable[[str], None]) -> None:
        self.path = path
        self._owner = owner
        self._note = note
        self._plan = plan
        self._private = private
        self._absent = AbsentFiles(note, private=private)

    def show(self, source: str, path: str, *, read_only: bool) -> None:
        """Show what is served at `source` as `path` of the program."""
        target = self.path + path
        if os.path.isdir(source):
            self._owner.make_folders(target)
        else:
            self._owner.make_folders(os.path.dirname(target))
            Path(target).touch()
        namespace.bind(source, target, read_only=read_only)

    def populate(self, secrets: Mapping[str, bytes]) -> None:
        """Make the directories and small files that the sandbox needs or that programs expect."""
        plan = self._plan
        for path in ("/dev", "/proc", "/sys/devices/system/cpu", "/tmp", plan.start_dir):  # noqa: S108
            self._owner.make_folders(self.path + path)
        processors = f"0-{(os.cpu_count() or 1) - 1}\n" if (os.cpu_count() or 1) > 1 else "0\n"
        for name in ("online", "possible", "present"):
            _write(f"{self.path}/sys/devices/system/cpu/{name}", processors.encode(), 0o444, self._owner)
        self._link_interpreter()
        if plan.argv[0] != plan.entrypoint:
            code = launcher.program()
            if code is None:
                self._note("argv[0] is the program's path: Adyton was installed without a C compiler")
            else:
                _write(self.path + sandbox.LAUNCHER, code, 0o555, self._owner)
        for secret in plan.secrets:
            if secret.file is not None:
                self._owner.make_folders(os.path.dirname(self.path + secret.file))
                _write(self.path + secret.file, secrets[secret.name], 0o444, self._owner)
        for allowed in plan.allowed:
            self._bind_allowed(allowed.source, self.path + allowed.target, is_folder=allowed.is_folder)

    def take_away_untouched(self) -> None:
        """At the end of the run: allowed files that were made for it, and that the program never wrote to."""
        self._absent.take_away_untouched()

    def show_folder(self, source: str, path: str, points: tuple[Point, ...]) -> None:
        """Show an encrypted folder as `path` of the program, and in it what other mounts show there already."""
        self._owner.make_folders(self.path + path)
        with self._keeping(path, points):
            namespace.bind(source, self.path + path)

    def mount_memory(self, mount: MemoryMount) -> None:
        """Mount memory for the program, and show in it what other mounts show there already."""
        if mount.path == "/dev/shm":  # noqa: S108 - the sandbox's own, there already
            return
        target = self.path + mount.path
        self._owner.make_folders(target)
        with self._keeping(mount.path, mount.points):
            namespace.mount_memory(target, size_bytes=self._plan.budget_bytes, mode=0o1777, owner=self._owner)

    @contextlib.contextmanager
    def _keeping(self, path: str, points: tuple[Point, ...]) -> Iterator[None]:
        """What shows at the points of a folder shows there again, over what the block mounts over the folder.

        An encrypted folder has the points as names already. Memory is given them. A folder without a file of its own
        is an empty one, so that it never shows what the host has under its name.
        """
        target = self.path + path
        for point in points:
            if point.is_folder and not os.path.lexists(f"{target}/{point.path}"):
                self._owner.make_folders(f"{target}/{point.path}")
        own = os.stat(self.path).st_dev
        covered = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield
            for point in points:
                source, place = f"/proc/self/fd/{covered}/{point.path}", f"{target}/{point.path}"
                try:
                    seen = os.stat(source)
                except FileNotFoundError:  # it shows nothing
                    continue
                if not os.path.lexists(place):
                    self._make_point(place, f"{path}/{point.path}", is_folder=stat.S_ISDIR(seen.st_mode))
                namespace.bind(source, place, read_only=seen.st_dev == own)
        finally:
            os.close(covered)

    def _make_point(self, place: str, shown: str, *, is_folder: bool) -> None:
        try:
            if is_folder:
                self._owner.make_folders(place)
            else:
                self._owner.make_folders(os.path.dirname(place))
                _write(place, b"", 0o444, self._owner)
        except OSError as error:
            raise MountFailed(
                f"mount {shown}: a folder above it can be neither made nor entered: {error.strerror}",
                check="folders above the mount",
                expected="a folder, or nothing",
                seen="a link or a file that the host put there",
                remedy="remove what lies under its name in the encrypted folder on the host",
            ) from error

    def name_servers(self) -> None:
        """The servers that the program may reach. The plan has kept everything else from these paths."""
        if not self._plan.egress:
            return
        self._owner.make_folders(self.path + "/etc")
        files = ((HOSTS_FILE, resolver_config.hosts(self._plan.egress)), (NAME_SERVICE_FILE, NAME_SERVICE))
        for name, content in files:
            _write(self.path + name, content, 0o444, self._owner)

    def name_resolvers(self) -> None:
        """The host's resolv.conf, made safe, in place of whatever was listed there, as in Gramine."""
        if not self._plan.domain_names_from_host:
            return
        if any(below("/etc/resolv.conf", allowed.target) for allowed in self._plan.allowed):
            return  # the folder is the host's own, and what is written there may follow its links
        self._owner.make_folders(self.path + "/etc")
        with contextlib.suppress(OSError):
            content = resolver_config.resolv_conf(Path("/etc/resolv.conf").read_bytes()[: 1 << 16])
            Path(self.path + "/etc/resolv.conf").unlink(missing_ok=True)
            _write(self.path + "/etc/resolv.conf", content, 0o444, self._owner)
        if not os.path.lexists(self.path + "/etc/hosts"):
            _write(self.path + "/etc/hosts", resolver_config.HOSTS, 0o444, self._owner)

    def _bind_allowed(self, source: str, target: str, *, is_folder: bool) -> None:
        if not os.path.lexists(source) and not self._absent.make(source, is_folder=is_folder):
            return
        try:
            fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise MountFailed(
                f"allowed file {source} cannot be opened: {error.strerror}",
                check="sgx.allowed_files",
                expected="a folder" if is_folder else "a file",
                seen="nothing" if error.errno == errno.ENOENT else error.strerror,
                remedy="make it before the start",
            ) from error
        try:
            place = os.readlink(f"/proc/self/fd/{fd}")
            if place == self._private or place.startswith(self._private + "/"):
                raise MountFailed(
                    f"allowed file {source} leads into the run's own private memory",
                    check="sgx.allowed_files",
                    expected="a file or folder of the host",
                    seen="a link that the host put there",
                    remedy="put the file itself in its place",
                )
            self._check_no_interface(source, fd, place)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                self._owner.make_folders(target)
            else:
                self._owner.make_folders(os.path.dirname(target))
                Path(target).touch()
            if not namespace.bind_as(fd, target, self._owner):
                self._note(
                    f"allowed file {source}: its file system cannot show it as the program's own; the program may do"
                    " with it what every user of this machine may"
                )
        finally:
            os.close(fd)

    def _check_no_interface(self, source: str, fd: int, place: str) -> None:
        """Refuse what would show the program more of the machine than files."""
        facts = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").split()
        mounts = parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))
        for found in interfaces(mounts, int(facts[facts.index("mnt_id:") + 1]), place, self._private):
            raise MountFailed(
                f"allowed file {source} would show the program {found}",
                check="sgx.allowed_files",
                expected="files and folders of the host, with no interface of the kernel in them",
                seen=found,
                remedy="name the folder that holds the files; what the program gets of /dev, /proc and /sys is in"
                " docs/sandbox.md",
            )

    def _link_interpreter(self) -> None:
        """Where the program's ELF interpreter is listed under another path than the program asks for, link it there.

        Gramine finds it by its name in the library path. The kernel looks at the one path that is in the program.
        """
        wanted = elf_interpreter(self.path + self._plan.entrypoint)
        if wanted is None or os.path.lexists(self.path + wanted):
            return
        name = wanted.rpartition("/")[2]
        folders = [folder for folder in self._plan.env.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
        for folder in (*folders, "/lib", "/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"):
            if os.path.isfile(f"{self.path}{folder}/{name}"):
                self._owner.make_folders(os.path.dirname(self.path + wanted))
                os.link(os.path.realpath(f"{self.path}{folder}/{name}"), self.path + wanted)
                return
        raise MountFailed(
            f"{self._plan.entrypoint} needs {wanted}, which no trusted file provides",
            check="ELF interpreter of the entrypoint",
            expected=wanted,
            seen=f"nothing there, and no {name} in the library path",
            remedy=f'add "file:{wanted}" to sgx.trusted_files and a mount that shows it at {wanted}',
        )


def _write(path: str, content: bytes, mode: int, owner: Owner) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
        owner.give(fd)
        os.fchmod(fd, mode)
        os.utime(fd, (FIXED_TIME_S, FIXED_TIME_S))
    finally:
        os.close(fd)


def elf_interpreter(path: str) -> str | None:
    """The interpreter that a 64-bit little-endian ELF program asks for (PT_INTERP); None for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
        return None
    start = int.from_bytes(head[32:40], "little")
    size = int.from_bytes(head[54:56], "little")
    count = int.from_bytes(head[56:58], "little")
    for at in range(start, start + size * min(count, 128), max(size, 1)):
        segment = head[at : at + size]
        if len(segment) >= 40 and segment[:4] == b"\x03\0\0\0":
            offset = int.from_bytes(segment[8:16], "little")
            length = int.from_bytes(segment[32:40], "little")
            if length <= 4096 and offset + length <= len(head):
                return head[offset : offset + length].rstrip(b"\0").decode(errors="surrogateescape")
    return None
