"""The sandbox: the words for bubblewrap, and a program under it.

The program's root is the tree that `launch` built, and nothing of the host's. bubblewrap adds new user, mount, PID,
IPC, UTS and cgroup namespaces, a network namespace unless the manifest says `host`, its own /proc and a minimal /dev,
takes every capability and the way to new privileges away, and filters the program's system calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adyton.errors import SandboxFailed
from adyton.runtime import inherited
from adyton.runtime.resolver_config import DEFAULT_HOST_NAME
from adyton.runtime.run_plan import SHARED_MEMORY
from adyton.vfs.owner import Owner

LAUNCHER: Final = "/sys/adyton-exec"
_MAX_STATUS_BYTES: Final = 1 << 16


def locate() -> str:
    """The path of bubblewrap. Raises SandboxFailed where it is not installed."""
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxFailed(
            "bubblewrap is not installed",
            check="bwrap",
            expected="bubblewrap in PATH",
            seen="no bwrap",
            remedy="install it (Debian: apt install bubblewrap)",
        )
    return found


def options(
    root: str,
    *,
    uid: int,
    gid: int,
    start_dir: str,
    env: Mapping[str, str],
    network: str,
    shared_memory: str,
    host_name: str = DEFAULT_HOST_NAME,
    dev_binds: Sequence[tuple[str, str]] = (),
    devices: Sequence[tuple[str, str]] = (),
    proc: Sequence[str] = (),
) -> list[str]:
    """bubblewrap's options. They reach it through a pipe, so that no process list shows them.

    `network` is `none` for a new one of the program's own, or `host` or `joined` for the one that bubblewrap starts in.
    What is mounted at `shared_memory` is /dev/shm inside. `devices` are device nodes, which alone can be used there.
    """
    words = ["--unshare-user", "--uid", str(uid), "--gid", str(gid), "--disable-userns"]
    words += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", host_name]
    if network == "none":
        words.append("--unshare-net")
    words += ["--new-session", "--cap-drop", "ALL"]
    words += ["--bind", root, "/", "--proc", "/proc", *proc, "--dev", "/dev"]
    for source, target in dev_binds:
        words += ["--bind", source, target]
    for source, target in devices:
        words += ["--dev-bind", source, target]
    words += ["--remount-ro", "/dev", "--bind", shared_memory, SHARED_MEMORY]
    words += ["--chdir", start_dir, "--clearenv"]
    for name, value in env.items():
        words += ["--setenv", name, value]
    return words


@dataclass(slots=True)
class Sandbox:
    """A running sandbox: bubblewrap's process, and the pipe on which it tells what became of the program."""

    process: subprocess.Popen[bytes]
    status_fd: int
    _status: bytes = b""

    def read_status(self) -> bool:
        """Take in what bubblewrap has written. False at its end."""
        data = os.read(self.status_fd, 4096)
        if len(self._status) + len(data) <= _MAX_STATUS_BYTES:
            self._status += data
        return bool(data)

    def _told(self, name: str) -> int | None:
        for line in self._status.splitlines():
            try:
                document = json.loads(line)
            except ValueError:
                continue
            if name in document:
                return int(document[name])
        return None

    @property
    def init_pid(self) -> int | None:
        """The sandbox's first process, as this side numbers it."""
        return self._told("child-pid")

    @property
    def exit_code(self) -> int | None:
        """The program's exit code (128 and the signal's number where one killed it); None while it is unknown."""
        return self._told("exit-code")

    def program_pid(self) -> int | None:
        """The program itself, the first child of the sandbox's first process; None before it was started."""
        init = self.init_pid
        if init is None:
            return None
        try:
            with open(f"/proc/{init}/task/{init}/children", encoding="ascii") as file:
                children = file.read().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def signal(self, number: int) -> bool:
        """Pass a signal to the program. False where it is not there yet."""
        if self.exit_code is not None or self.process.poll() is not None:
            return True
        target = self.program_pid()
        if target is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)
        return True

    def kill_now(self) -> None:
        """Kill bubblewrap, and with it everything in the sandbox, without waiting."""
        self.process.kill()

    def kill(self) -> None:
        """End the sandbox and everything in it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.status_fd)


def start(
    bwrap: str,
    words: Sequence[str],
    command: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    owner: Owner,
    call_filter: bytes,
    fds_limit: int,
    stack_bytes: int,
) -> Sandbox:
    """Start a program under bubblewrap, both as `owner`, the program under a filter of system calls.

    bubblewrap's own environment is empty, so that nothing is loaded into it.
    """
    for before, word in zip(("", *words), words, strict=False):
        if "\0" in word:  # it would end here, and its rest would be an option of its own
            raise SandboxFailed(
                "a word for bubblewrap holds a null byte",
                check=f"what follows {before.split(chr(0))[0]!r}",
                expected="text without null bytes",
                seen="a null byte",
                remedy="if it is a secret for the environment, store it without one, or deliver it as a file",
            )
    options_out, options_in = os.pipe2(os.O_CLOEXEC)
    status_out, status_in = os.pipe2(os.O_CLOEXEC)
    filter_out, filter_in = os.pipe2(os.O_CLOEXEC)
    raw = b"".join(os.fsencode(word) + b"\0" for word in words)
    arguments = [bwrap, "--die-with-parent", "--args", str(options_out), "--json-status-fd", str(status_in)]
    arguments += ["--seccomp", str(filter_out), "--", *command]
    other = owner != Owner.caller()
    try:
        with inherited.limits(fds=fds_limit, stack_bytes=stack_bytes):
            process = subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={"PATH": "/usr/bin:/bin"},
                pass_fds=(options_out, status_in, filter_out),
                user=owner.uid if other else None,
                group=owner.gid if other else None,
                extra_groups=() if other else None,
                cwd="/",
                umask=inherited.UMASK,
                close_fds=True,
            )
    except OSError as error:
        raise SandboxFailed(
            f"bubblewrap did not start: {error.strerror}", check="bwrap", seen=error.strerror
        ) from error
    finally:
        for fd in (options_out, status_in, filter_out):
            os.close(fd)
    running = Sandbox(process, status_out)
    try:
        for fd, data in ((options_in, raw), (filter_in, call_filter)):
            with contextlib.suppress(BrokenPipeError), open(fd, "wb") as pipe:
                pipe.write(data)
    except BaseException:
        running.kill()  # it would take the end of its options for the whole of them
        raise
    return running
