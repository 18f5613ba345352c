"""Which system calls a confined program may make, and what it is told about the others.

Refused is what the default profiles of container runtimes refuse: calls that reach beyond the sandbox, calls that only
a machine's administrator needs, and large parts of the kernel that programs can do without. A call that this table does
not know, from a newer kernel, gets the answer of an old kernel: ENOSYS.

Allowed on purpose: ptrace and its kin (a debugger; every process that a program can name is its own), the placement of
memory on NUMA nodes (numeric libraries), filters of the program's own (seccomp, Landlock).
"""

from __future__ import annotations

import errno
from typing import Final

from adyton.errors import SandboxFailed
from adyton.runtime.bpf import Fragment, answer, encode, if_any_bit, if_at_least, if_equal, if_one_of, keep_bits, load
from adyton.runtime.calls import NUMBERS

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
"""The whole process, with SIGSYS."""
_ERROR: Final = 0x00050000

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64 (linux/audit.h). Who enters the kernel as another, as i386, is killed."""

NUMBER_AT: Final = 0
ARCHITECTURE_AT: Final = 4
ARGUMENTS_AT: Final = 16
"""Offsets in struct seccomp_data. The arguments are 64 bits each, low half first."""

X32: Final = 0x40000000
NO_CALL: Final = 0xFFFFFFFF
"""The number that a debugger sets to have a call skipped (-1)."""

GROUPS: Final = {
    "mounts and roots": "mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount"
    " fspick mount_setattr",
    "other namespaces, files by handle, whole file systems": "setns open_by_handle_at quotactl quotactl_fd sysfs ustat"
    " fanotify_init fanotify_mark lsm_set_self_attr",
    "the kernel itself: its modules, programs in it, its log": "init_module finit_module delete_module kexec_load"
    " kexec_file_load bpf perf_event_open userfaultfd syslog lookup_dcookie uselib",
    "the machine: power, swap, clock, names, ports": "reboot swapon swapoff acct settimeofday clock_settime sethostname"
    " setdomainname iopl ioperm vhangup modify_ldt",
    "the kernel's keyrings": "add_key request_key keyctl",
}
REFUSED: Final = frozenset(name for names in GROUPS.values() for name in names.split())
"""Answered with EPERM."""

ABSENT: Final = frozenset(("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"))
"""Answered with ENOSYS: programs then take the older way, whose arguments can be looked at."""

CLONE_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h)."""
CLONE_NEWTIME: Final = 0x80
"""Of unshare and clone3 only. In clone these bits are a signal's number."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE: Final = 0
SOCK_TYPE_BITS: Final = 0xF
SOCK_PACKET: Final = 10
"""An old type that turns AF_INET into AF_PACKET."""

TERMINAL_REQUESTS: Final = (0x5412, 0x541C, 0x541D, 0x5423)
"""TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD: input for, and settings of, a terminal that may be somebody else's."""

PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux as it is, with or without a 32-bit name or an old version, and the question: none takes protection away."""

POWERS: Final = 0o6000
"""S_ISUID, S_ISGID: who starts such a file becomes its owner, or one of its group."""
MAKES_A_FILE: Final = 0o20000100
"""O_CREAT, and what O_TMPFILE has of its own: only with these does open look at a mode."""

_ALLOWED: Final = answer(ALLOW)


def _error(number: int) -> Fragment:
    return answer(_ERROR | number)


_NOT_PERMITTED: Final = _error(errno.EPERM)
_UNKNOWN: Final = _error(errno.ENOSYS)


def _argument(position: int, then: Fragment) -> Fragment:
    """Look at the low half of an argument. The kernel takes no more of those that are looked at here."""
    return load(ARGUMENTS_AT + 8 * position, then)


def _socket() -> Fragment:
    other = _error(errno.EAFNOSUPPORT)
    internet = _argument(1, keep_bits(SOCK_TYPE_BITS, if_equal(SOCK_PACKET, other, _ALLOWED)))
    routes = _argument(2, if_equal(NETLINK_ROUTE, _ALLOWED, other))
    families = if_equal(AF_NETLINK, routes, if_equal(AF_UNIX, _ALLOWED, other))
    return _argument(0, if_one_of((AF_INET, AF_INET6), internet, families))


def _no_powers(mode: int) -> Fragment:
    return _argument(mode, if_any_bit(POWERS, _NOT_PERMITTED, _ALLOWED))


def _open(flags: int) -> Fragment:
    return _argument(flags, if_any_bit(MAKES_A_FILE, _no_powers(flags + 1), _ALLOWED))


CONDITIONS: Final = {
    "clone": _argument(0, if_any_bit(CLONE_NAMESPACES, _NOT_PERMITTED, _ALLOWED)),
    "unshare": _argument(0, if_any_bit(CLONE_NAMESPACES | CLONE_NEWTIME, _NOT_PERMITTED, _ALLOWED)),
    "socket": _socket(),
    "socketpair": _socket(),
    "ioctl": _argument(1, if_one_of(TERMINAL_REQUESTS, _NOT_PERMITTED, _ALLOWED)),
    "personality": _argument(0, if_one_of(PERSONALITIES, _ALLOWED, _NOT_PERMITTED)),
}
"""Calls that depend on their arguments."""

ON_HOST_FILES: Final = {
    "chmod": _no_powers(1),
    "fchmod": _no_powers(1),
    "fchmodat": _no_powers(2),
    "fchmodat2": _no_powers(2),
    "creat": _no_powers(1),
    "mknod": _no_powers(1),
    "mknodat": _no_powers(2),
    "open": _open(1),
    "openat": _open(2),
    "openat2": _UNKNOWN,  # its mode lies in memory, where a filter cannot look
}
"""Beside those, where the program has files of the host before it: as root's program it is the owner of root's, and
would leave one behind that makes any user of the machine root."""


def program(machine: str, *, host_files: bool) -> bytes:
    """The filter for a machine (as uname names it), as bubblewrap's --seccomp takes it.

    `host_files` says whether the program has files of the host before it.

    Raises SandboxFailed for a processor without a table: nothing runs unfiltered.
    """
    numbers = NUMBERS.get(machine)
    if numbers is None:
        raise SandboxFailed(
            f"there is no system call filter for {machine}",
            check="processor",
            expected=" or ".join(NUMBERS),
            seen=machine,
            remedy="run on one of these, with a 64-bit Python",
        )
    conditions = {**CONDITIONS, **ON_HOST_FILES} if host_files else CONDITIONS
    answers: dict[int, Fragment] = {}
    for name, number in numbers.items():
        if name in REFUSED:
            answers[number] = _NOT_PERMITTED
        elif name in ABSENT:
            answers[number] = _UNKNOWN
        else:
            answers[number] = conditions.get(name, _ALLOWED)
    steps = [(0, answers.get(0, _UNKNOWN))]
    for number in range(1, max(answers) + 2):
        found = answers.get(number, _UNKNOWN)
        if found != steps[-1][1]:
            steps.append((number, found))
    if machine == "x86_64":
        steps += [(X32, answer(KILL)), (NO_CALL, _UNKNOWN)]
    by_number = load(NUMBER_AT, _search(steps))
    return encode(load(ARCHITECTURE_AT, if_equal(ARCHITECTURES[machine], by_number, answer(KILL))))


def _search(steps: list[tuple[int, Fragment]]) -> Fragment:
    """Halve the numbers until one step is left. A step holds from its number to the next one's."""
    if len(steps) == 1:
        return steps[0][1]
    middle = len(steps) // 2
    return if_at_least(steps[middle][0], _search(steps[middle:]), _search(steps[:middle]))
