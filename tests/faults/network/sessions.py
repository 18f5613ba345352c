"""One client, one program on an accepted machine, and what each of them saw of a session with an attacker between.

Evidence is that of the simulated platform, and the client judges it as `adyton connect` does. The network is loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from adyton.attest.report_data import program_report_data
from adyton.endpoint.binding import Connection, report_data
from adyton.endpoint.dial import Dialler, Verify
from adyton.endpoint.hello import Answer
from adyton.endpoint.ingress import Ingress, Proof
from adyton.errors import Error
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement
from adyton.workflow.connect import _judge
from adyton.workflow.verify import read_policy
from tests.unit.endpoint.world import free_socket

NAME: Final = "api"
PROGRAM: Final = Measurement(hashlib.sha256(b"the program that the client means").digest())
OTHER_PROGRAM: Final = Measurement(hashlib.sha256(b"another program").digest())
MANIFEST: Final = hashlib.sha256(b"its manifest").digest()
SESSION_S: Final = 60.0


def answer_to(sent: bytes) -> bytes:
    """What the program says to these bytes: they themselves, altered, and their hash after their end."""
    return bytes(sent).swapcase() + hashlib.sha256(sent).digest()


@dataclass
class Seen:
    """What one session was to its two ends, and what the attacker could read."""

    sent: bytes
    got: bytearray = field(default_factory=bytearray)
    whole: bool = False
    """Whether the client saw the program's end, as TLS says it."""
    refused: Error | None = None
    """Why the client sent nothing."""
    cut: bool = False
    program_got: list[bytearray] = field(default_factory=list)
    """For each connection that the program had."""
    program_whole: list[bytes] = field(default_factory=list)
    """What the program took for the whole of a client's bytes."""
    attackers_own: bool = False
    """Whether the attacker has connections of its own with the ingress, which say nothing to the program."""
    heard: bytearray = field(default_factory=bytearray)
    """The client's plaintext, as far as the attacker could read it."""

    @property
    def accepted(self) -> bool:
        """Whether the client sent anything."""
        return self.refused is None

    def violations(self) -> list[str]:
        """Which promises were broken. None may ever be."""
        expected = answer_to(self.sent)
        found = []
        if not expected.startswith(self.got):
            found.append("the client got a byte that the program did not send")
        if self.whole and self.got != expected:
            found.append("the client took a part of the answer for the whole")
        if any(not self.sent.startswith(got) for got in self.program_got):
            found.append("the program got a byte that the client did not send")
        if any(got != self.sent for got in self.program_whole if got or not self.attackers_own):
            found.append("the program took a part of the request for the whole")
        if sum(map(bool, self.program_got)) > 1:
            found.append("the program got a request twice")
        if self.heard:
            found.append("the attacker read what the client sent")
        return found


@dataclass
class World:
    """The accepted machine with its ingress, other machines of the attacker, and the client's judgement."""

    folder: Path
    program: tuple[str, int] = ("", 0)
    address: tuple[str, int] = ("", 0)
    current: Seen = field(default_factory=lambda: Seen(b""))
    serving: int = 0
    """The connections that the program has."""

    def __post_init__(self) -> None:
        self.platform = SimPlatform.create(self.folder / "platform")
        self.foreign = SimPlatform.create(self.folder / "foreign")
        self.accepted = self.platform.enclave(measurement=PROGRAM)
        self.machines = {
            "another program": self.platform.enclave(measurement=OTHER_PROGRAM),
            "a debugged program": self.platform.enclave(measurement=PROGRAM, debug=True),
            "another maker's machine": self.foreign.enclave(measurement=PROGRAM),
        }
        marker = hashlib.sha512(b"marker").digest()
        self.place_of_report_data = self.accepted.quote(marker).index(marker)
        collateral = [self.folder / f"{one.directory.name}.json" for one in (self.platform, self.foreign)]
        for path, platform in zip(collateral, (self.platform, self.foreign), strict=True):
            path.write_text(json.dumps(platform.collateral_dict(datetime.now(UTC))))
        policy = read_policy({"tees": [f"sim:{self.platform.root_fingerprint}"], "workloads": [PROGRAM.hex()]})
        self.judge: Verify = partial(_judge, policy, collateral, None, False)
        self.ingress = Ingress(NAME, MANIFEST, self._evidence, self._dial)

    async def _evidence(self, wanted: bytes) -> Proof:
        return Proof(self.accepted.quote(wanted))

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.program)

    def evidence_of_the_program(self, connection: Connection) -> Answer:
        """What the accepted program itself can have signed for an attacker: bytes under the label of programs."""
        wanted = report_data(connection, MANIFEST, NAME)
        return Answer(NAME, MANIFEST, self.accepted.quote(program_report_data(PROGRAM, wanted)))

    def evidence_of(self, machine: str, connection: Connection) -> Answer:
        """Genuine evidence of one of the attacker's machines, for the attacker's own connection with the client."""
        return Answer(NAME, MANIFEST, self.machines[machine].quote(report_data(connection, MANIFEST, NAME)))

    async def quiet(self) -> None:
        """Wait until the ingress and the program have ended what they do for earlier sessions."""
        async with asyncio.timeout(SESSION_S):
            while self.ingress._open or self.serving:
                await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving += 1
        got = bytearray()
        self.current.program_got.append(got)
        whole = self.current.program_whole
        try:
            while data := await reader.read(1 << 16):
                got += data
                writer.write(data.swapcase())
                await writer.drain()
            whole.append(bytes(got))
            writer.write(hashlib.sha256(got).digest())
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self.serving -= 1

    async def session(self, address: tuple[str, int], sent: bytes, verify: Verify | None = None) -> Seen:
        """One session of the client with this address. It sends, ends its side, and reads to the end."""
        seen = self.current = Seen(sent)
        try:
            verified = await Dialler(address, verify or self.judge, NAME, MANIFEST).dial()
        except Error as error:
            seen.refused = error
            return seen
        stream = verified.stream

        async def send() -> None:
            await stream.write(sent)
            await stream.end()

        sending = asyncio.ensure_future(send())
        try:
            async with asyncio.timeout(SESSION_S):
                while data := await stream.read():
                    seen.got += data
                await sending
            seen.whole = True
        except (Error, OSError):
            seen.cut = True
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            stream.abort()
        return seen


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[World]:
    """The accepted machine, listening."""
    world = World(folder)
    async with accepting(world._serve) as world.program:
        listener = free_socket()
        async with world.ingress.serving(listener):
            world.address = listener.getsockname()[:2]
            yield world


@contextlib.asynccontextmanager
async def accepting(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[str, int]]:
    """Listen on loopback. Each connection has a task, which ends with the context."""
    tasks: set[asyncio.Task[None]] = set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(Error, OSError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.transport.abort()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(guarded(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
