"""Carry out a plan: private namespaces, staging, keys, served mounts, sandbox; undo everything on any exit.

Processes of a run, each killed by the kernel when the one above it ends (PR_SET_PDEATHSIG, --die-with-parent)::

    adyton run                the caller of `launch`: waits, passes signals on, holds no key
    └─ keeper                 in the private namespaces: asks for the keys, stages, waits for the program
       ├─ adyton-stage ...    hashing workers, gone before the program starts; they hold no key
       ├─ adyton-files        serves the encrypted mounts and /dev/attestation
       └─ bwrap └─ program    in namespaces of its own, from which none of the above can be seen

The mounts live in the keeper's mount namespace and vanish with its last process, so that kill -9 of any of them
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from adyton import errors
from adyton.errors import Error, MountFailed, RunError, SandboxFailed, ScriptFailed
from adyton.run import host, launcher, namespace, sandbox
from adyton.run.division import Division, divide
from adyton.run.log import EncryptedLog
from adyton.run.plan import EncryptedMount, Plan
from adyton.values import Key128
from adyton.vfs import syscalls
from adyton.vfs.pulse import STALLED_STATUS, Pulse
from adyton.vfs.stage import FIXED_TIME_S, Staging, stage_encrypted

if TYPE_CHECKING:
    from adyton.vfs.fuse import Tree

PASSED_ON: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip
"""Signals that the program receives when `adyton run` does."""

PATIENCE: Final = 3
"""So many SIGINT or SIGTERM end a program that does not end by itself."""

FLUSH_LIMIT_S: Final = 120.0
END_LIMIT_S: Final = 2.0
MAX_EVENTS: Final = 100
"""So many different events of a run are told; the host can cause any number of them."""

MAX_FIRST_OUTPUT_BYTES: Final = 1024

_MAX_MESSAGE_BYTES: Final = 1 << 20
_ATTESTATION: Final = "attestation"
_TRUSTED: Final = "trusted"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the key servers released: keys by name, and other secrets by name."""

    keys: Mapping[str, Key128]
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: the program's exit code, seconds per phase, and what went wrong on the way without ending it."""

    exit_code: int
    seconds: Mapping[str, float]
    events: tuple[str, ...]
    facts: Mapping[str, Any]


def launch(
    plan: Plan,
    obtain: Callable[[], Delivered],
    *,
    simulated: bool,
    quote: Callable[[bytes], bytes] | None = None,
    note: Callable[[str], None] = lambda _text: None,
    jobs: int | None = None,
    stdio: tuple[int, int, int] = (0, 1, 2),
) -> Ended:
    """Run a plan to its end; raises Error where it could not start or its outputs could not be kept.

    `obtain` is called in the keeper, beside the staging of trusted files, and its keys never leave the keeper.
    Call it from the main thread: a run is bound to the thread that started it.
    """
    bwrap = sandbox.locate()
    warning = host.check_swap(simulated=simulated)
    if warning is not None:
        note(warning)
    report_out, report_in = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    keeper = os.fork()
    if keeper == 0:
        _become_keeper(parent, report_in, blocked, lambda tell: _Keeper(plan, obtain, bwrap, quote, jobs, stdio, tell))
    os.close(report_in)
    with _pass_on(lambda number: os.kill(keeper, number)):
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            result = _listen(report_out, note)
        finally:
            os.close(report_out)
            _, status = os.waitpid(keeper, 0)
    return _outcome(result, os.waitstatus_to_exitcode(status))


