"""What a process inherits from its starter is reset before a program runs, so that the host says nothing by it.

Everything here passes from a process to those it starts, also through execve(2). It is reset once, in the keeper, so
that all processes of a run have the same. The program's own limits are set where it is started. What cannot be taken
back, or not without privileges, stays as it is: docs/sandbox.md names it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from adyton.vfs import syscalls

UMASK: Final = 0o022
TIMER_SLACK_NS: Final = 50_000
"""Linux's own default."""
UNLIMITED: Final = resource.RLIM_INFINITY
LEAST_STACK_BYTES: Final = 8 << 20
MAX_PROCESSORS: Final = 8192
"""The most that Linux can be built for. Those that are not there are left out."""
_RTTIME: Final = 15  # RLIMIT_RTTIME, for which Python has no name

LIMITS: Final = {
    resource.RLIMIT_AS: UNLIMITED,
    resource.RLIMIT_CPU: UNLIMITED,
    resource.RLIMIT_DATA: UNLIMITED,
    resource.RLIMIT_FSIZE: UNLIMITED,
    resource.RLIMIT_NPROC: UNLIMITED,
    resource.RLIMIT_RSS: UNLIMITED,
    _RTTIME: UNLIMITED,
    resource.RLIMIT_SIGPENDING: 65_536,
    resource.RLIMIT_MSGQUEUE: 819_200,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
}
"""A program's soft limits beside those that its manifest names. A lower hard limit of the host holds."""

_OURS: Final = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)
"""Limits that would end or cripple the keeper and the file server, too."""


def begin_anew() -> None:
    """Replace this process by itself, as it was started, where its starter left less than a process has by itself.

    Call it before any file is opened. Where a standard file is closed, the next file opened would become it, and be the
    program's. Where the personality is another, the kernel protects memory less, and only execve(2) draws new
    addresses: the keeper is a fork of this process, and has the same. Who was started as usual goes on.
    """
    lacking = _open_standard_files()
    with contextlib.suppress(OSError):  # a filter of the starter's that forbids it stays, and so does what it protects
        if syscalls.personality() != 0:
            syscalls.plain_personality()
            lacking = True
    if lacking:
        os.execv("/proc/self/exe", sys.orig_argv)  # noqa: S606 - the same program, words and environment


def _open_standard_files() -> bool:
    """Put /dev/null in the place of each closed standard file. Returns whether there was one. Raises OSError."""
    lacking = False
    while (fd := os.open("/dev/null", os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
        lacking = True
    os.close(fd)
    return lacking


def heed_signals(numbers: Iterable[int] = signal.valid_signals()) -> None:
    """Ignore no signal that the starter had ignored, but those that Python itself ignores (and resets for others)."""
    for number in set(numbers) - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def reset() -> int:
    """Take back, in this single-threaded process, what it has from its starter. Returns the file mode mask it had."""
    steps = (
        syscalls.plain_personality,
        lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
        lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
        lambda: os.sched_setaffinity(0, range(MAX_PROCESSORS)),
        syscalls.plain_io_priority,
        syscalls.plain_memory_policy,
        lambda: syscalls.set_timer_slack(TIMER_SLACK_NS),
        syscalls.plain_memory,
        syscalls.no_ambient_capabilities,
        syscalls.join_new_keyring,
        lambda: _tell_kernel("oom_score_adj", "0"),
        lambda: _tell_kernel("coredump_filter", "0"),
    )
    for step in steps:
        with contextlib.suppress(OSError):
            step()
    for kind in _OURS:
        _set_soft_limit(kind, UNLIMITED)
    return os.umask(UMASK)


@contextlib.contextmanager
def limits(*, fds: int, stack_bytes: int) -> Iterator[None]:
    """For as long as this lasts, what this process starts has the limits of a program.

    Only soft limits are set: who lowers a hard one can do without privileges, and cannot undo it.
    """
    wanted = {**LIMITS, resource.RLIMIT_NOFILE: fds, resource.RLIMIT_STACK: max(stack_bytes, LEAST_STACK_BYTES)}
    before = {kind: resource.getrlimit(kind) for kind in wanted}
    try:
        for kind, soft in wanted.items():
            _set_soft_limit(kind, soft)
        yield
    finally:
        for kind, both in before.items():
            resource.setrlimit(kind, both)


def _set_soft_limit(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    within = hard == UNLIMITED or (wanted != UNLIMITED and wanted <= hard)
    resource.setrlimit(kind, (wanted if within else hard, hard))


def _tell_kernel(name: str, value: str) -> None:
    Path(f"/proc/self/{name}").write_text(value)
