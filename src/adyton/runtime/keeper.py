"""The keeper: the process of a run that gets the keys, from its private namespaces to the end of the program.

It gives the file server, which it starts, the keys of served mounts. No other process has any.

Its order of phases is the run: memory, staging of trusted files, keys (asked for while those are staged), the file
server, read-only inputs, the program, and whatever happens, the end of all of it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton import errors
from adyton.errors import Error, MountFailed, SandboxFailed
from adyton.runtime import (
    callfilter,
    device_nodes,
    host,
    namespace,
    owners_mounts,
    proc,
    resolver_config,
    sandbox,
    unprivileged,
)
from adyton.runtime.fileserver import ATTESTATION, TRUSTED, Attestation, FileServer, Served
from adyton.runtime.log import EncryptedLog
from adyton.runtime.memory_peaks import LOOK_S, MemoryPeaks
from adyton.runtime.pinned import GivenRoots, PinnedFolders
from adyton.runtime.privacy_report import read_report
from adyton.runtime.root import Root
from adyton.runtime.run_plan import SHARED_MEMORY, EncryptedMount, MemoryMount, Plan
from adyton.runtime.signals import PASSED_ON
from adyton.runtime.staging_plan import StagingPlan, plan_staging
from adyton.values import Key128
from adyton.vfs import syscalls
from adyton.vfs.owner import Owner
from adyton.vfs.stage import StagedLinks, Staging, stage_encrypted
from adyton.vfs.storage_watchdog import ANSWER_S, START_S, StorageWatchdog

if TYPE_CHECKING:
    from adyton.attest.report_data import ProgramEvidence
    from adyton.runtime.ingress_process import Doors
    from adyton.runtime.network_process import NetworkProcess
    from adyton.runtime.receipt_maker import MountStates, ReceiptMaker

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Before the program runs these end the run. The others are kept for the program."""

MAX_END_REQUESTS: Final = 3
"""The SIGINT or SIGTERM with this number kills a program that did not end by itself."""

MAX_EVENTS: Final = 100
"""The most different events of a run that are told. The host can cause any number of them."""

MAX_FIRST_OUTPUT_BYTES: Final = 1024
RETRY_S: Final = 0.02
"""How long until a signal is offered again to a program that is just being started."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the key servers released: keys by name, and other secrets by name."""

    keys: Mapping[str, Key128]
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    given_roots: GivenRoots | None = None
    """Of the pinned folders, where there are any."""


