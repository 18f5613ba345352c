"""Run a program once, natively, and see which files it reads and writes, how much memory and how many threads it takes.

strace (with a seccomp filter, so only calls that name files stop the program) sees what any program does, whatever
language or extension does it: a hook inside Python would miss the dynamic linker and every C library. An import of
torch takes 0.6 s longer for it.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from adyton.errors import NoDevice, ScriptFailed, UsageError

_CALLS: Final = "%file,chdir,fchdir,clone,clone3,fork,vfork,connect"
_MAX_LINE_CHARS: Final = 40_000  # two paths of 4,096 bytes, every byte an escape, and the rest
_MAX_PROJECT_FILES: Final = 500_000

_LINE: Final = re.compile(r"^([0-9]{1,10}) +(.*)$")
_UNFINISHED: Final = re.compile(r"^(.*) <unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")
_CALL: Final = re.compile(r"^(\w+)\((.*)\) += (-?[0-9]{1,20})(?:<(.*)>)?(?: .*)?$")
_PATH: Final = re.compile(r'(?:(AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>(?:\(deleted\))?, )?"((?:[^"\\]|\\.)*)"(\.\.\.)?')
_FLAGS: Final = re.compile(r"\bO_[A-Z_|]+")
_ADDRESS: Final = re.compile(r'sa_family=AF_INET6?, .*?inet_(?:addr\(|pton\(AF_INET6, )"([0-9a-fA-F.:]+)"')
_ESCAPE: Final = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED: Final = {
    b"n": b"\n",
    b"t": b"\t",
    b"r": b"\r",
    b"v": b"\v",
    b"f": b"\f",
    b"a": b"\a",
    b"b": b"\b",
    b"e": b"\x1b",
}


_STOPPED: Final = (0, -signal.SIGTERM, 128 + signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """What was seen of a server: whether it answered the request, and how it ended after SIGTERM."""

    port: int
    answered: bool
    status: int
    killed: bool

    @property
    def stopped(self) -> bool:
        """Whether SIGTERM ended it without an error."""
        return not self.killed and self.status in _STOPPED


class Watch(Protocol):
    """Watches a server while it runs, and ends it."""

    def start(self) -> None:
        """The server runs from now on."""

    def look(self, tracer: int) -> None:
        """Called again and again, with the id of the process that traces the server."""

    def ended(self, status: int) -> ServerSeen:
        """What was seen, after the end. Raises ScriptFailed."""

    def close(self) -> None:
        """Nothing runs any more."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The files and threads of one native run. Paths are absolute, as the program named them, in order of first use."""

    command: tuple[str, ...]
    cwd: str
    read: tuple[str, ...]
    written: tuple[str, ...]
    looked_at: tuple[str, ...]
    executed: tuple[str, ...]
    touched: tuple[str, ...]
    """Everything that was made, written, renamed or removed, whether it is still there or not."""
    made_folders: tuple[str, ...]
    peak_bytes: int
    peak_threads: int
    wall_s: float
    peak_shared_bytes: int = 0
    """The most that /dev/shm held beside what was in it before."""
    network: tuple[str, ...] = ()
    """The addresses of other machines to which it made a connection, or tried to."""
    read_stdin: bool = False
    """Whether standard input, a file or a pipe, was seen to be read."""
    server: ServerSeen | None = None
    """What was seen of it as a server. None: it was watched to its own end."""


@dataclass(slots=True)
class _Files:
    """The state of each path, while the trace is read."""

    cwd: str
    existed: frozenset[str] = frozenset()
    reads: dict[str, None] = field(default_factory=dict)
    writes: dict[str, None] = field(default_factory=dict)
    looks: dict[str, None] = field(default_factory=dict)
    execs: dict[str, None] = field(default_factory=dict)
    touched: dict[str, None] = field(default_factory=dict)
    made_folders: dict[str, None] = field(default_factory=dict)
    network: dict[str, None] = field(default_factory=dict)
    folders: dict[int, str] = field(default_factory=dict)
    group: dict[int, int] = field(default_factory=dict)
    alive: dict[int, set[int]] = field(default_factory=dict)
    peak_threads: int = 1


