"""A private place for the run's files: mounts that no other process sees and that die with the last process in it.

As root a mount namespace is enough. An ordinary user gets a user namespace around it, in which he is root. The root
tree is mounted over an empty system directory of the private view, so that nothing is left behind on the host
whatever happens, not even a directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adyton.errors import MountFailed, SandboxFailed
from adyton.vfs import syscalls
from adyton.vfs.owner import Owner

ANCHORS: Final = ("/sys/kernel/debug", "/sys/fs/fuse/connections", "/sys/fs/cgroup", "/mnt")
"""Directories without anybody's files. In the private view one of them is covered by the run's own.

Not /sys/kernel/security: evidence of a measured boot reads the firmware's event log there."""

_HARD: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV


def enter() -> str:
    """Move this (single-threaded) process into private namespaces. Returns a directory of private memory."""
    uid, gid = os.getuid(), os.getgid()
    try:
        if uid == 0:
            syscalls.unshare(syscalls.CLONE_NEWNS)
        else:
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    except OSError as error:
        raise SandboxFailed(
            f"no private namespace could be made: {error.strerror}",
            check="mount namespace" if uid == 0 else "user namespace",
            expected="success",
            seen=errno.errorcode.get(error.errno or 0, str(error)),
            remedy="run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1,"
            " user.max_user_namespaces>0, kernel.apparmor_restrict_unprivileged_userns=0)",
        ) from error
    for anchor in ANCHORS:
        try:
            # 0711: who sees this view at all is a process of the run, and the program's root is reached through it
            syscalls.mount("adyton", anchor, "tmpfs", _HARD, "mode=0711,size=1m")
        except OSError:
            continue
        return anchor
    raise SandboxFailed(
        "no directory was found over which to mount private memory",
        check="mount point",
        expected="one of " + ", ".join(ANCHORS),
        seen="none of them can be mounted over",
        remedy="mount /sys, or make /mnt",
    )


def mount_memory(path: str, *, size_bytes: int, mode: int, owner: Owner, huge: bool = False) -> None:
    """Mount private memory (tmpfs) of at most so many bytes, with large pages where wanted and the kernel has them."""
    options = f"mode={mode:o},uid={owner.uid},gid={owner.gid},size={size_bytes},nr_inodes=0"
    try:
        if huge:
            try:
                syscalls.mount("adyton", path, "tmpfs", _HARD, options + ",huge=within_size")
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        syscalls.mount("adyton", path, "tmpfs", _HARD, options)
    except OSError as error:
        raise _failed("private memory", path, error) from error


def mount_fuse(path: str) -> int:
    """Mount a FUSE file system that nobody serves yet. Returns the descriptor to serve it through."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(
            f"/dev/fuse cannot be opened: {error.strerror}",
            check="/dev/fuse",
            expected="a device that this user may open",
            seen=errno.errorcode.get(error.errno or 0, str(error)),
            remedy="load the fuse module (modprobe fuse), and let this user open /dev/fuse (chmod 0666, as udev does);"
            " a container needs --device /dev/fuse",
        ) from error
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    options += ",allow_other"  # the program may be another user than this process; modes decide, and who sees the view
    try:
        syscalls.mount("adyton", path, "fuse", _HARD, options)
    except OSError as error:
        os.close(fd)
        raise _failed("FUSE", path, error) from error
    return fd


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    """Show a file or folder at a second place."""
    try:
        syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
        if read_only:
            flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
            syscalls.mount("none", target, None, flags | _HARD)
    except OSError as error:
        raise _failed(f"{source}, bound", target, error) from error


def bind_as(source: int, target: str, owner: Owner) -> bool:
    """Show a file or folder of the host's at a second place. What this process's user owns is there the owner's.

    False where its file system cannot do that: it is shown as it is, and the owner may what others may.
    """
    caller = Owner.caller()
    if owner != caller:
        try:
            with _translation(caller, owner) as translation:
                syscalls.mount_mapped(source, target, translation)
        except OSError:
            bind(f"/proc/self/fd/{source}", target)
            return False
        return True
    bind(f"/proc/self/fd/{source}", target)
    return True


@contextlib.contextmanager
def _translation(caller: Owner, owner: Owner) -> Iterator[int]:
    """A user namespace that has the caller's numbers as the owner's, and all below as they are. Raises OSError."""
    ready_out, ready_in = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    holder = os.fork()
    if holder == 0:
        try:
            syscalls.die_with_parent(parent)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready_in, b"!")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(ready_in)
        if not os.read(ready_out, 1):
            raise OSError(errno.EPERM, "no user namespace could be made")
        for name, mine, theirs in (("uid_map", caller.uid, owner.uid), ("gid_map", caller.gid, owner.gid)):
            below = f"{mine + 1} {mine + 1} {theirs - mine - 1}\n" if theirs - mine > 1 else ""
            Path(f"/proc/{holder}/{name}").write_text(f"{mine} {theirs} 1\n{below}")
        namespace = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_out)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    try:
        yield namespace
    finally:
        os.close(namespace)


def make_read_only(path: str) -> None:
    """Let nobody write to a mount any more."""
    try:
        syscalls.mount("none", path, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | _HARD)
    except OSError as error:
        raise _failed("a read-only view", path, error) from error


def detach(path: str) -> None:
    """Take everything that was mounted below a directory away. A mount in use goes when its last user closes it."""
    try:
        syscalls.unmount(path, syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise _failed("unmounting", path, error) from error


def _failed(what: str, path: str, error: OSError) -> MountFailed:
    return MountFailed(
        f"{what} at {path}: {error.strerror}",
        check="mount",
        expected="success",
        seen=errno.errorcode.get(error.errno or 0, str(error)),
        remedy="see the kernel's log (dmesg)",
    )
