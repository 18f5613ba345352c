"""The few Linux system calls that Python 3.11 does not offer, called through ctypes. Each raises OSError.

Numbers and structures are those of the kernel's user-space headers (linux/openat2.h, linux/fs.h, linux/sched.h,
linux/mount.h, linux/prctl.h, linux/landlock.h). `openat2` has number 437 on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

_libc: Final = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

MNT_DETACH: Final = 2

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_TSC: Final = 26
_PR_SET_SECUREBITS: Final = 28
_PR_SET_TIMERSLACK: Final = 29
_PR_SET_THP_DISABLE: Final = 41
_PR_CAP_AMBIENT: Final = 47
_PR_SET_MEMORY_MERGE: Final = 67
_PR_TSC_ENABLE: Final = 1
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# by machine: ioprio_set, set_mempolicy, keyctl
_NUMBERED: Final = {"x86_64": (251, 238, 250), "aarch64": (30, 237, 219)}
_IOPRIO_WHO_PROCESS: Final = 1
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1

MOUNT_ATTR_IDMAP: Final = 0x00100000
_ALL_BELOW: Final = 0x1000 | 0x8000  # AT_EMPTY_PATH, AT_RECURSIVE
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442

_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_SYS_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_SCOPES: Final = 1 | 2  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, LANDLOCK_SCOPE_SIGNAL

PERSONALITY_AS_IT_IS: Final = 0xFFFFFFFF

_SYS_OPENAT2: Final = 437
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces of `flags` for new ones."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def set_undumpable() -> None:
    """No core file of this process, and no tracing of it by anyone without privilege over it."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. If `parent` is gone already, it ends at once."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def name_process(name: str) -> None:
    """Name this process for `ps` (15 bytes at most)."""
    _checked(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl(PR_SET_NAME)")


def lock_memory() -> None:
    """Keep this process's pages out of swap as they come into use."""
    _checked(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT), "mlockall")


def open_beneath(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2(2): open `path` below an open directory. Links and ways out of it are errors, anywhere in the path.

    Raises ELOOP for a symbolic link and EXDEV for a way out or onto another file system.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _checked(
        _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            os.fsencode(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def rename(old_directory: int, old: str, new_directory: int, new: str, flags: int) -> None:
    """renameat2(2), with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    _checked(
        _libc.renameat2(
            ctypes.c_int(old_directory),
            os.fsencode(old),
            ctypes.c_int(new_directory),
            os.fsencode(new),
            ctypes.c_uint(flags),
        ),
        old,
    )


def mount_mapped(source: int, target: str, namespace: int) -> None:
    """Show the file or folder of a descriptor at `target`, its owners translated by a user namespace (Linux 5.12).

    What is mounted below is shown, too.

    Raises OSError (EINVAL, EPERM) for a file system that cannot do this.
    """
    tree = _syscall("open_tree", _SYS_OPEN_TREE, source, b"", _OPEN_TREE_CLONE | _ALL_BELOW | os.O_CLOEXEC)
    try:
        wanted = _MountAttributes(MOUNT_ATTR_IDMAP, 0, 0, namespace)
        size = ctypes.c_size_t(ctypes.sizeof(wanted))
        _syscall("mount_setattr", _SYS_MOUNT_SETATTR, tree, b"", _ALL_BELOW, ctypes.byref(wanted), size)
        _syscall("move_mount", _SYS_MOVE_MOUNT, tree, b"", -1, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def plain_personality() -> None:
    """Linux as it is: addresses drawn at random, no memory executable that does not say so (personality(2))."""
    _checked(_libc.personality(ctypes.c_ulong(0)), "personality")


def personality() -> int:
    """This process's personality, 0 for plain Linux. Raises OSError where a filter forbids the question."""
    return _checked(_libc.personality(ctypes.c_ulong(PERSONALITY_AS_IT_IS)), "personality")


def keep_within_run() -> None:
    """This process and all it starts reach no abstract unix socket of others, and signal no others (Linux 6.12).

    Nothing else changes for them. Raises OSError on an older kernel, or where Landlock is off.
    """
    scopes = (ctypes.c_uint64 * 3)(0, 0, _LANDLOCK_SCOPES)  # handled_access_fs, handled_access_net, scoped
    size = ctypes.c_size_t(ctypes.sizeof(scopes))
    rules = _syscall("landlock_create_ruleset", _SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(scopes), size, 0)
    try:
        _syscall("landlock_restrict_self", _SYS_LANDLOCK_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def plain_io_priority() -> None:
    """The priority of input and output that follows from the process's own."""
    _syscall("ioprio_set", _numbered(0), _IOPRIO_WHO_PROCESS, 0, 0)


def plain_memory_policy() -> None:
    """Memory from the nearest node."""
    _syscall("set_mempolicy", _numbered(1), 0, None, 0)


def plain_memory() -> None:
    """Large pages as the machine has them, pages never merged with another process's, the cycle counter readable."""
    for option, value in ((_PR_SET_THP_DISABLE, 0), (_PR_SET_MEMORY_MERGE, 0), (_PR_SET_TSC, _PR_TSC_ENABLE)):
        _libc.prctl(option, value, 0, 0, 0)  # EINVAL where the kernel or the processor has no such thing


def set_timer_slack(nanoseconds: int) -> None:
    """Set how late a timer of this process may be."""
    _checked(_libc.prctl(_PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0), "prctl(PR_SET_TIMERSLACK)")


def no_ambient_capabilities() -> None:
    """No capability passes on to what this process starts as another user. For user 0 the kernel's usual rules hold."""
    _libc.prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0)  # EPERM without a privilege: bubblewrap then refuses what it was left
    _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")


def join_new_keyring() -> None:
    """A session keyring of its own, with none of the starter's keys."""
    _syscall("keyctl", _numbered(2), _KEYCTL_JOIN_SESSION_KEYRING, None)


def _numbered(position: int) -> int:
    numbers = _NUMBERED.get(os.uname().machine)
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.uname().machine)
    return numbers[position]


def _syscall(name: str, number: int, *arguments: Any) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    return _checked(_libc.syscall(ctypes.c_long(number), *words), name)
