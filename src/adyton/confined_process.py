"""A child process that parses untrusted text, with limits on processor time, memory, output and wall time.

The process gets its input on standard input. It gets no other descriptor and no secret. Its environment has only the
module paths. It sets its own limits before it reads a byte, and it is killed at its deadline. It answers `+` and the
result, or `-` and the error that refuses the input (`Error.to_bytes`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.errors import Error, OutOfOrder, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES: Final = 1 << 16
MAX_REASON_CHARS: Final = 600
NICE: Final = 10
"""The nice value of this work, so that the rest of the key server goes first."""

_DONE, _REFUSED = b"+", b"-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits of one task."""

    cpu_s: int = 10
    wall_s: float = 60.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 20 << 20


def run(module: str, task: str, content: bytes, bounds: Bounds) -> bytes:
    """Run `task` of `module` over `content` in a child process, and return its result.

    Raises OutOfOrder where the task refuses the content, Timeout where it does not end within its limits.
    """
    arguments = (str(bounds.cpu_s), str(bounds.memory_bytes))
    source = os.memfd_create("task", os.MFD_CLOEXEC)
    try:
        with contextlib.closing(os.fdopen(os.dup(source), "wb")) as file:
            file.write(content)
        os.lseek(source, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, task, *arguments],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(source)
    with process:
        try:
            answer = _answer(process, bounds)
        finally:
            process.kill()
    if answer[:1] == _DONE:
        return answer[1:]
    refused = Error.parse(answer[1:], unknown=OutOfOrder)
    seen = refused.message[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()  # the record takes Unicode only
    raise OutOfOrder("what was shown cannot be read", check="form of what was shown", seen=seen)


def _answer(process: subprocess.Popen[bytes], bounds: Bounds) -> bytes:
    """All output of the process, if it is within the limits and the process ends well."""
    if process.stdout is None:
        raise OSError("no pipe")
    deadline = time.monotonic() + bounds.wall_s
    found = bytearray()
    descriptor = process.stdout.fileno()
    readable = select.poll()  # not `select`, which takes no descriptor above 1023: the server has thousands
    readable.register(descriptor, select.POLLIN)
    while True:
        if not readable.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise _exceeded(f"no end within {bounds.wall_s:.0f} s")
        more = os.read(descriptor, READ_BYTES)
        if not more:
            break
        found += more
        if len(found) > bounds.output_bytes:
            raise _exceeded(f"more than {bounds.output_bytes} bytes")
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _exceeded(f"no end within {bounds.wall_s:.0f} s") from None
    if status != 0 or found[:1] not in (_DONE, _REFUSED):
        raise _exceeded(f"exit status {status}")
    return bytes(found)


def _exceeded(seen: str) -> Timeout:
    return Timeout(
        "the document could not be read within its limits",
        check="bounds of a task",
        expected="an end within its processor time, memory and output",
        seen=seen,
    )


def _environment() -> dict[str, str]:
    """The child's environment: the module paths of this process, and nothing else."""
    folders = [str(Path(folder).absolute()) for folder in sys.path if folder]
    return {"PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}


def child(tasks: dict[str, Callable[[bytes], bytes]], arguments: list[str]) -> NoReturn:
    """The child's main function: set limits, read, work, answer. A task with a defect ends with status 1."""
    task, cpu_s, memory_bytes = arguments
    _bound(int(cpu_s), int(memory_bytes))
    gc.disable()  # it would go over the same living objects again and again; memory is bounded, and freed at the end
    content = sys.stdin.buffer.read()
    try:
        answer = _DONE + tasks[task](content)
    except Error as error:
        answer = _REFUSED + error.to_bytes()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)


def _bound(cpu_s: int, memory_bytes: int) -> None:
    """Limit this process. The kernel kills it when its processor time is used up."""
    os.nice(NICE)
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 16,
        resource.RLIMIT_NPROC: 0,
    }
    for which, most in limits.items():
        _, hard = resource.getrlimit(which)
        bounded = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (bounded, bounded))
