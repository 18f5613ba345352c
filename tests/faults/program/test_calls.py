"""A program makes the calls that it may not make: each is answered as docs/sandbox.md says, by the kernel itself.

The names stand here once more, so that one that is taken out of the filter's table is missed.
"""

from __future__ import annotations

import errno
import json
import platform
from pathlib import Path

import pytest

from adyton.runtime.calls import NUMBERS
from tests.faults.program.inside import report

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(platform.machine() not in NUMBERS, reason="there is no filter for this processor"),
]

NUMBER = NUMBERS.get(platform.machine(), {})

FORBIDDEN = """
    mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr setns
    open_by_handle_at quotactl quotactl_fd fanotify_init init_module finit_module delete_module kexec_load
    kexec_file_load bpf perf_event_open userfaultfd syslog lookup_dcookie reboot swapon swapoff acct settimeofday
    clock_settime sethostname setdomainname vhangup add_key request_key keyctl
""".split()  # noqa: SIM905 - forty names are read more easily so
if platform.machine() == "x86_64":
    FORBIDDEN += ["iopl", "ioperm", "modify_ldt", "uselib", "ustat", "sysfs"]
UNKNOWN = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")

_TRY = """
import ctypes, errno, json, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    held = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *held)
    return 0 if result >= 0 else ctypes.get_errno()
def ending(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
N = json.loads(%r)
"""


def _inside(folder: Path, script: str) -> dict[str, object]:
    return report(folder, _TRY % json.dumps(dict(NUMBER)) + script)


def test_forbidden_calls_are_refused(folder: Path) -> None:
    """With arguments that could do nothing, were they let through: each then has another errno, or another outcome."""
    script = f"print(json.dumps({{name: call(N[name], -1, -1, -1, -1, -1) for name in {[*FORBIDDEN, *UNKNOWN]}}}))"
    found = _inside(folder, script)
    assert found == {**dict.fromkeys(FORBIDDEN, errno.EPERM), **dict.fromkeys(UNKNOWN, errno.ENOSYS)}


def test_no_namespace_can_be_made_or_entered(folder: Path) -> None:
    """By unshare or clone, with one flag or several; threads and processes still can."""
    flags = {
        "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
        "net": 0x40000000, "all": 0x7E020000,
    }  # fmt: skip
    script = (
        f"flags = {flags}\n"
        "found = {f'unshare {name}': call(N['unshare'], flag) for name, flag in flags.items()}\n"
        "found['unshare time'] = call(N['unshare'], 0x80)\n"
        "found |= {f'clone {name}': call(N['clone'], flag | 17, 0, 0, 0, 0) for name, flag in flags.items()}\n"
        "found['setns'] = call(N['setns'], os.open('/proc/self/ns/user', os.O_RDONLY), 0)\n"
        "import threading; done = []\n"
        "t = threading.Thread(target=done.append, args=(1,)); t.start(); t.join()\n"
        "fine = (done, ending(lambda: None), call(N['unshare'], 0x200))\n"
        "print(json.dumps({'found': found, 'fine': fine}))"
    )
    found, fine = _inside(folder, script).values()
    assert isinstance(found, dict)
    assert set(found.values()) == {errno.EPERM}, found
    assert fine == [[1], 0, 0]


def test_sockets_are_of_the_usual_families_only(folder: Path) -> None:
    """No way to the hypervisor (AF_VSOCK), to raw packets, to the kernel's ciphers, to anything unknown."""
    script = (
        "def family(number, kind=1, protocol=0):\n"
        "    try: socket.socket(number, kind, protocol).close()\n"
        "    except OSError as error: return error.errno\n"
        "    return 0\n"
        "found = {str(number): family(number) for number in range(48) if number not in (1, 2, 10, 16)}\n"
        "found |= {'packet': family(2, 10), 'packet, close on exec': family(2, 10 | 0o2000000)}\n"
        "found |= {f'netlink {n}': family(16, 3, n) for n in range(1, 23)}\n"
        "fine = [family(1), family(2), family(2, 2), family(10), family(16, 3, 0)]\n"
        "fine += [0 for pair in socket.socketpair()]\n"
        "print(json.dumps({'found': found, 'fine': fine}))"
    )
    told = _inside(folder, script)
    assert isinstance(told["found"], dict)
    assert set(told["found"].values()) == {errno.EAFNOSUPPORT}, told["found"]
    assert isinstance(told["fine"], list)
    assert set(told["fine"]) <= {0, errno.EPROTONOSUPPORT}