def _become_keeper(
    parent: int,
    report: int,
    mask: set[signal.Signals] | set[int],
    make: Callable[[Callable[[dict[str, Any]], None]], _Keeper],
) -> NoReturn:
    """In the child: run the keeper, tell the parent how it ended, and never return into the caller's code."""

    def tell(message: dict[str, Any]) -> None:
        raw = json.dumps(message).encode()
        if len(raw) < _MAX_MESSAGE_BYTES:
            with contextlib.suppress(BrokenPipeError):
                os.write(report, raw + b"\n")

    status = 1
    try:
        syscalls.die_with_parent(parent)
        syscalls.name_process("adyton-keeper")
        with contextlib.suppress(PermissionError):
            os.setsid()
        keeper = make(tell)
        with _pass_on(keeper.take_signal):
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            try:
                tell({"ended": keeper.run()})
                status = 0
            except _Interrupted as stop:
                tell({"interrupted": stop.number})
            except Error as error:
                tell({"failure": {**error.details(), "status": getattr(error, "status", None)}})
    except _Interrupted as stop:  # as early as that signals were let in, or a second one
        tell({"interrupted": stop.number})
    except BaseException as error:
        import traceback

        tell({"bug": "".join(traceback.format_exception(error))})
    finally:
        os._exit(status)


