"""The side inside the TEE: proves each connection, then carries its bytes to the program's own port.

It holds no key of the program's files. It asks for evidence over one connection at a time, since a hardware quote
takes 10 to 100 ms. What strangers can take is bounded: connections, connections that were not proved yet, time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from adyton.endpoint.binding import client_report_data, gpu_nonce, report_data
from adyton.endpoint.channel import READ_BYTES, Identity, server_context
from adyton.endpoint.hello import (
    ACCEPTED,
    BUSY,
    MAX_CHALLENGE_BYTES,
    MAX_CLIENT_BYTES,
    Answer,
    Challenge,
    ClientEvidence,
    Refused,
    message,
    parse_challenge,
    parse_client_evidence,
)
from adyton.endpoint.stream import PlainStream, SecureStream, join, notice_dead_peers
from adyton.errors import Error, EvidenceError, Timeout, Unavailable, UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from adyton.endpoint.binding import Connection

HELLO_S: Final = 20.0
"""The time that a client has from its connection to its challenge."""

PAUSE_S: Final = 0.01
"""After each proof nothing is asked of the machine for so long. Else strangers could keep a TPM from all others."""

REFUSED_S: Final = 1.0
"""How long a client without an accepted certificate has to read why."""

MAX_UNPROVED: Final = 64
"""The most connections that wait for their evidence. One more is refused, and its client tries again."""


Devices = Callable[[bytes], Awaitable[tuple[bytes, ...]]]
"""The evidence of the machine's GPUs over this nonce, as `parse_device` reads each. Raises an Error."""

Judge = Callable[[ClientEvidence, bytes], Awaitable[timedelta]]
"""Judges a client's evidence, which must carry these 64 bytes. Gives how long the client is trusted. Raises
EvidenceError or Unavailable."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The parts of evidence that the machine gives for 64 bytes of report data."""

    cpu: bytes
    event_log: bytes = b""


