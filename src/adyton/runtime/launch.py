"""Carry out a plan: private namespaces, staging, keys, served mounts, sandbox. Everything is undone on any exit.

Processes of a run. The kernel kills each when the one above it ends (PR_SET_PDEATHSIG, --die-with-parent)::

    adyton run                the caller of `launch`: waits, passes signals on, holds no key
    └─ keeper                 in the private namespaces: asks for the keys, stages, waits for the program
       ├─ adyton-stage ...    hashing workers, gone before the program starts, without keys
       ├─ adyton-files        serves the encrypted mounts and /dev/attestation
       ├─ adyton-ingress      proves connections of clients, without keys of files
       ├─ adyton-egress       reaches the servers that the manifest names, without keys of files
       └─ bwrap └─ program    in namespaces of its own, from which none of the above can be seen

The mounts live in the keeper's mount namespace and vanish with its last process, so that kill -9 of any of them
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from adyton.errors import Error, RunError, ScriptFailed
from adyton.runtime import host, inherited, sandbox
from adyton.runtime.keeper import Delivered, Interrupted, Keeper
from adyton.runtime.run_plan import Plan
from adyton.runtime.signals import PASSED_ON, pass_on
from adyton.vfs import syscalls

if TYPE_CHECKING:
    from adyton.attest.report_data import ProgramEvidence
    from adyton.runtime.ingress_process import Doors
    from adyton.runtime.receipt_maker import ReceiptMaker

END_LIMIT_S: Final = 2.0
_MAX_MESSAGE_BYTES: Final = 16 << 20
"""The longest is the end of a run with a receipt."""


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
    evidence: ProgramEvidence | None = None,
    doors: Doors | None = None,
    note: Callable[[str], None] = lambda _text: None,
    jobs: int | None = None,
    stdio: tuple[int, int, int] = (0, 1, 2),
    receipt: ReceiptMaker | None = None,
    settle: Callable[[bytes], Sequence[str]] | None = None,
) -> Ended:
    """Run a plan to its end. Raises Error where it could not start or its outputs could not be kept.

    `evidence` is for the program's /dev/attestation. Without it there are no quotes. `doors` are the ports through
    which clients reach the program. With `receipt` the facts of the end have the receipt, in base64.
    `settle` is given what the program says that it used of a privacy budget, and returns what went wrong with that.
    `obtain` is called in the keeper, beside the staging of trusted files, and its keys never leave the keeper.
    Call it from the main thread: a run is bound to the thread that started it.
    """
    bwrap = sandbox.locate()
    host.check_core_pattern(simulated=simulated)
    warning = host.check_swap(simulated=simulated)
    if warning is not None:
        note(warning)
    report_out, report_in = os.pipe2(os.O_CLOEXEC)
    inherited.heed_signals([signal.SIGCHLD])  # ignored, it would take the keeper's exit status away
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    keeper = os.fork()
    if keeper == 0:
        _become_keeper(
            parent,
            report_in,
            lambda tell, umask: Keeper(plan, obtain, bwrap, evidence, jobs, stdio, umask, tell, doors, receipt, settle),
        )
    os.close(report_in)
    with pass_on(lambda number: os.kill(keeper, number)):
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        result: dict[str, Any] = {}
        try:
            result = _listen(report_out, note)
        finally:
            os.close(report_out)
            status = _await(keeper, END_LIMIT_S if "failure" in result else None)
    return _outcome(result, status)


def _become_keeper(
    parent: int,
    report: int,
    make: Callable[[Callable[[dict[str, Any]], None], int], Keeper],
) -> NoReturn:
    """In the child: run the keeper, tell the parent how it ended, and never return into the caller's code."""

    def tell(message: dict[str, Any]) -> None:
        raw = json.dumps(message).encode()
        if len(raw) < _MAX_MESSAGE_BYTES:
            with contextlib.suppress(BrokenPipeError):
                rest = raw + b"\n"
                while rest:
                    rest = rest[os.write(report, rest) :]

    status = 1
    try:
        syscalls.die_with_parent(parent)
        syscalls.name_process("adyton-keeper")
        with contextlib.suppress(PermissionError):
            os.setsid()
        inherited.heed_signals()
        umask = inherited.reset()
        keeper = make(tell, umask)
        with pass_on(keeper.take_signal):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            try:
                tell({"ended": keeper.run()})
                status = 0
            except Interrupted as stop:
                tell({"interrupted": stop.number})
            except Error as error:
                tell({"failure": error.to_dict()})
    except Interrupted as stop:  # as early as that signals were let in, or a second one
        tell({"interrupted": stop.number})
    except BaseException as error:
        import traceback

        tell({"bug": "".join(traceback.format_exception(error))})
    finally:
        os._exit(status)


def _await(keeper: int, limit_s: float | None) -> int | None:
    """The keeper's exit status. None where it has failed and yet does not end, as on storage that hangs."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    while True:
        pid, status = os.waitpid(keeper, 0 if deadline is None else os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            return None
        time.sleep(0.005)


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


def _outcome(result: dict[str, Any], status: int | None) -> Ended:
    if "ended" in result:
        ended = result["ended"]
        return Ended(ended["exit_code"], ended["seconds"], tuple(ended["events"]), ended["facts"])
    if "interrupted" in result:
        number = signal.Signals(result["interrupted"])
        raise ScriptFailed(f"stopped by {number.name} before the program started", status=128 + number)
    if "failure" in result:
        raise Error.from_dict(result["failure"], unknown=RunError)
    if "bug" in result:
        raise RuntimeError("the keeper failed:\n" + result["bug"])
    raise RunError(
        "the keeper process ended without a word",
        check="exit status of the keeper",
        expected=0,
        seen=status,
        remedy="it was killed, or memory ran out (dmesg); nothing of the run is left",
    )
