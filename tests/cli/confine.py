"""Runs a command on a machine that lacks something: `python confine.py [KIND]... -- COMMAND...`, as root.

Everything is done in namespaces of its own, so that the machine stays as it is.

no-fuse         there is no /dev/fuse
no-namespaces   no further user namespace can be made
small DIR       a file system of 1 MiB is mounted at DIR
user UID        an ordinary user, to whom /dev/fuse is open as udev leaves it, and to whom this Python is readable
closed-fuse     /dev/fuse is root's alone
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from adyton.vfs import syscalls

_DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_FUSE: Final = (10, 229)
_BUILD: Final = Path("/mnt")
_IDS: Final = 65_536


def _own_mounts() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def _own_users() -> None:
    """Move into a user namespace in which every id is itself, and in which no other can be made."""
    asked, ask = os.pipe()
    done, tell = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.read(asked, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}/{name}").write_text(f"0 0 {_IDS}")
        os.write(tell, b"x")
        os._exit(0)
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    os.write(ask, b"x")
    os.read(done, 1)
    os.waitpid(helper, 0)
    os.setgid(0)
    os.setuid(0)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def _own_devices(fuse_mode: int | None) -> None:
    """A /dev of the common devices, with a /dev/fuse of this mode or without one."""
    syscalls.mount("none", str(_BUILD), "tmpfs", 0, "mode=0755")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(_BUILD / name, stat.S_IFCHR, os.makedev(major, minor))
        (_BUILD / name).chmod(0o666)
    if fuse_mode is not None:
        os.mknod(_BUILD / "fuse", stat.S_IFCHR, os.makedev(*_FUSE))
        (_BUILD / "fuse").chmod(fuse_mode)
    (_BUILD / "shm").mkdir(mode=0o1777)
    (_BUILD / "fd").symlink_to("/proc/self/fd")
    syscalls.mount(str(_BUILD), "/dev", None, syscalls.MS_BIND)
    syscalls.unmount(str(_BUILD), syscalls.MNT_DETACH)


def _open_way_to(path: Path) -> None:
    """Where a folder above `path` is closed to ordinary users, put an open one in its place that shows only `path`."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            syscalls.mount("none", str(_BUILD), "tmpfs", 0, "mode=0755")
            kept = _BUILD / "kept"
            kept.mkdir()
            syscalls.mount(str(path), str(kept), None, syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount("none", str(folder), "tmpfs", 0, "mode=0755")
            path.mkdir(parents=True)
            syscalls.mount(str(kept), str(path), None, syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.unmount(str(_BUILD), syscalls.MNT_DETACH)
            return


def main(words: list[str]) -> None:
    """Arrange what is asked for, then become the command."""
    at = words.index("--")
    asked, command = words[:at], words[at + 1 :]
    kinds = set(asked)
    uid = int(asked[asked.index("user") + 1]) if "user" in kinds else None
    _own_mounts()
    if "small" in kinds:
        syscalls.mount("none", asked[asked.index("small") + 1], "tmpfs", 0, "mode=0755,size=1m")
    if uid is not None:
        _open_way_to(Path(sys.base_prefix).resolve())
    if kinds & {"no-fuse", "closed-fuse", "user"}:
        _own_devices(None if "no-fuse" in kinds else 0o600 if "closed-fuse" in kinds else 0o666)
    if "no-namespaces" in kinds:
        _own_users()
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