class Ingress:
    """A listening ingress. `evidence` makes a proof for report data, and `dial` opens the program's port."""

    def __init__(
        self,
        name: str,
        manifest_sha256: bytes,
        evidence: Callable[[bytes], Awaitable[Proof]],
        dial: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]],
        *,
        max_connections: int = 1024,
        client_ca: str | None = None,
        judge: Judge | None = None,
        devices: Devices | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if max_connections < 1:
            raise UsageError("an ingress takes at least one connection", check="max_connections", seen=max_connections)
        self._name = name
        self._manifest_sha256 = manifest_sha256
        self._evidence = evidence
        self._dial = dial
        self._most = max_connections
        self._note = note
        self._open = 0
        self._unproved = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting: deque[asyncio.Task[None]] = deque()
        """Those whose challenge has not come yet, the oldest first."""
        self._showing: deque[asyncio.Task[None]] = deque()
        """Those whose own evidence has not come yet, the oldest first."""
        self._proving = asyncio.Lock()
        self._identity = Identity(name)
        self._client_ca = client_ca
        self._judge = judge
        self._judged = 0
        self._devices = devices
        self._context = server_context(self._identity, client_ca)

    def renew(self) -> None:
        """Make a new TLS key and certificate. Connections that are open stay as they are."""
        self._identity = Identity(self._name)
        self._context = server_context(self._identity, self._client_ca)

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve connections of a bound socket within the context. Its end cuts the connections that are still open."""
        server = await asyncio.start_server(self._take, sock=listener, backlog=512, limit=READ_BYTES)
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._guard(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= self._most and not self._made_room():
            writer.transport.abort()
            self._note(f"ingress {self._name}: a connection over the limit of {self._most} was closed")
            return
        self._open += 1
        notice_dead_peers(writer)
        try:
            await self._serve(reader, writer)
        except (Error, OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()  # a stranger's fault, or the network's: not worth a line each
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._open -= 1
            writer.close()

    def _made_room(self) -> bool:
        """End the connection that has waited longest without a challenge. So idle ones keep nobody out."""
        if not self._greeting:
            return False
        self._greeting.popleft().cancel()
        return True

    @contextlib.contextmanager
    def _as_one_of(self, waiting: deque[asyncio.Task[None]]) -> Iterator[None]:
        """While the connection waits for its client. Whoever needs its place may end it."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        waiting.append(task)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # it was ended to make room
                waiting.remove(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        identity, context = self._identity, self._context
        with self._as_one_of(self._greeting):
            async with asyncio.timeout(HELLO_S):
                try:
                    stream = await SecureStream.open(reader, writer, context, server=True)
                except Error as error:
                    if self._client_ca is not None:
                        self._note(f"ingress {self._name}: a client was refused: {error.message}")
                        await _let_read(reader, writer)
                    raise
                challenge = parse_challenge(await stream.read_message(MAX_CHALLENGE_BYTES))
        facts = stream.channel.facts(challenge.nonce, identity.spki_sha256)
        answer = self._unwanted(challenge) or await self._answer(facts)
        async with asyncio.timeout(HELLO_S):
            await stream.write(message(answer.to_bytes()))
        if isinstance(answer, Refused) or (self._judge is not None and not await self._admits(stream, facts)):
            await stream.close()
            return
        try:
            target = PlainStream(*await self._dial())
        except OSError as error:
            self._note(f"ingress {self._name}: the program's port does not answer: {error.strerror or error}")
            raise
        try:
            await join(stream, target)
        finally:
            await target.close()
            await stream.close()

    def _unwanted(self, challenge: Challenge) -> Refused | None:
        """The refusal of a client that offers less than this ingress wants, or what it has no use for."""
        if challenge.proves == (self._judge is not None):
            return None
        if challenge.proves:
            return Refused("this ingress judges no evidence of clients: connect without --prove")
        return Refused("this ingress wants evidence of its clients: adyton connect --prove TEE")

    async def _admits(self, stream: SecureStream, facts: Connection) -> bool:
        """Judge the client's evidence, and tell it. The connection is cut when the trust in it ends."""
        try:
            shown = await self._evidence_of(stream)
            trusted = await self._judgement(shown, client_report_data(facts, self._manifest_sha256, self._name))
        except (EvidenceError, Unavailable) as error:
            # no words of the client's own: they could crowd out what else there is to tell
            self._note(f"ingress {self._name}: the evidence of a client was refused: {error.check or 'unknown'}")
            await stream.write(message(Refused(_told(error)).to_bytes()))
            return False
        await stream.write(message(ACCEPTED))
        stream.cut_after(trusted)
        return True

    async def _evidence_of(self, stream: SecureStream) -> ClientEvidence:
        """Read it. Where too many clients are about to show theirs, the one that has taken longest is ended."""
        if len(self._showing) >= MAX_UNPROVED:
            self._showing.popleft().cancel()
        with self._as_one_of(self._showing):
            async with asyncio.timeout(HELLO_S):
                return parse_client_evidence(await stream.read_message(MAX_CLIENT_BYTES))

    async def _judgement(self, shown: ClientEvidence, report_data: bytes) -> timedelta:
        if self._judge is None or self._judged >= MAX_UNPROVED:
            raise Timeout(
                "too many clients wait for their judgement: try again",
                check="clients that wait",
                expected=f"at most {MAX_UNPROVED}",
                seen="more",
            )
        self._judged += 1
        try:
            return await self._judge(shown, report_data)
        finally:
            self._judged -= 1

    async def _answer(self, facts: Connection) -> Answer | Refused:
        if self._unproved >= MAX_UNPROVED:
            return Refused(BUSY)
        self._unproved += 1
        try:
            await self._proving.acquire()
            try:
                devices = () if self._devices is None else await self._devices(gpu_nonce(facts))
                proof = await self._evidence(report_data(facts, self._manifest_sha256, self._name, devices))
            finally:
                asyncio.get_running_loop().call_later(PAUSE_S, self._proving.release)
        except Error as error:
            self._note(f"ingress {self._name}: no evidence: {error}")
            return Refused("this machine gave no evidence")
        finally:
            self._unproved -= 1
        return Answer(self._name, self._manifest_sha256, proof.cpu, proof.event_log, devices)


def _told(error: Error) -> str:
    """A refusal in one line: what was checked, and what was seen. It is about the client's own evidence."""
    return f"{error.message} (expected {error.expected}; seen {error.seen})"


async def _let_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what a refused client sends, for a moment: cut off at once, it might lose the alert that says why."""
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REFUSED_S):
            while await reader.read(READ_BYTES):
                pass