def _listen(report: int, note: Callable[[str], None]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with os.fdopen(os.dup(report), "rb") as lines:
        for line in lines:
            message = json.loads(line)
            if "note" in message:
                note(message["note"])
            else:
                result = message
    return result


def _outcome(result: dict[str, Any], status: int) -> Ended:
    if "ended" in result:
        ended = result["ended"]
        return Ended(ended["exit_code"], ended["seconds"], tuple(ended["events"]), ended["facts"])
    if "interrupted" in result:
        number = signal.Signals(result["interrupted"])
        raise ScriptFailed(f"stopped by {number.name} before the program started", status=128 + number)
    if "failure" in result:
        raise _error_from(result["failure"])
    if "bug" in result:
        raise RuntimeError("the keeper failed:\n" + result["bug"])
    raise RunError(
        "the keeper process ended without a word",
        check="exit status of the keeper",
        expected=0,
        seen=status,
        remedy="it was killed, or memory ran out (dmesg); nothing of the run is left",
    )


def _error_from(failure: dict[str, Any]) -> Error:
    kind = getattr(errors, failure["error"])
    if kind is ScriptFailed:
        return ScriptFailed(failure["message"], status=failure["status"], remedy=failure.get("remedy"))
    made: Error = kind(
        failure["message"],
        check=failure.get("check"),
        expected=failure.get("expected"),
        seen=failure.get("seen"),
        remedy=failure.get("remedy"),
    )
    return made


@contextlib.contextmanager
def _pass_on(take: Callable[[int], None]) -> Iterator[None]:
    """Give every signal of PASSED_ON to `take` for as long as this lasts."""

    def handler(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            take(number)

    before = {number: signal.signal(number, handler) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Interrupted(Exception):
    """A signal arrived before the program was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Keeper:
    """The process that holds the keys: builds the program's world, runs the program in it, takes it down."""

    def __init__(
        self,
        plan: Plan,
        obtain: Callable[[], Delivered],
        bwrap: str,
        quote: Callable[[bytes], bytes] | None,
        jobs: int | None,
        stdio: tuple[int, int, int],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._plan = plan
        self._obtain = obtain
        self._bwrap = bwrap
        self._quote = quote
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._stdio = stdio
        self._tell = tell
        self._base = ""
        self._sandbox: sandbox.Sandbox | None = None
        self._files: _FileServer | None = None
        self._staging: Staging | None = None
        self._division = Division((), (), (), (), 0)
        self._signals = 0
        self._seconds: dict[str, float] = {}
        self._events: dict[str, int] = {}
        self._facts: Mapping[str, Any] = {}
        self._log: EncryptedLog | None = None
        self._first_output = b""

    def take_signal(self, number: int) -> None:
        """Pass a signal on to the program; before it runs, stop; the third request to end is not a request any more."""
        if self._sandbox is None:
            raise _Interrupted(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            self._signals += 1
            if self._signals >= PATIENCE:
                self._sandbox.process.kill()
                return
        self._sandbox.signal(number)

    def run(self) -> dict[str, Any]:
        """Everything, in order; whatever happens, nothing stays."""
        try:
            self._base = namespace.enter()
            host.harden_process()
            host.lock_memory()
            exit_code = self._run()
        except BaseException:
            with contextlib.suppress(Error):
                self._take_down()
            raise
        self._take_down()
        return {"exit_code": exit_code, "seconds": self._seconds, "events": self._told_events(), "facts": self._facts}

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = round(self._seconds.get(name, 0.0) + time.monotonic() - began, 4)

    @property
    def _root(self) -> str:
        return self._base + "/root"

    def _run(self) -> int:
        plan = self._plan
        with self._phase("prepare"):
            os.mkdir(self._root)
            namespace.mount_memory(self._root, size_bytes=plan.budget_bytes, mode=0o755, huge=True)
            self._division = divide(plan)
            self._staging = Staging(self._root, self._division.staged_files, jobs=self._jobs)
            self._staging.start()
        with self._phase("keys"):
            delivered = self._obtain()
            self._check_delivered(delivered)
        self._facts = delivered.facts
        keys = {**plan.insecure_keys, **delivered.keys}
        with self._phase("serve"):
            self._files = self._serve(keys)
        with self._phase("stage"):
            staged_bytes = self._staging.finish()
            staged_bytes += self._stage_inputs(keys)
            self._furnish(delivered)
            self._mount_served()
            namespace.make_read_only(self._root)
        self._seconds["staged MB"] = round(staged_bytes / 1e6, 1)
        if plan.log is not None:
            self._log = EncryptedLog(plan.log.source, keys[plan.log.key_name])
        with self._phase("program"):
            return self._execute(delivered)

    # ---------------------------------------------------------------- keys

    def _check_delivered(self, delivered: Delivered) -> None:
        missing = [name for name in self._plan.key_names if name not in {**self._plan.insecure_keys, **delivered.keys}]
        missing += [secret.name for secret in self._plan.secrets if secret.name not in delivered.secrets]
        if missing:
            raise errors.UnknownKey(
                f"no key server released {', '.join(missing)}",
                check="keys and secrets that the manifest names",
                expected=", ".join(self._plan.key_names),
                seen=", ".join(sorted(delivered.keys)) or "none",
                remedy="have their owner approve this measurement for them (`adyton approve`)",
            )

    # ---------------------------------------------------------------- files

    def _served_mounts(self) -> list[EncryptedMount]:
        return [mount for mount in self._plan.encrypted if not mount.read_only] + list(self._division.served_mounts)

    def _serve(self, keys: Mapping[str, Key128]) -> _FileServer | None:
        """Start the process that serves what is written, if anything is, and /dev/attestation."""
        mounts = self._served_mounts()
        attest = self._quote is not None or bool(self._plan.key_names)
        large = self._division.served_files
        if not mounts and not attest and not large:
            return None
        place = self._base + "/served"
        os.mkdir(place)
        fuse_fd = namespace.mount_fuse(place)

        def make(event: Callable[[str], None], pulse: Pulse) -> dict[str, Tree]:
            from adyton.vfs.attestation import AttestationTree
            from adyton.vfs.encrypted import EncryptedTree
            from adyton.vfs.trusted import TrustedTree

            trees: dict[str, Tree] = {}
            for number, mount in enumerate(mounts):
                trees[str(number)] = EncryptedTree(
                    mount.source,
                    keys[mount.key_name],
                    sealed_as=mount.source,
                    read_only=mount.read_only,
                    power_safe=mount.recovery,
                    event=event,
                    pulse=pulse,
                )
            if large:
                trees[_TRUSTED] = TrustedTree(large, event=event, pulse=pulse)
            if attest:
                named = {name: keys[name] for name in self._plan.key_names}
                kind = self._plan.attestation_type
                trees[_ATTESTATION] = AttestationTree(self._quote, named, kind=kind, event=event)
            return trees

        for mount in mounts:
            if not os.path.exists(mount.source or ".") and _may_be_made(mount):
                _make_empty(mount, keys[mount.key_name])
                self._event(f"{mount.source} did not exist: made as an empty protected file")
            _check_source(mount)
        return _FileServer.start(fuse_fd, make)

    def _stage_inputs(self, keys: Mapping[str, Key128]) -> int:
        staged = 0
        for mount in self._division.staged_mounts:
            staged += stage_encrypted(mount.source, self._root + mount.path, keys[mount.key_name], jobs=self._jobs)
        return staged

    def _furnish(self, delivered: Delivered) -> None:
        """The directories and small files that the sandbox needs or that programs expect."""
        plan = self._plan
        for path in ("/dev", "/proc", "/sys/devices/system/cpu", "/tmp", plan.start_dir):  # noqa: S108
            os.makedirs(self._root + path, 0o755, exist_ok=True)
        processors = f"0-{(os.cpu_count() or 1) - 1}\n" if (os.cpu_count() or 1) > 1 else "0\n"
        for name in ("online", "possible", "present"):
            _write(f"{self._root}/sys/devices/system/cpu/{name}", processors.encode(), 0o444)
        self._link_interpreter()
        if plan.argv[0] != plan.entrypoint:
            code = launcher.program()
            if code is not None:
                _write(self._root + sandbox.LAUNCHER, code, 0o555)
        for secret in plan.secrets:
            if secret.file is not None:
                os.makedirs(os.path.dirname(self._root + secret.file), 0o755, exist_ok=True)
                _write(self._root + secret.file, delivered.secrets[secret.name], 0o444)
        if plan.domain_names_from_host:
            os.makedirs(self._root + "/etc", 0o755, exist_ok=True)
            for path in ("/etc/resolv.conf", "/etc/hosts"):
                with contextlib.suppress(OSError):
                    Path(self._root + path).unlink(missing_ok=True)
                    _write(self._root + path, Path(path).read_bytes()[: 1 << 16], 0o444)
        for path in plan.memory:
            if path == "/dev/shm":  # noqa: S108 - the sandbox's own, there already
                continue
            self._mount_empty_memory(self._root + path)
        for allowed in plan.allowed:
            self._bind_allowed(allowed.source, self._root + allowed.target, is_folder=allowed.is_folder)

    def _mount_empty_memory(self, path: str) -> None:
        """Mount memory for the program; what was staged below (a later mount in the manifest's order) shows in it."""
        os.makedirs(path, 0o755, exist_ok=True)
        covered = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            staged = [(name, os.path.isdir(f"{path}/{name}")) for name in sorted(os.listdir(path))]
            namespace.mount_memory(path, size_bytes=self._plan.budget_bytes, mode=0o1777)
            for name, is_folder in staged:
                if is_folder:
                    os.mkdir(f"{path}/{name}", 0o755)
                else:
                    _write(f"{path}/{name}", b"", 0o444)
                namespace.bind(f"/proc/self/fd/{covered}/{name}", f"{path}/{name}", read_only=True)
        finally:
            os.close(covered)

    def _bind_allowed(self, source: str, target: str, *, is_folder: bool) -> None:
        if not os.path.exists(source):
            raise MountFailed(
                f"allowed file {source} does not exist",
                check="sgx.allowed_files",
                expected="a folder" if is_folder else "a file",
                seen="nothing",
                remedy="make it before the start",
            )
        if os.path.isdir(source):
            os.makedirs(target, 0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            Path(target).touch()
        namespace.bind(source, target)

    def _link_interpreter(self) -> None:
        """Where the program's ELF interpreter is listed under another path than the program asks for, link it there.

        Gramine finds it by its name in the library path; the kernel looks at the one path that is in the program.
        """
        wanted = elf_interpreter(self._root + self._plan.entrypoint)
        if wanted is None or os.path.lexists(self._root + wanted):
            return
        name = wanted.rpartition("/")[2]
        folders = [folder for folder in self._plan.env.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
        for folder in (*folders, "/lib", "/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"):
            if os.path.isfile(f"{self._root}{folder}/{name}"):
                os.makedirs(os.path.dirname(self._root + wanted), 0o755, exist_ok=True)
                os.link(os.path.realpath(f"{self._root}{folder}/{name}"), self._root + wanted)
                return
        raise MountFailed(
            f"{self._plan.entrypoint} needs {wanted}, which no trusted file provides",
            check="ELF interpreter of the entrypoint",
            expected=wanted,
            seen=f"nothing there, and no {name} in the library path",
            remedy=f'add "file:{wanted}" to sgx.trusted_files and a mount that shows it at {wanted}',
        )

    def _mount_served(self) -> None:
        if self._files is None:
            return
        for number, mount in enumerate(self._served_mounts()):
            source = f"{self._base}/served/{number}"
            target = self._root + mount.path
            try:
                is_folder = os.path.isdir(source) if os.stat(source) else False
            except OSError as error:
                raise self._files.failure(mount.source, error) from error
            if is_folder:
                os.makedirs(target, 0o755, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
                Path(target).touch()
            namespace.bind(source, target, read_only=mount.read_only)
        for number, entry in enumerate(self._division.served_files):
            for path in entry.targets:
                os.makedirs(os.path.dirname(self._root + path), 0o755, exist_ok=True)
                Path(self._root + path).touch()
                namespace.bind(f"{self._base}/served/{_TRUSTED}/{number}", self._root + path, read_only=True)

    # ---------------------------------------------------------------- the program

    def _execute(self, delivered: Delivered) -> int:
        plan = self._plan
        env = dict(plan.env)
        for secret in plan.secrets:
            if secret.env is not None:
                env[secret.env] = os.fsdecode(delivered.secrets[secret.name])
        dev_binds = []
        if self._files is not None and os.path.isdir(f"{self._base}/served/{_ATTESTATION}"):
            dev_binds.append((f"{self._base}/served/{_ATTESTATION}", "/dev/attestation"))
        words = sandbox.options(
            self._root,
            uid=plan.uid,
            gid=plan.gid,
            start_dir=plan.start_dir,
            env=env,
            network=plan.network,
            memory_bytes=plan.budget_bytes,
            dev_binds=dev_binds,
        )
        command = [plan.entrypoint, *plan.argv[1:]]
        if os.path.exists(self._root + sandbox.LAUNCHER):
            command = [sandbox.LAUNCHER, plan.entrypoint, *plan.argv]
        output_out, output_in = os.pipe2(os.O_CLOEXEC) if self._log is not None else (-1, -1)
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._sandbox = sandbox.start(
                self._bwrap,
                words,
                command,
                stdin=self._stdio[0] if plan.stdin_from_host else nothing,
                stdout=self._stdio[1] if self._log is None else output_in,
                stderr=self._stdio[2] if self._log is None else output_in,
                fds_limit=plan.fds_limit,
                stack_bytes=plan.stack_bytes,
            )
        finally:
            for fd in (nothing, output_in):
                if fd >= 0:
                    os.close(fd)
        self._wait(self._sandbox, output_out)
        return self._exit_code(self._sandbox)

    def _wait(self, running: sandbox.Sandbox, output: int) -> None:
        """Until the program has ended: keep its log, hear the file server, end the program if the file server ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(running.status_fd, selectors.EVENT_READ)
            if output >= 0:
                selector.register(output, selectors.EVENT_READ)
            if self._files is not None:
                selector.register(self._files.events_fd, selectors.EVENT_READ)
            waiting = {running.status_fd, output} - {-1}
            while waiting:
                for key, _ in selector.select(self._log.due_s if self._log is not None else None):
                    if key.fd == running.status_fd:
                        more = running.read_status()
                    elif key.fd == output and self._log is not None:
                        data = os.read(output, 1 << 18)
                        self._log.append(data)
                        self._first_output += data[: MAX_FIRST_OUTPUT_BYTES - len(self._first_output)]
                        more = bool(data)
                    else:
                        more = self._files is not None and self._hear(self._files)
                        if not more:
                            running.kill_now()
                    if not more:
                        selector.unregister(key.fd)
                        waiting.discard(key.fd)
                if self._log is not None and self._log.due_s == 0.0:
                    self._log.flush()
        if output >= 0:
            os.close(output)
        running.process.wait()

    def _hear(self, files: _FileServer) -> bool:
        lines = files.read_events()
        if lines is None:
            return False
        for line in lines:
            self._event(line)
        return True

    def _event(self, text: str) -> None:
        """Something that the host did, or failed at, and that the program saw as an I/O error: say it on both sides.

        What happens again and again (a full disk) is said once, and counted.
        """
        if text not in self._events and len(self._events) >= MAX_EVENTS:
            text = "more events than are told one by one"
        self._events[text] = self._events.get(text, 0) + 1
        if self._events[text] > 1:
            return
        self._tell({"note": text})
        if self._log is not None:
            self._log.append(f"adyton: {text}\n".encode(errors="replace"))

    def _told_events(self) -> list[str]:
        return [text if count == 1 else f"{text} ({count} times)" for text, count in self._events.items()]

    def _exit_code(self, running: sandbox.Sandbox) -> int:
        code = running.exit_code
        if code is not None:
            return code
        if self._files is not None and self._files.status() is not None:
            raise MountFailed(
                "the process that serves the program's files ended, and the program was ended with it",
                check="file server",
                expected="running until the program has ended",
                seen=f"exit status {self._files.status()}" + (f"; {list(self._events)[-1]}" if self._events else ""),
                remedy="see what the run said before; outputs are as of their last flush",
            )
        status = running.process.returncode
        if status == -signal.SIGKILL or self._signals >= PATIENCE:
            return 128 + signal.SIGKILL
        complaint = _words_of_bubblewrap(self._first_output)
        raise SandboxFailed(
            f"the sandbox could not start {self._plan.entrypoint}",
            check="bubblewrap",
            expected="the program, running",
            seen=complaint or f"exit status {status}, without a word about the program",
            remedy="allow user namespaces (sysctl user.max_user_namespaces > 0, kernel.unprivileged_userns_clone=1,"
            " kernel.apparmor_restrict_unprivileged_userns=0)"
            if "namespace" in complaint
            else "the entrypoint must be an ELF program, or a script with #!",
        )

    # ---------------------------------------------------------------- the end

    def _take_down(self) -> None:
        """Whatever was begun: end it, flush it, and say what could not be kept."""
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        failure: Error | None = None
        if self._staging is not None:
            self._staging.abandon()
        if self._sandbox is not None:
            self._sandbox.kill()
        began = time.monotonic()
        if self._base:
            namespace.detach(self._base)
        if self._files is not None:
            failure = self._files.finish(self._event)
        if self._log is not None:
            self._log.close()
            failure = failure or self._log.failure
        self._seconds["flush"] = round(time.monotonic() - began, 4)
        if failure is not None:
            raise failure


def _may_be_made(mount: EncryptedMount) -> bool:
    """Gramine's rule for outputs: a mount may name a file that the program is still to write.

    A folder must be there; a name without a suffix may be meant as one.
    """
    source = Path(mount.source)
    return not mount.is_folder and bool(source.suffix) and source.parent.is_dir()


def _make_empty(mount: EncryptedMount, key: Key128) -> None:
    from adyton.pfile.backing import OSFile
    from adyton.pfile.file import ProtectedFile

    ProtectedFile.create(OSFile(mount.source, create=True), key, path=mount.source, use_log=False).close()


def _check_source(mount: EncryptedMount) -> None:
    if not os.path.exists(mount.source or "."):
        raise MountFailed(
            f"encrypted mount {mount.path}: {mount.source} does not exist on the host",
            check="folder of the mount",
            expected=f"a folder (or protected file) at {mount.source}",
            seen="nothing",
            remedy=f"mkdir -p {mount.source} in the directory where `adyton run` is started",
        )


def _words_of_bubblewrap(output: bytes) -> str:
    """What bubblewrap itself says on standard error; used only where there never was a program that could say it."""
    lines = [line for line in output.splitlines() if line.startswith(b"bwrap: ")]
    return "; ".join(line.decode(errors="replace") for line in lines)


def _write(path: str, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
        os.fchmod(fd, mode)
        os.utime(fd, (FIXED_TIME_S, FIXED_TIME_S))
    finally:
        os.close(fd)


def elf_interpreter(path: str) -> str | None:
    """The interpreter that a 64-bit little-endian ELF program asks for (PT_INTERP); None for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
        return None
    start = int.from_bytes(head[32:40], "little")
    size = int.from_bytes(head[54:56], "little")
    count = int.from_bytes(head[56:58], "little")
    for at in range(start, start + size * min(count, 128), max(size, 1)):
        segment = head[at : at + size]
        if len(segment) >= 40 and segment[:4] == b"\x03\0\0\0":
            offset = int.from_bytes(segment[8:16], "little")
            length = int.from_bytes(segment[32:40], "little")
            if length <= 4096 and offset + length <= len(head):
                return head[offset : offset + length].rstrip(b"\0").decode(errors="surrogateescape")
    return None


class _FileServer:
    """The keeper's side of the process that serves files: its events, its end."""

    def __init__(self, pid: int, events_fd: int) -> None:
        self._pid = pid
        self.events_fd = events_fd
        self._status: int | None = None
        self._rest = b""

    @classmethod
    def start(cls, fuse_fd: int, make: Callable[[Callable[[str], None], Pulse], dict[str, Tree]]) -> _FileServer:
        """Fork the server; the mount is up already, and who looks into it waits until the server answers."""
        events_out, events_in = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(events_out)
                status = _serve_files(parent, fuse_fd, events_in, make)
            finally:
                os._exit(status)
        os.close(fuse_fd)
        os.close(events_in)
        return cls(pid, events_out)

    def read_events(self) -> list[str] | None:
        """Lines that have come in; None once the server has ended."""
        data = os.read(self.events_fd, 65_536)
        if not data:
            self._await_end()
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _await_end(self) -> None:
        """Wait for the server to end, but not for ever: on stalled storage even that hangs until the host answers."""
        deadline = time.monotonic() + END_LIMIT_S
        while self.status() is None:
            if time.monotonic() > deadline:
                self._status = STALLED_STATUS
            time.sleep(0.005)

    def status(self) -> int | None:
        """The exit status of the server; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def failure(self, source: str, error: OSError) -> MountFailed:
        """Why a mount could not be looked into."""
        told = self.read_events() if self.status() is not None or error.errno == errno.EIO else None
        reason = "; ".join(told or ()) or error.strerror or str(error)
        return MountFailed(
            f"encrypted mount {source}: {reason}",
            check="served mount",
            expected="a folder of protected files, or a protected file under this key and path",
            seen=reason,
            remedy="check key, path and files; `adyton inspect` says what a protected file holds",
        )

    def finish(self, event: Callable[[str], None]) -> Error | None:
        """After the unmount: hear the last events, wait for the flush; what could not be flushed is the error."""
        deadline = time.monotonic() + FLUSH_LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.events_fd, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                if not selector.select(1.0):
                    continue
                lines = self.read_events()
                if lines is None:
                    break
                for line in lines:
                    event(line)
        os.close(self.events_fd)
        if self.status() is None:
            os.kill(self._pid, signal.SIGKILL)
            self._await_end()
        if self._status == 0:
            return None
        return MountFailed(
            "the outputs could not be written completely",
            check="flush of the encrypted mounts",
            expected="every file flushed and closed",
            seen=f"file server ended with status {self._status}",
            remedy="see what the run said before; files are as of their last flush",
        )


def _serve_files(
    parent: int, fuse_fd: int, events: int, make: Callable[[Callable[[str], None], Pulse], dict[str, Tree]]
) -> int:
    """In the file server: serve until unmounted. Signals of the terminal are not for this process."""
    syscalls.die_with_parent(parent)
    syscalls.name_process("adyton-files")
    host.lock_memory()
    for number in (*PASSED_ON, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    _allow_many_files()

    def event(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(events, text.replace("\n", " ").encode(errors="replace")[:4000] + b"\n")

    from adyton.vfs import fuse

    try:
        os.set_inheritable(fuse_fd, True)
        pulse = Pulse()
        fuse.serve(make(event, pulse), f"/dev/fd/{fuse_fd}", event=event, pulse=pulse)
    except Error as error:
        event(error.message)
        return error.exit_code
    except OSError as error:
        event(f"{error.filename}: {error.strerror}")
        return 1
    return 0


def _allow_many_files() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
