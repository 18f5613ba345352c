"""Connect local programs to an attested endpoint: a door on this machine, and a proof for each connection behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.address import parse_address
from adyton.atomic_file import write_file
from adyton.attest.evidence import parse_evidence
from adyton.endpoint.dial import Dialler, Proved, Proxy
from adyton.endpoint.hello import is_ingress_name
from adyton.endpoint.local_door import LocalDoor
from adyton.endpoint.pool import Pool
from adyton.errors import Error, UsageError
from adyton.workflow.verify import verify

if TYPE_CHECKING:
    from adyton.attest.evidence_policy import Policy
    from adyton.endpoint.hello import Answer

MAX_TRUST: Final = timedelta(hours=1)
"""How long a kept connection is used after its proof, at the most."""

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Connected:
    """The first proof, and where local programs connect to."""

    address: str
    ingress: str
    manifest_sha256: str
    verdict: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of the ready file."""
        return {
            "address": self.address,
            "ingress": self.ingress,
            "manifest_sha256": self.manifest_sha256,
            "verdict": list(self.verdict),
        }


def connect(
    target: str,
    *,
    policy: Policy | Mapping[str, Any] | str | Path,
    listen: str = "127.0.0.1:0",
    tcp: bool = False,
    name: str | None = None,
    collateral: Sequence[str | Path] = (),
    home: Path | None = None,
    ready_file: Path | None = None,
    command: Sequence[str] | None = None,
    connected: Callable[[Connected], None] = lambda _first: None,
    refused: Callable[[Error], None] = lambda _error: None,
) -> int:
    """Serve local programs at `listen` (loopback or `unix:PATH`) until SIGINT or SIGTERM, or until `command` has ended.

    The endpoint is verified before anything listens, and again on each new connection. `name` is the ingress that is
    meant. `command` is run with `{addr}` replaced by the local address. Returns its exit status, else 0. Raises
    EvidenceError where the endpoint is refused, Unavailable where it cannot be reached or checked, and UsageError.
    """
    if name is not None and not is_ingress_name(name):
        raise UsageError("this is no name of an ingress", check="--name", expected="a-z, 0-9, inner hyphens", seen=name)
    judge = partial(_judge, policy, collateral, home)
    dialler = Dialler(parse_address(target, "endpoint"), judge, name, _proxy(os.environ))
    door = LocalDoor(listen, tcp)
    return asyncio.run(_serve(dialler, door, ready_file, command, connected, refused))


def _proxy(environment: Mapping[str, str]) -> Proxy | None:
    url = environment.get("HTTPS_PROXY") or environment.get("https_proxy")
    return Proxy.parse(url) if url else None


async def _judge(
    policy: Policy | Mapping[str, Any] | str | Path,
    collateral: Sequence[str | Path],
    home: Path | None,
    answer: Answer,
    report_data: bytes,
) -> Proved:
    """Verify evidence as `adyton verify` does, beside the event loop. It has Adyton's own form, and no other."""
    now = datetime.now(UTC)
    parse_evidence(answer.cpu)
    work = partial(
        verify,
        answer.cpu,
        collateral=collateral,
        policy=policy,
        report_data=report_data,
        event_log=answer.event_log or None,
        home=home,
    )
    verdict = await asyncio.to_thread(work)
    claims = verdict.require()
    return Proved(tuple(verdict.to_text().splitlines()), min(claims.valid_until, now + MAX_TRUST))


async def _serve(
    dialler: Dialler,
    door: LocalDoor,
    ready_file: Path | None,
    command: Sequence[str] | None,
    connected: Callable[[Connected], None],
    refused: Callable[[Error], None],
) -> int:
    first = await dialler.dial()
    pool = Pool(dialler)
    if door.tcp:
        await first.stream.close()
    else:
        await pool.give_back(first)
    try:
        async with door.open(dialler, pool, refused) as address:
            done = Connected(address, first.answer.name, first.answer.manifest_sha256.hex(), first.proved.summary)
            connected(done)
            if ready_file is not None:
                write_file(ready_file, json.dumps(done.to_dict()).encode() + b"\n")
            if command is not None:
                return await _run(command, address)
            await _until_told_to_stop()
            return 0
    finally:
        await pool.close()


async def _until_told_to_stop() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


async def _run(command: Sequence[str], address: str) -> int:
    """Run a command beside the door. Its exit status is the result, and a signal's number is added to 128."""
    words = [word.replace("{addr}", address) for word in command]
    try:
        process = await asyncio.create_subprocess_exec(*words)
    except OSError as error:
        raise UsageError(
            f"{words[0]} cannot be run: {error.strerror}", check="--once", expected="a program", seen=words[0]
        ) from error
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, partial(_pass_on, process, number))
    try:
        status = await process.wait()
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
    return status if status >= 0 else 128 - status


def _pass_on(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
