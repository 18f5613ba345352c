"""The system call filter, run by an interpreter of classic BPF over every call, and many shapes of arguments."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import struct
from functools import cache
from pathlib import Path

import pytest

from adyton.errors import SandboxFailed
from adyton.runtime import bpf
from adyton.runtime.callfilter import ABSENT, ALLOW, ARCHITECTURES, KILL, ON_HOST_FILES, REFUSED, program
from adyton.runtime.calls import NUMBERS

MACHINES = list(NUMBERS)
OTHER_ARCHITECTURES = {"i386": 0x40000003, "arm": 0x40000028, "none": 0, "big endian": 0x000000B7}
NONSENSE = 0xFFFF_FFFF_0000_0000
"""In the half of an argument that the kernel cuts off."""


@cache
def _decoded(raw: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", raw))


@cache
def _program(machine: str, host_files: bool) -> bytes:
    return program(machine, host_files=host_files)


def interpret(raw: bytes, data: bytes, *, most_steps: int = 1000) -> int:
    """What the kernel's machine answers; an instruction that it does not know, or the program's end, is an error."""
    instructions = _decoded(raw)
    at = register = 0
    for _ in range(most_steps):
        code, if_true, if_false, constant = instructions[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert constant % 4 == 0
            register = int.from_bytes(data[constant : constant + 4], "little")
            assert constant + 4 <= len(data)
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            register &= constant
        elif code == 0x05:  # BPF_JMP | BPF_JA
            at += constant
        elif code in (0x15, 0x35, 0x45):
            holds = {0x15: register == constant, 0x35: register >= constant, 0x45: bool(register & constant)}[code]
            at += if_true if holds else if_false
        else:
            assert code == 0x06, f"instruction {code:#x}"
            return constant
    raise AssertionError(f"no answer after {most_steps} steps")


def ask(
    machine: str,
    number: int,
    *arguments: int,
    architecture: int | None = None,
    most_steps: int = 1000,
    host_files: bool = True,
) -> int | str:
    """The answer: an errno, "allow" or "kill"."""
    words = [word & (2**64 - 1) for word in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    architecture = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, architecture, 0x7F00_0000_1234, *words)
    found = interpret(_program(machine, host_files), data, most_steps=most_steps)
    if found >> 16 == 5:
        return found & 0xFFFF
    return {ALLOW: "allow", KILL: "kill"}[found]


def expected(name: str, arguments: tuple[int, ...], *, host_files: bool) -> int | str:
    """What the page docs/sandbox.md promises, told in another way than the filter is built."""
    first, second, third, fourth = (word & 0xFFFF_FFFF for word in (*arguments, 0, 0, 0, 0)[:4])
    if name in REFUSED:
        return errno.EPERM
    if name in ABSENT:
        return errno.ENOSYS
    namespaces = {0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000}
    if name == "unshare":
        namespaces |= {0x80}
    if name in ("clone", "unshare"):
        return errno.EPERM if any(first & flag for flag in namespaces) else "allow"
    if name in ("socket", "socketpair"):
        fine = first == 1 or (first in (2, 10) and second % 16 != 10) or (first == 16 and third == 0)
        return "allow" if fine else errno.EAFNOSUPPORT
    if name == "ioctl":
        return errno.EPERM if second in (0x5412, 0x541C, 0x541D, 0x5423) else "allow"
    if name == "personality":
        return "allow" if first in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF) else errno.EPERM
    return _expected_on_host_files(name, (first, second, third, fourth)) if host_files else "allow"


def _expected_on_host_files(name: str, words: tuple[int, int, int, int]) -> int | str:
    if name == "openat2":
        return errno.ENOSYS
    modes = {"chmod": 1, "fchmod": 1, "creat": 1, "mknod": 1, "fchmodat": 2, "fchmodat2": 2, "mknodat": 2}
    flags = {"open": 1, "openat": 2}
    at = modes.get(name)
    if name in flags and (words[flags[name]] & os.O_CREAT or words[flags[name]] & os.O_TMPFILE & ~os.O_DIRECTORY):
        at = flags[name] + 1
    return errno.EPERM if at is not None and words[at] & (stat.S_ISUID | stat.S_ISGID) else "allow"


SHAPES = [
    (),
    *((1 << bit,) for bit in range(64)),
    *itertools.product(range(48), (1, 2, 3, 10, 0x80801, 0x8080A), (0, 4)),
    *((0, request) for request in (0x5401, 0x5411, 0x5412, 0x5413, 0x541C, 0x541D, 0x5423, 0x5424, 0x80045430)),
    *itertools.product((0,), (0, 0o100, 0o101, 0o20200002, 0o2000000), (0, 0o1777, 0o2755, 0o6755), (0, 0o4000)),
    *((value,) for value in (0x3D0F00, 0x1200011, 0x7C020011, 0x20008, 0x40000, 0x0400000, -1, 0xFFFFFFFE)),
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_is_answered_as_promised_whatever_its_arguments(machine: str) -> None:
    """All calls of the table with all shapes; the upper halves of arguments, which the kernel cuts off, say nothing."""
    conditional = {"clone", "unshare", "socket", "socketpair", "ioctl", "personality", *ON_HOST_FILES}
    for (name, number), host_files in itertools.product(NUMBERS[machine].items(), (False, True)):
        for arguments in SHAPES if name in conditional else SHAPES[::50]:
            for noise in (0, NONSENSE):
                shape = tuple((word & 0xFFFF_FFFF) | noise for word in arguments)
                found = ask(machine, number, *shape, host_files=host_files)
                assert found == expected(name, shape, host_files=host_files), (name, shape)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_are_not_in_the_table_are_unknown(machine: str) -> None:
    """Every number on either side of one that the filter compares with: there are no others at which it could turn."""
    constants = {constant for _, _, _, constant in struct.iter_unpack("<HBBI", program(machine, host_files=True))}
    known = set(NUMBERS[machine].values())
    for number in {edge + step & 0xFFFF_FFFF for edge in constants for step in (-1, 0, 1)} | set(range(1100)):
        x32 = machine == "x86_64" and 0x4000_0000 <= number < 0xFFFF_FFFF
        if number not in known:
            assert ask(machine, number) == ("kill" if x32 else errno.ENOSYS), hex(number)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_doors_into_the_kernel_kill(machine: str) -> None:
    """i386 and arm calls of a 64-bit kernel, and x32, whose numbers mean other calls."""
    others = [value for name, value in ARCHITECTURES.items() if name != machine]
    for architecture, number in itertools.product(
        [*OTHER_ARCHITECTURES.values(), *others], (0, 1, 11, 120, 0xFFFFFFFF)
    ):
        assert ask(machine, number, architecture=architecture) == "kill"
    if machine == "x86_64":
        assert {ask(machine, 0x4000_0000 | number) for number in (0, 1, 59, 165, 520, 0x3FFF_FFFE)} == {"kill"}
        assert ask(machine, 0xFFFF_FFFF) == errno.ENOSYS


def test_what_was_decided_is_in_the_tables() -> None:
    """Each name exists somewhere, none stands in two tables, and what programs live on is not refused."""
    everything = set().union(*NUMBERS.values())
    assert everything >= REFUSED | ABSENT
    assert not REFUSED & ABSENT
    for name in ("read", "openat", "mmap", "execve", "futex", "ptrace", "mbind", "seccomp", "memfd_create", "wait4"):
        assert all(ask(machine, NUMBERS[machine][name]) == "allow" for machine in MACHINES)


def test_numbers_are_those_of_the_kernels_headers() -> None:
    """Where this machine has them; a name of the headers that is newer than the table is not an error."""
    headers = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")}
    if not headers["x86_64"].exists():
        pytest.skip("the kernel's headers for x86_64 (linux-libc-dev) are not installed")
    text = headers["x86_64"].read_text()
    real = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}
    table = NUMBERS["x86_64"]
    assert {name: number for name, number in table.items() if real.get(name, number) != number} == {}
    missing = {name for name, number in real.items() if number <= max(table.values()) and name not in table}
    gone = "_sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms get_thread_area getpmsg"
    gone += " nfsservctl putpmsg query_module security set_thread_area tuxcall vserver uretprobe uprobe"
    assert missing <= set(gone.split())


def test_both_processors_agree_on_what_they_share() -> None:
    """From number 424 on, all processors have the same numbers."""
    one, other = NUMBERS["x86_64"], NUMBERS["aarch64"]
    assert {name for name in one if one[name] >= 424} == {name for name in other if other[name] >= 424}
    assert all(one[name] == other[name] for name in other if other[name] >= 424)
    spot = {"read": 63, "write": 64, "execve": 221, "clone": 220, "mount": 40, "ioctl": 29, "socket": 198, "openat": 56}
    assert {name: other[name] for name in spot} == spot


def test_unknown_processor_is_refused() -> None:
    """Nothing runs unfiltered; a 32-bit personality, which names the processor i686, is one."""
    for machine in ("i686", "riscv64", ""):
        with pytest.raises(SandboxFailed, match="no system call filter") as raised:
            program(machine, host_files=False)
        assert raised.value.expected == "x86_64 or aarch64"


def test_program_is_short_and_its_search_shallow() -> None:
    """The kernel takes 4096 instructions; a call that is not always allowed costs a dozen of them."""
    for machine in MACHINES:
        assert len(program(machine, host_files=True)) // 8 < 400
        for number in NUMBERS[machine].values():
            ask(machine, number, 16, 10, 0, most_steps=20)


def test_far_branches_land_where_near_ones_would() -> None:
    """A test can skip 255 instructions; what lies further is jumped to."""
    long = bpf.answer(7)
    for _ in range(300):
        long = bpf.load(0, long)
    for otherwise, then in ((long, bpf.answer(1)), (bpf.answer(1), long)):
        raw = bpf.encode(bpf.load(0, bpf.if_equal(5, then, otherwise)))
        yes, no = interpret(raw, b"\5\0\0\0"), interpret(raw, b"\6\0\0\0")
        assert (yes, no) == ((1, 7) if otherwise is long else (7, 1))
    with pytest.raises(ValueError, match="4096"):
        bpf.encode(bpf.answer(0) * 4097)


def test_kernel_takes_the_program_and_answers_as_the_interpreter() -> None:
    """In a child: the real thing, over harmless calls with no arguments that could do anything."""
    machine = os.uname().machine
    if machine not in NUMBERS:
        pytest.skip(f"no filter for {machine}")
    numbers = NUMBERS[machine]
    tried = [number for name, number in numbers.items() if name in REFUSED | ABSENT]
    child = os.fork()
    if child == 0:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        os.setsid()
        raw = program(machine, host_files=True)
        held = ctypes.create_string_buffer(raw, len(raw))
        header = struct.pack("<HxxxxxxQ", len(raw) // 8, ctypes.addressof(held))
        loaded = libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0
        wrong = 0 if loaded else 200
        for number in tried if loaded else ():
            # -1 everywhere: were the filter not there, each would fail for its arguments, and with another errno
            failed = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) == -1
            wrong += not (failed and ctypes.get_errno() == ask(machine, number))
        os._exit(min(wrong, 255))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