def test_nothing_can_be_typed_into_a_terminal(folder: Path) -> None:
    """TIOCSTI and its kin, also with bits set that the kernel cuts off; other requests are answered."""
    script = (
        "master, slave = os.openpty()\n"
        "one = ctypes.create_string_buffer(b'x')\n"
        "wanted = [0x5412, 0x541C, 0x541D, 0x5423]\n"
        "requests = [request | noise for request in wanted for noise in (0, 1 << 32, 0x7FFFFFFF << 32)]\n"
        "found = {hex(request): call(N['ioctl'], slave, request, one) for request in requests}\n"
        "size = call(N['ioctl'], slave, 0x5413, ctypes.create_string_buffer(8))\n"
        "print(json.dumps({'found': found, 'size': size}))"
    )
    told = _inside(folder, script)
    assert isinstance(told["found"], dict)
    assert set(told["found"].values()) == {errno.EPERM}, told["found"]
    assert told["size"] == 0  # TIOCGWINSZ


@pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 and x32 are doors of an x86_64 kernel")
def test_other_doors_into_the_kernel_end_the_process(folder: Path) -> None:
    """int 0x80 from 64-bit code, and x32's numbers: SIGSYS, which cannot be caught."""
    script = (
        "import mmap\n"
        "def old_door():\n"
        "    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "    code.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (i386: getpid); int 0x80; ret
        "    held = (ctypes.c_char * 4096).from_buffer(code)\n"
        "    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(held))()\n"
        "signal.signal(signal.SIGSYS, signal.SIG_IGN)\n"
        "found = {'i386': ending(old_door)}\n"
        "found |= {f'x32 {n}': ending(lambda: call(0x40000000 | n, 0)) for n in (0, 39, 520, 0x3FFFFFFE)}\n"
        "print(json.dumps(found))"
    )
    assert set(_inside(folder, script).values()) == {-31}


def test_protections_of_memory_cannot_be_switched_off(folder: Path) -> None:
    """personality: not ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, nor all at once."""
    script = (
        "print(json.dumps({hex(p): call(N['personality'], p) for p in (0x40000, 0x400000, 0x100000, 0x540000, 0)}))"
    )
    found = _inside(folder, script)
    assert found == {"0x40000": 1, "0x400000": 1, "0x100000": 1, "0x540000": 1, "0x0": 0}


def test_every_process_of_the_sandbox_is_filtered(folder: Path) -> None:
    """Also its first, which reaps the others; and none can take the filter off."""
    script = (
        "def lines(pid):\n"
        "    told = (line.split(':\\t', 1) for line in open(f'/proc/{pid}/status'))\n"
        "    return dict(pair for pair in told if pair[0] in ('NoNewPrivs', 'Seccomp'))\n"
        "found = {pid: lines(pid) for pid in os.listdir('/proc') if pid.isdigit()}\n"
        "print(json.dumps({'found': {pid: [v.strip() for v in f.values()] for pid, f in found.items()},\n"
        "                  'off': call(N['prctl'], 22, 0, 0, 0, 0)}))"
    )
    told = _inside(folder, script)
    assert isinstance(told["found"], dict)
    assert {tuple(fields[:2]) for fields in told["found"].values()} == {("1", "2")}
    assert told["off"] == errno.EINVAL


def test_debugger_reaches_its_own_processes_and_no_other(folder: Path) -> None:
    """ptrace and process_vm_readv stay: every process that a program can name is its own."""
    script = (
        "import time\n"
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(60)\n"
        "attached = call(N['ptrace'], 16, child, 0, 0)\n"
        "os.kill(child, 9)\n"
        "named = set(range(3, 5000)) - {child, os.getpid()}\n"
        "others = [pid for pid in named if not call(N['ptrace'], 16, pid, 0, 0)]\n"
        "print(json.dumps({'own': attached, 'others': others}))"
    )
    assert _inside(folder, script) == {"own": 0, "others": []}
