"""The host starts `adyton run` with everything about it turned against the program: the program finds none of it."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount import world

pytestmark = pytest.mark.mount

OUT = [["encrypted", "/out", "file:out"]]
NUMBERS = {"x86_64": {"ioprio_set": 251, "ioprio_get": 252, "set_mempolicy": 238, "get_mempolicy": 239}}
NUMBERS["aarch64"] = {"ioprio_set": 30, "ioprio_get": 31, "set_mempolicy": 237, "get_mempolicy": 236}
NO_RANDOMIZE, READ_IMPLIES_EXEC = 0x40000, 0x400000
IDLE_IO = 3 << 13
PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}

_LOOK = """
import ctypes, json, os, resource
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.rstrip('\\n').split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)
policy = ctypes.c_int(-1)
libc.syscall(%(get_mempolicy)d, ctypes.byref(policy), None, ctypes.c_long(0), None, ctypes.c_long(0))
mask = os.umask(0o22)
kinds = [name for name in dir(resource) if name.startswith('RLIMIT_')]
try: os.close(os.open('/dev/tty', os.O_RDWR)); terminal = True
except OSError: terminal = False
print(json.dumps({
    'personality': libc.personality(0xFFFFFFFF),
    'limits': {name: resource.getrlimit(getattr(resource, name))[0] for name in kinds},
    'ignored': int(status['SigIgn'], 16),
    'blocked': int(status['SigBlk'], 16),
    'processors': len(os.sched_getaffinity(0)),
    'nice': os.getpriority(os.PRIO_PROCESS, 0),
    'policy': os.sched_getscheduler(0),
    'io': libc.syscall(%(ioprio_get)d, 1, 0),
    'memory policy': policy.value,
    'oom': open('/proc/self/oom_score_adj').read().strip(),
    'core filter': open('/proc/self/coredump_filter').read().strip(),
    'mask': mask,
    'files': sorted(int(name) for name in os.listdir('/proc/self/fd'))[:-1],
    'slack': libc.prctl(30, 0, 0, 0, 0),
    'no large pages': libc.prctl(42, 0, 0, 0, 0),
    'merged': libc.prctl(68, 0, 0, 0, 0) > 0,
    'securebits': libc.prctl(27, 0, 0, 0, 0),
    'capabilities': {name: status[name] for name in status if name.startswith('Cap')},
    'environment': sorted(os.environ),
    'terminal': terminal,
}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `adyton run` is started."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")
    (tmp_path / "out").mkdir()
    return tmp_path


def _hostile(numbers: dict[str, int]) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.personality(NO_RANDOMIZE | READ_IMPLIES_EXEC)
        for kind, soft in (
            (resource.RLIMIT_STACK, resource.RLIM_INFINITY),  # the old layout of memory, less of it at random
            (resource.RLIMIT_FSIZE, 1 << 20),
            (resource.RLIMIT_AS, 3 << 30),
            (resource.RLIMIT_DATA, 3 << 30),
            (resource.RLIMIT_CPU, 1000),
            (resource.RLIMIT_NPROC, 4000),
            (resource.RLIMIT_NOFILE, 200),
        ):
            resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        libc.syscall(numbers["ioprio_set"], 1, 0, IDLE_IO)
        libc.syscall(numbers["set_mempolicy"], 4, None, 0)  # MPOL_LOCAL
        for name, text in (("oom_score_adj", "500"), ("coredump_filter", "0x7f")):
            Path(f"/proc/self/{name}").write_text(text)
        os.umask(0o777)
        os.set_inheritable(os.open("/etc/passwd", os.O_RDONLY), True)
        for option, value in ((29, 10**9), (41, 1), (67, 1), (1, 15)):  # slack, large pages, merging, parent's death
            libc.prctl(option, value, 0, 0, 0)

    return prepare


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user cannot take all of this back: docs/sandbox.md says what")
def test_nothing_of_the_starter_is_left_for_the_program(folder: Path) -> None:
    """Run under the worst starter, the program finds what it finds under a plain one, and what the page promises."""
    numbers = NUMBERS.get(os.uname().machine)
    if numbers is None:
        pytest.skip("the calls' numbers are not known for this processor")
    spec = world.python(_LOOK % numbers, mounts=OUT, fds_limit=150)
    spec["env"] = {"PATH": "/usr/bin", "PYTHONHOME": "/usr"}
    prepare = _hostile(numbers)
    plain, hostile = (world.finish(world.start(folder, spec, preexec_fn=how)) for how in (None, prepare))
    assert (plain.status, hostile.status) == (0, 0), plain.err + hostile.err
    found: dict[str, Any] = json.loads(hostile.out)
    assert found == json.loads(plain.out)
    ignored = {number for number in signal.valid_signals() if found["ignored"] >> (number - 1) & 1}
    limits = found["limits"]
    assert (found["personality"], found["blocked"], ignored) == (0, 0, PYTHONS_OWN)
    assert found["processors"] == len(os.sched_getaffinity(0))
    assert (found["nice"], found["policy"], found["io"] >> 13, found["memory policy"]) == (0, os.SCHED_OTHER, 0, 0)
    assert (found["oom"], found["core filter"], found["mask"], found["slack"]) == ("0", "00000000", 0o022, 50_000)
    assert (found["no large pages"], found["merged"], found["securebits"], found["terminal"]) == (0, False, 0, False)
    assert (found["files"], found["environment"]) == ([0, 1, 2], ["PATH", "PWD", "PYTHONHOME"])
    assert set(found["capabilities"].values()) == {"0" * 16}
    assert (limits["RLIMIT_NOFILE"], limits["RLIMIT_STACK"]) == (150, 8 << 20)
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NPROC"):
        assert limits[name] == resource.getrlimit(getattr(resource, name))[1], name


def test_addresses_are_drawn_at_random_under_any_starter(folder: Path) -> None:
    """What the personality is for: two processes do not have their stacks at one place."""
    script = "for n in 1 2 3 4; do grep stack /proc/self/maps; done"
    libc = ctypes.CDLL(None)
    process = world.start(folder, world.shell(script, mounts=OUT), preexec_fn=lambda: libc.personality(NO_RANDOMIZE))
    result = world.finish(process)
    assert result.status == 0, result.err
    assert len(set(result.out.splitlines())) == 4


@pytest.mark.parametrize("personality", [NO_RANDOMIZE, NO_RANDOMIZE | READ_IMPLIES_EXEC, 8])
def test_keeper_has_its_memory_as_linux_gives_it(folder: Path, personality: int) -> None:
    """The keys' process, too, has its addresses at random, and no data that can be executed, in each of two runs."""
    libc = ctypes.CDLL(None)
    stacks: set[str] = set()
    for name in ("one", "two"):
        (folder / name / "out").mkdir(parents=True)
        spec = world.shell("echo ready; read line", mounts=OUT, stdin=True)
        process = world.start(
            folder / name, spec, preexec_fn=lambda: libc.personality(personality), stdin=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in (process.pid, *(children if os.getuid() == 0 else ())):  # only root may look into the keeper
                assert int(Path(f"/proc/{pid}/personality").read_text(), 16) == 0
                maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
                stacks |= {line.split()[0] for line in maps if line.endswith("[stack]")}
                assert not [line for line in maps if line.split()[1].startswith("rwx")]
        finally:
            result = world.finish(process)
        assert result.status in (0, 1), result.err
    assert len(stacks) >= 2, stacks


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_closed_standard_files_are_nothing_and_none_of_the_runs_own(folder: Path, closed: tuple[int, ...]) -> None:
    """Else the next file that is opened would become it: the pipe on which the keeper tells how the run ended."""
    script = (
        "import json, os\n"
        "names = {n: os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)}\n"
        'for n in (1, 2): os.write(n, b\'{"ended": {"exit_code": 0}}\\n\')\n'
        "json.dump(names, open('/out/found', 'w'))\n"
        "raise SystemExit(7)"
    )

    def prepare() -> None:
        for fd in closed:
            os.close(fd)

    process = world.start(folder, world.python(script, mounts=OUT, stdin=True), preexec_fn=prepare)
    result = world.finish(process)
    assert result.status == 7, result.err
    found = json.loads(world.decrypt(folder, "out/found"))
    assert {int(fd) for fd, name in found.items() if name == "/dev/null"} >= set(closed), found


@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP])
def test_starter_that_ignores_a_signal_keeps_no_news_from_anyone(folder: Path, number: signal.Signals) -> None:
    """The exit code arrives, and a signal to `adyton run` reaches the program."""
    script = "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.1; done"

    def prepare() -> None:
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGCHLD})

    process = world.start(folder, world.shell(script, mounts=OUT), preexec_fn=prepare)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    result = world.finish(process)
    assert (result.status, result.out) == (7, "got\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give capabilities on")
def test_ambient_capabilities_of_the_starter_do_not_reach_bubblewrap(folder: Path) -> None:
    """Nor do securebits that keep capabilities over a change of user."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        everything = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0x1FF, 0x1FF, 0x1FF])
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        libc.capget(header, everything)
        everything[2], everything[5] = everything[1], everything[4]  # inheritable: what is permitted
        libc.capset(header, everything)
        for capability in range(41):
            libc.prctl(47, 2, capability, 0, 0)  # PR_CAP_AMBIENT_RAISE
        libc.prctl(28, 4, 0, 0, 0)  # SECBIT_NO_SETUID_FIXUP

    script = "grep ^Cap /proc/self/status; grep ^Cap /proc/1/status"
    result = world.finish(world.start(folder, world.shell(script, mounts=OUT), preexec_fn=prepare))
    assert result.status == 0, result.err
    assert {line.split()[1] for line in result.out.splitlines()} == {"0" * 16}