_END_TIMEOUT_S: Final = 5
_LOOK_MS: Final = 100
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def observe(command: Sequence[str], cwd: Path, watch: Watch | None = None) -> Observation:
    """Run `command` in `cwd` to its end. With `watch` it is a server, which is ended once it has answered.

    Raises ScriptFailed where it fails, NoDevice where strace is missing.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NoDevice(
            "strace is not installed, so nothing can be said about which files the program needs",
            check="strace",
            expected="a program strace",
            seen="none on PATH",
            remedy="apt-get install strace",
        )
    if shutil.which(command[0]) is None:
        raise UsageError(f"there is no program {command[0]}", check="program", seen=command[0])
    with tempfile.TemporaryDirectory(prefix="adyton-new-") as folder:
        trace = Path(folder) / "trace"
        started = time.monotonic()
        existed = _files_below(cwd)
        options = ["-f", "-q", "--seccomp-bpf", "-y", "-s", "4096", "-e", f"trace={_CALLS}", "-e", "signal=none"]
        status, peak_bytes, peak_shared_bytes, read_stdin = _run(
            [strace, *options, "-o", str(trace), "--", *command], cwd, watch
        )
        wall_s = time.monotonic() - started
        if not trace.exists() or (status and not trace.stat().st_size):
            raise NoDevice(
                "strace may not trace here (in a container it needs the ptrace capability)",
                check="strace",
                expected="a trace",
                seen=f"exit status {status}",
            )
        server = None if watch is None else watch.ended(status)
        if status and server is None:
            raise ScriptFailed(
                f"{Path(command[-1] if len(command) == 1 else command[1]).name} failed natively with status {status}",
                status=status,
                remedy="make the program run natively first; no manifest was written",
            )
        with trace.open(encoding="ascii", errors="surrogateescape") as lines:
            found = read_trace(lines, str(cwd), existed)
    return Observation(
        command=tuple(command),
        cwd=str(cwd),
        read=tuple(found.reads),
        written=tuple(found.writes),
        looked_at=tuple(path for path in found.looks if path not in found.reads and path not in found.writes),
        executed=tuple(found.execs),
        touched=tuple(found.touched),
        made_folders=tuple(found.made_folders),
        peak_bytes=peak_bytes,
        peak_threads=found.peak_threads,
        wall_s=wall_s,
        peak_shared_bytes=peak_shared_bytes,
        network=tuple(found.network),
        read_stdin=read_stdin,
        server=server,
    )


def _run(command: Sequence[str], cwd: Path, watch: Watch | None) -> tuple[int, int, int, bool]:
    """Run a command that shares our terminal.

    Returns its exit status, peak memory (bytes, of the largest process), peak of /dev/shm, and whether it read input.

    A signal is taken between two looks at the command, never amid its start, where its process would be lost.
    """
    with _held_signals() as taken:
        before_bytes = shared_bytes = _shared_bytes()
        least_read = _stdin_position()
        process = subprocess.Popen(command, cwd=cwd)
        ended = os.pidfd_open(process.pid)
        try:
            waiting = select.poll()
            waiting.register(ended, select.POLLIN)
            if watch is not None:
                watch.start()
            while not waiting.poll(_LOOK_MS) and not taken:
                shared_bytes = max(shared_bytes, _shared_bytes())
                least_read = min(least_read, _stdin_position())
                if watch is not None:
                    watch.look(process.pid)
            if not taken:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                read_stdin = _stdin_position() > least_read
                return process.returncode, usage.ru_maxrss * 1024, shared_bytes - before_bytes, read_stdin
            _end(process)
        except BaseException:
            _end(process)
            raise
        finally:
            os.close(ended)
            if watch is not None:
                watch.close()
    signal.raise_signal(taken[0])
    raise KeyboardInterrupt


def _stdin_position() -> int:
    """A number that grows where standard input is read: the place in a file, or minus the bytes that wait in a pipe."""
    try:
        mode = os.fstat(0).st_mode
        if stat.S_ISREG(mode):
            return os.lseek(0, 0, os.SEEK_CUR)
        if stat.S_ISFIFO(mode):
            waiting = array.array("i", [0])
            fcntl.ioctl(0, termios.FIONREAD, waiting)
            return -waiting[0]
    except OSError:
        pass
    return 0


def _shared_bytes() -> int:
    """What memory for sharing holds now, of all programs of this machine."""
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108 - where the kernel has it
    except OSError:
        return 0
    return (room.f_blocks - room.f_bfree) * room.f_frsize


@contextmanager
def _held_signals() -> Iterator[list[int]]:
    """Note the signals that ask for an end instead of acting on them. The caller raises the first of them."""
    taken: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield taken
        return
    heeded = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda seen, _frame: taken.append(seen)) for number in heeded}
    try:
        yield taken
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _files_below(folder: Path) -> frozenset[str]:
    """The files of a project before its run: what is then opened for writing, and not cut, is an input as well."""
    found: list[str] = []
    for place, _, names in os.walk(folder):
        found += [os.path.join(place, name) for name in names]  # noqa: PTH118 - tens of thousands of them
        if len(found) > _MAX_PROJECT_FILES:
            break
    return frozenset(found)


def _end(strace: subprocess.Popen[bytes]) -> None:
    """End the program that strace watches. strace itself blocks signals, and ends after its program."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            for pid in Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text().split():
                os.kill(int(pid), number)
        except OSError:
            pass  # ended meanwhile
        try:
            strace.wait(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
        return
    strace.kill()
    strace.wait()


def read_trace(lines: Iterable[str], cwd: str, existed: frozenset[str] = frozenset()) -> _Files:
    """Read strace's output (`-f -y`) into the state of each path. `existed`: files that were there before."""
    files = _Files(cwd, existed)
    for thread, text in _whole_lines(lines):
        if text.startswith("+++ "):
            _ended(files, thread)
            continue
        match = _CALL.match(text)
        if match is not None:
            _call(files, thread, match[1], match[2], int(match[3]))
    return files


def _whole_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines by thread, with calls that strace had to cut in two put together again."""
    waiting: dict[int, str] = {}
    for raw in lines:
        match = _LINE.match(raw.rstrip("\n")[:_MAX_LINE_CHARS])
        if match is None:
            continue
        thread, text = int(match[1]), match[2]
        if cut := _UNFINISHED.match(text):
            waiting[thread] = cut[1]
        elif rest := _RESUMED.match(text):
            yield thread, waiting.pop(thread, "") + rest[1]
        else:
            yield thread, text


def _ended(files: _Files, thread: int) -> None:
    files.alive.get(files.group.get(thread, thread), set()).discard(thread)


def _started(files: _Files, parent: int, child: int, *, is_thread: bool) -> None:
    leader = files.group.get(parent, parent) if is_thread else child
    files.group[child] = leader
    alive = files.alive.setdefault(leader, {leader})
    alive.add(child)
    files.peak_threads = max(files.peak_threads, len(alive))
    files.folders[child] = files.folders.get(parent, files.cwd)


def _unescape(text: str) -> str:
    raw = text.encode("ascii", "surrogateescape")

    def one(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes([int(match[1], 8) & 0xFF])
        if match[2]:
            return bytes([int(match[2], 16)])
        return _NAMED.get(match[3], match[3])

    return os.fsdecode(_ESCAPE.sub(one, raw))


def _paths(files: _Files, thread: int, arguments: str) -> list[str]:
    """The absolute paths that a call names, each below its folder descriptor or the thread's working folder."""
    found = []
    for handle, folder, text, cut in _PATH.findall(arguments):
        if cut:
            continue
        base = _unescape(folder) if handle else files.folders.get(thread, files.cwd)
        if handle == "AT_FDCWD":
            files.folders[thread] = base
        name = _unescape(text)
        found.append(os.path.normpath(os.path.join(base, name)) if name else base)  # noqa: PTH118 - keeps `..` rules
    return found


def _call(files: _Files, thread: int, name: str, arguments: str, result: int) -> None:
    if name in ("clone", "clone3", "fork", "vfork"):
        if result > 0:
            _started(files, thread, result, is_thread="CLONE_THREAD" in arguments)
        return
    if name == "connect":  # one that goes on is an error too
        address = _ADDRESS.search(arguments)
        if address and not _is_this_machine(address[1]):
            files.network.setdefault(address[1])
        return
    if result < 0:
        return
    if name == "execve":
        first = _PATH.search(arguments)
        paths = _paths(files, thread, first[0]) if first else []
    else:
        paths = _paths(files, thread, arguments)
    if not paths or "AT_EMPTY_PATH" in arguments:
        return
    path = paths[0]
    if name == "execve":
        files.execs.setdefault(path)
        if path not in files.writes:
            files.reads.setdefault(path)
    elif name in ("open", "openat", "openat2", "creat"):
        _opened(files, path, arguments if name != "creat" else "O_WRONLY|O_CREAT|O_TRUNC")
    elif name == "chdir":
        files.folders[thread] = path
    elif name in ("rename", "renameat", "renameat2", "link", "linkat"):
        if len(paths) > 1:
            files.touched.update(dict.fromkeys(paths[:2]))
            _named_anew(files, path, paths[1], is_moved=not name.startswith("link"))
    elif name in ("unlink", "unlinkat", "rmdir"):
        files.touched.setdefault(path)
        files.writes.pop(path, None)
    elif name in ("mkdir", "mkdirat", "symlink", "symlinkat", "mknod", "mknodat", "truncate"):
        if name.startswith("mkdir"):
            files.made_folders.setdefault(path)
        files.touched.setdefault(paths[-1])
        files.writes.setdefault(paths[-1])
    else:
        files.looks.setdefault(path)


def _is_this_machine(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _named_anew(files: _Files, old: str, new: str, *, is_moved: bool) -> None:
    """What was written at `old`, or below it, was written at `new`."""
    for known in (files.writes, files.made_folders):
        for path in [path for path in known if path.startswith(old + "/") or path == old]:
            known.setdefault(new + path[len(old) :])
            if is_moved:
                known.pop(path)
    files.writes.setdefault(new)


def _opened(files: _Files, path: str, arguments: str) -> None:
    match = _FLAGS.search(arguments)
    flags = set(match[0].split("|")) if match else set()
    if "O_PATH" in flags or "O_DIRECTORY" in flags:
        files.looks.setdefault(path)
        return
    if flags & {"O_WRONLY", "O_RDWR"}:
        fresh = "O_TRUNC" in flags or path in files.writes
        if not fresh and (path in files.existed or "O_CREAT" not in flags):
            files.reads.setdefault(path)
        files.touched.setdefault(path)
        files.writes.setdefault(path)
    elif path not in files.writes:
        files.reads.setdefault(path)