class Interrupted(Exception):
    """A signal arrived before the program was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Keeper:
    """The process that holds the keys: builds the program's world, runs the program in it, takes it down."""

    def __init__(
        self,
        plan: Plan,
        obtain: Callable[[], Delivered],
        bwrap: str,
        evidence: ProgramEvidence | None,
        jobs: int | None,
        stdio: tuple[int, int, int],
        umask: int,
        tell: Callable[[dict[str, Any]], None],
        doors: Doors | None = None,
        receipt: ReceiptMaker | None = None,
        settle: Callable[[bytes], Sequence[str]] | None = None,
    ) -> None:
        self._plan = plan
        self._receipt = receipt
        self._settle = settle
        self._taken: dict[str, list[tuple[str, bytes]]] = {}
        self._keys: Mapping[str, Key128] = {}
        self._doors = doors
        self._network = -1
        """The program's own network, where connections reach into it or out of it."""
        self._carriers: list[NetworkProcess] = []
        self._carrier_ended = ""
        self._obtain = obtain
        self._bwrap = bwrap
        self._evidence = evidence
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._stdio = stdio
        self._umask = umask
        self._owner = Owner.caller()
        self._call_filter = b""
        self._tell = tell
        self._base = ""
        self._sandbox: sandbox.Sandbox | None = None
        self._files: FileServer | None = None
        self._pinned: PinnedFolders | None = None
        self._root: Root | None = None
        self._staging: Staging | None = None
        self._staging_plan = StagingPlan((), (), (), (), 0)
        self._starting = False
        self._pending: list[int] = []
        self._signals = 0
        self._watchdog = StorageWatchdog()
        self._log_name = "" if plan.log is None else f"the log {plan.log.source}"
        self._seconds: dict[str, float] = {}
        self._events: dict[str, int] = {}
        self._facts: Mapping[str, Any] = {}
        self._log: EncryptedLog | None = None
        self._first_output = b""
        self._devices: list[tuple[str, str]] = []

    def take_signal(self, number: int) -> None:
        """Pass a signal on to the program. Before the program runs, end the run. The third request to end kills."""
        if self._sandbox is None and not self._starting and number in ENDING:
            raise Interrupted(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            self._signals += 1
            if self._signals >= MAX_END_REQUESTS and self._sandbox is not None:
                self._sandbox.process.kill()
                return
        self._pending.append(number)
        self._deliver()

    def _deliver(self) -> None:
        """Give the program the signals that came for it, once it is there to take them."""
        while self._pending and self._sandbox is not None:
            number = self._pending.pop(0)
            if not self._sandbox.signal(number):
                self._pending.insert(0, number)
                return

    def run(self) -> dict[str, Any]:
        """Do everything, in order. Whatever happens, nothing stays."""
        try:
            self._call_filter = callfilter.program(os.uname().machine, host_files=self._plan.reaches_host_files)
            open_doors = self._listen(self._doors) if self._doors is not None else None
            self._base = namespace.enter()
            owners_mounts.let_go_of_unused(self._plan.sources)
            with contextlib.suppress(OSError):  # a kernel without it: docs/sandbox.md says what is open then
                syscalls.keep_within_run()
            self._owner = unprivileged.owner()
            host.harden_process()
            host.lock_memory()
            self._connect(open_doors)  # before there is a key that a process could inherit
            exit_code = self._run()
        except BaseException:
            with contextlib.suppress(Error):
                self._take_down()
            raise
        self._take_down()
        facts = dict(self._facts)
        if self._receipt is not None:
            with self._phase("receipt"):
                facts["receipt"] = self._receipt_text(self._receipt, exit_code)
        return {"exit_code": exit_code, "seconds": self._seconds, "events": self._told_events(), "facts": facts}

    def _listen(self, doors: Doors) -> Callable[[int], NetworkProcess]:
        """Bind the ports on the host's network. Returns the start of the process that serves them."""
        from adyton.runtime import ingress_process

        listeners = ingress_process.listen(doors.ports)
        return lambda network: ingress_process.start(doors, listeners, network)

    def _connect(self, open_doors: Callable[[int], NetworkProcess] | None) -> None:
        """Make the program's network, and start the processes that carry connections into it and out of it."""
        if open_doors is None and not self._plan.egress:
            return
        from adyton.runtime import egress_process, program_network

        self._network = program_network.make()
        if open_doors is not None:
            self._carriers.append(open_doors(self._network))
        if self._plan.egress:
            self._carriers.append(egress_process.start(self._plan.egress, self._network))

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = round(self._seconds.get(name, 0.0) + time.monotonic() - began, 4)

    @contextlib.contextmanager
    def _host(self, doing: str, limit_s: float) -> Iterator[None]:
        """The host's storage is asked for something that this process waits for: it must not wait for ever."""
        self._watchdog.start(doing)
        try:
            with self._watchdog.lasting(limit_s):
                yield
        finally:
            self._watchdog.stop()

    def _stalled(self, text: str) -> None:
        failure = MountFailed(
            text,
            check="the host's storage",
            expected="an answer in time",
            seen="none",
            remedy="see what is wrong with the disk or share where the run's files lie",
        )
        self._tell({"failure": failure.to_dict()})
        # this process may not be able to end before the storage answers, and what it started is not to wait for that
        if self._sandbox is not None:
            self._sandbox.kill_now()
        if self._files is not None:
            self._files.kill_now()

    def _run(self) -> int:
        plan = self._plan
        with self._phase("prepare"):
            root = Root(self._base + "/root", plan, private=self._base, owner=self._owner, note=self._event)
            os.mkdir(root.path)
            namespace.mount_memory(root.path, size_bytes=plan.budget_bytes, mode=0o755, owner=self._owner, huge=True)
            self._watchdog.watch(self._stalled)
            self._root = root
            if plan.devices:
                self._devices = device_nodes.hold(plan.devices, self._base + "/devices", self._owner)
            with self._host("sizes of the inputs", START_S):
                self._staging_plan = plan_staging(plan)
                for mount in self._served_mounts():  # before a key is asked for, and a run counted
                    if not _may_be_made(mount):
                        _check_source(mount)
            self._staging = Staging(root.path, self._staging_plan.staged_files, jobs=self._jobs, owner=self._owner)
            self._staging.start()
        with self._phase("keys"):
            delivered = self._obtain()
            self._check_delivered(delivered)
        self._facts = delivered.facts
        keys = {**plan.insecure_keys, **delivered.keys}
        if self._receipt is not None:
            self._keys = keys
        if plan.pinned:
            with self._phase("pinned folders"):
                self._pinned = self._check_pinned(delivered, keys)
        with self._phase("serve"):
            self._files = self._serve(keys)
        with self._phase("stage"):
            staged_bytes = self._staging.finish()
            links = StagedLinks()
            staged_bytes += self._stage_inputs(root, keys, links)
            root.populate(delivered.secrets)
            self._mount(root)
            root.name_servers()
            root.name_resolvers()
            links.make(self._owner)
            namespace.make_read_only(root.path)
        self._seconds["staged MB"] = round(staged_bytes / 1e6, 1)
        if plan.log is not None:
            with self._host(self._log_name, ANSWER_S):
                self._log = EncryptedLog(plan.log.source, keys[plan.log.key_name])
        with self._phase("program"):
            return self._execute(root, delivered)

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

    def _check_pinned(self, delivered: Delivered, keys: Mapping[str, Key128]) -> PinnedFolders:
        """Hold the pinned folders to the roots of the grants, before anything of them is served."""
        if delivered.given_roots is None:
            raise MountFailed(
                "this run has pinned folders, and no key server gave their roots",
                check="root of the folder",
                expected="roots over Adyton's own release protocol",
                seen="none",
                remedy="start it without --provisioning ra-tls; a key in the manifest pins nothing",
            )
        pinned = PinnedFolders(delivered.given_roots, self._event)
        with self._host("pinned folders", START_S):
            pinned.check(self._plan.pinned, keys, self._watchdog.progress)
        pinned.begin(self._plan.pinned, keys)
        return pinned

    def _served_mounts(self) -> list[EncryptedMount]:
        return [mount for mount in self._plan.encrypted if not mount.read_only] + list(self._staging_plan.served_mounts)

    def _serve(self, keys: Mapping[str, Key128]) -> FileServer | None:
        """Start the process that serves what is written, if anything is, and /dev/attestation."""
        mounts = self._served_mounts()
        attest = self._evidence is not None or bool(self._plan.key_names)
        large = self._staging_plan.served_files
        if not mounts and not attest and not large:
            return None
        with self._host("encrypted mounts", START_S):
            for mount in mounts:
                if not os.path.exists(mount.source or ".") and _may_be_made(mount):
                    _make_empty(mount, keys[mount.key_name])
                    self._event(f"{mount.source} did not exist: made as an empty protected file")
                _check_source(mount)
        place = self._base + "/served"
        os.mkdir(place)
        named = {name: keys[name] for name in self._plan.key_names}
        return FileServer.start(
            namespace.mount_fuse(place),
            Served(
                owner=self._owner,
                umask=self._umask,
                mounts=tuple((mount, keys[mount.key_name]) for mount in mounts),
                pinned={}
                if self._pinned is None
                else {folder: (found, self._pinned.writer(folder)) for folder, found in self._pinned.checked.items()},
                files=large,
                attestation=Attestation(self._evidence, named, self._plan.attestation_type) if attest else None,
                tells_states=self._receipt is not None,
            ),
        )

    def _stage_inputs(self, root: Root, keys: Mapping[str, Key128], links: StagedLinks) -> int:
        staged = 0
        for mount in self._staging_plan.staged_mounts:
            key, target = keys[mount.key_name], root.path + mount.path
            taken: dict[str, bytes] = {}
            with self._host(f"encrypted input {mount.source}", START_S):
                staged += stage_encrypted(
                    mount.source,
                    target,
                    key,
                    jobs=self._jobs,
                    links=links if mount.path else None,  # at the root the sandbox itself is made
                    owner=self._owner,
                    advance=lambda _done: self._watchdog.progress(),
                    seen=taken.__setitem__,
                )
                if self._receipt is not None:
                    self._taken.setdefault(mount.source, []).extend(taken.items())
                if mount.pinned and self._pinned is not None:
                    self._pinned.check_staged(mount, taken, target, links=bool(mount.path))
        return staged

    def _mount(self, root: Root) -> None:
        """Show what is served, and mount the program's memory: what lies in another mount before that other one."""
        for number, entry in enumerate(self._staging_plan.served_files):
            for path in entry.targets:
                root.show(f"{self._base}/served/{TRUSTED}/{number}", path, read_only=True)
        mounts: list[tuple[EncryptedMount | MemoryMount, str]] = [(memory, "") for memory in self._plan.memory]
        for number, mount in enumerate(self._served_mounts()):
            mounts.append((mount, f"{self._base}/served/{number}"))
            self._await_served(mounts[-1][1], mount)
        for place, source in sorted(mounts, key=lambda pair: pair[0].path.count("/"), reverse=True):
            if isinstance(place, MemoryMount):
                root.mount_memory(place)
            elif place.points:
                root.show_folder(source, place.path, place.points)
            else:
                root.show(source, place.path, read_only=place.read_only)

    def _await_served(self, place: str, mount: EncryptedMount) -> None:
        """Look into a mount, which answers once it is served. Raises MountFailed with the reason where it is not."""
        try:
            os.stat(place)
        except OSError as error:
            if self._files is None:
                raise
            raise self._files.failure(mount.source, error) from error

    # ---------------------------------------------------------------- the program

    def _execute(self, root: Root, delivered: Delivered) -> int:
        plan = self._plan
        env = dict(plan.env)
        for secret in plan.secrets:
            if secret.env is not None:
                env[secret.env] = os.fsdecode(delivered.secrets[secret.name].removesuffix(b"\0"))
        dev_binds = []
        if self._files is not None and os.path.isdir(f"{self._base}/served/{ATTESTATION}"):
            dev_binds.append((f"{self._base}/served/{ATTESTATION}", "/dev/attestation"))
        words = sandbox.options(
            root.path,
            uid=plan.uid,
            gid=plan.gid,
            start_dir=plan.start_dir,
            env=env,
            network=plan.network if self._network < 0 else "joined",
            shared_memory=self._shared_memory(),
            host_name=resolver_config.host_name(os.uname().nodename)
            if plan.domain_names_from_host
            else resolver_config.DEFAULT_HOST_NAME,
            dev_binds=dev_binds,
            devices=self._devices,
            proc=proc.options(proc.Covers.make(self._base)),
        )
        command = [plan.entrypoint, *plan.argv[1:]]
        if os.path.exists(root.path + sandbox.LAUNCHER):
            command = [sandbox.LAUNCHER, plan.entrypoint, *plan.argv]
        output_out, output_in = os.pipe2(os.O_CLOEXEC) if self._log is not None else (-1, -1)
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        stdin = self._stdio[0] if plan.stdin_from_host else nothing
        stdout, stderr = map(self._to_write_only, self._stdio[1:]) if self._log is None else (output_in, output_in)
        for fd in {stdin, stdout, stderr}:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):  # not one that has a name on the host
                self._owner.give(fd)  # so that the program may open /dev/stdout
        if self._network >= 0:
            from adyton.runtime import program_network

            program_network.enter(self._network)
        self._starting = True  # from here on signals are the program's
        try:
            self._sandbox = sandbox.start(
                self._bwrap,
                words,
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                owner=self._owner,
                call_filter=self._call_filter,
                fds_limit=plan.fds_limit,
                stack_bytes=plan.stack_bytes,
            )
        finally:
            for fd in (nothing, output_in):
                if fd >= 0:
                    os.close(fd)
        if self._pinned is not None:
            self._pinned.start_telling()
        places = [(place.path, root.path + place.path) for place in plan.memory if place.path != SHARED_MEMORY]
        peaks = MemoryPeaks([*places, (SHARED_MEMORY, self._base + "/shm")])
        self._wait(self._sandbox, output_out, peaks)
        exit_code = self._exit_code(self._sandbox)
        for text in peaks.told(exit_code):
            self._event(text)
        self._settle_privacy()
        return exit_code

    def _settle_privacy(self) -> None:
        """Tell the owners what the program says that it used of a privacy budget, if it says so."""
        report = None if self._settle is None else read_report(self._base + "/shm")
        if self._settle is not None and report is not None:
            for text in self._settle(report):
                self._event(text)

    def _to_write_only(self, fd: int) -> int:
        """Open a terminal anew, so that the program cannot read what somebody types. Another file stays as it is."""
        if not os.isatty(fd):
            return fd
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._event("the terminal cannot be opened anew: the program may read what is typed there")
            return fd

    def _shared_memory(self) -> str:
        """Mount what is /dev/shm inside, where this process can look at it."""
        place = self._base + "/shm"
        os.mkdir(place)
        size = self._plan.budget_bytes
        namespace.mount_memory(place, size_bytes=size, mode=0o1777, owner=self._owner)
        return place

    def _wait(self, running: sandbox.Sandbox, output: int, peaks: MemoryPeaks) -> None:
        """Until the program has ended: keep its log, hear the file server, end the program if the file server ends."""
        next_look_s = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(running.status_fd, selectors.EVENT_READ)
            if output >= 0:
                selector.register(output, selectors.EVENT_READ)
            if self._files is not None:
                selector.register(self._files.events_fd, selectors.EVENT_READ)
            for carrier in self._carriers:
                selector.register(carrier.events_fd, selectors.EVENT_READ)
            waiting = {running.status_fd, output} - {-1}
            while waiting:
                self._deliver()
                due_s = self._log.due_s if self._log is not None else None
                due_s = LOOK_S if due_s is None else min(due_s, LOOK_S)
                for key, _ in selector.select(min(due_s, RETRY_S) if self._pending else due_s):
                    if key.fd == running.status_fd:
                        more = running.read_status()
                    elif key.fd == output and self._log is not None:
                        data = os.read(output, 1 << 18)
                        with self._host(self._log_name, ANSWER_S):
                            self._log.append(data)
                        self._first_output += data[: MAX_FIRST_OUTPUT_BYTES - len(self._first_output)]
                        more = bool(data)
                    else:
                        others = (*self._carriers, *(() if self._files is None else (self._files,)))
                        heard = next(other for other in others if other.events_fd == key.fd)
                        more = self._hear(heard)
                        if not more:
                            self._carrier_ended = heard.name if heard in self._carriers else ""
                            running.kill_now()
                    if not more:
                        selector.unregister(key.fd)
                        waiting.discard(key.fd)
                if time.monotonic() >= next_look_s:
                    peaks.look()
                    next_look_s = time.monotonic() + LOOK_S
                if self._log is not None and self._log.due_s == 0.0:
                    with self._host(self._log_name, ANSWER_S):
                        self._log.flush()
        if output >= 0:
            os.close(output)
        running.process.wait()
        peaks.look()

    def _hear(self, other: FileServer | NetworkProcess) -> bool:
        lines = other.read_events()
        if lines is None:
            return False
        for line in lines:
            self._event(line)
        self._hear_roots()
        return True

    def _hear_roots(self) -> None:
        if self._files is not None and self._pinned is not None:
            for folder, root in self._files.roots.items():
                self._pinned.heard(folder, root)
            self._pinned.tell_trouble()

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
            with self._host(self._log_name, ANSWER_S):
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
        if self._carrier_ended:
            raise SandboxFailed(
                "a process that carries the program's connections ended, and the program was ended with it",
                check=self._carrier_ended,
                expected="running until the program has ended",
                seen=list(self._events)[-1] if self._events else "its end, without a word",
                remedy="see what the run said before, and start it again",
            )
        status = running.process.returncode
        if status == -signal.SIGKILL or self._signals >= MAX_END_REQUESTS:
            return 128 + signal.SIGKILL
        if self._signals and status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return status  # it met the request to end before bubblewrap could say what became of the program
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

    # ---------------------------------------------------------------- the receipt

    def _receipt_text(self, maker: ReceiptMaker, exit_code: int) -> str:
        """The receipt in base64, once everything is flushed."""
        import base64

        from adyton.runtime.receipt_maker import Concluded

        ended = Concluded(exit_code, self._mount_states(), self._keys)
        raw = maker.conclude(
            ended,
            self._event_at_end,
            reading=self._host("outputs for the receipt", ANSWER_S),
            progress=self._watchdog.progress,
        )
        return base64.b64encode(raw).decode()

    def _event_at_end(self, text: str) -> None:
        """An event after the log was closed."""
        self._events[text] = self._events.get(text, 0) + 1
        self._tell({"note": text})

    def _mount_states(self) -> list[MountStates]:
        """What the run took and made, by mount. The log is one more."""
        from adyton.runtime.receipt_maker import MountStates

        found = [
            MountStates(mount.source, mount.key_name, self._taken.get(mount.source, ()), ())
            for mount in self._staging_plan.staged_mounts
        ]
        served = self._served_mounts()
        states = [] if self._files is None else self._files.states
        for number, mount in enumerate(served):
            own = [state for of, state in states if of == number]
            found.append(
                MountStates(
                    mount.source,
                    mount.key_name,
                    [(state.path, state.found_root) for state in own if state.found_root],
                    [(state.path, state.root) for state in own if state.root != state.found_root],
                )
            )
        if self._plan.log is not None and self._log is not None:
            log = self._plan.log
            found.append(MountStates(log.source, log.key_name, (), [(log.source, self._log.root)]))
        return found

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
        while self._carriers:
            self._carriers.pop().end()
        began = time.monotonic()
        if self._base:
            namespace.detach(self._base)
        if self._files is not None:
            failure = self._files.finish(self._event)
        if self._pinned is not None:
            self._hear_roots()
            failure = failure or self._pinned.finish()
        if self._log is not None:
            with self._host(self._log_name, ANSWER_S):
                self._log.close()
            failure = failure or self._log.failure
        if self._root is not None:
            with self._host("allowed files", ANSWER_S):
                self._root.take_away_untouched()
        self._seconds["flush"] = round(time.monotonic() - began, 4)
        if failure is not None:
            raise failure


def _may_be_made(mount: EncryptedMount) -> bool:
    """Gramine's rule for outputs: a mount may name a file that the program is still to write.

    A folder must be there. A name without a suffix may be meant as one.
    """
    source = Path(mount.source)
    return not mount.is_folder and not mount.pinned and bool(source.suffix) and source.parent.is_dir()


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
    """The words of bubblewrap on standard error. Used only if there never was a program that could say them."""
    lines = [line for line in output.splitlines() if line.startswith(b"bwrap: ")]
    return "; ".join(line.decode(errors="replace") for line in lines)
