"""The key server's two protocols over its connections: Adyton's over HTTPS, and Gramine's over RA-TLS.

A connection carries one request at a time, each with a deadline and a limit on its length. HTTP is parsed by h11, TLS
is the `ssl` module's, connections are `Listener`'s, decisions are `KeyService`'s.

A refusal is sent at a multiple of a fixed interval (`BEAT_S`) after the arrival of its request. The number of waiting
requests at that moment sets the multiple. So the time of the answer does not show how long the decision took, or with
what the evidence was compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import time
from typing import TYPE_CHECKING, Any, Final

import h11

from adyton.errors import Error, OutOfOrder, Unavailable, VersionMismatch
from adyton.keyserver.public_errors import busy, public_error
from adyton.release import secret_provisioning
from adyton.release.in_force_messages import MAX_QUESTION_BYTES, PATH_IN_FORCE, in_force_answer, parse_question
from adyton.release.messages import (
    MAX_REQUEST_BYTES,
    PATH_CHALLENGE,
    PATH_RELEASE,
    PATH_USED,
    ChallengeAnswer,
    parse_challenge_request,
    parse_release_request,
    parse_used,
)
from adyton.release.run_messages import ACTIONS, MAX_RUN_MESSAGE_BYTES, PATH_RUN, parse_run_message, run_answer
from adyton.release.shown_program import MAX_EXPLAIN_BYTES, PATH_EXPLAIN, explain_answer
from adyton.release.tls import asked_name, peer_chain
from adyton.release.wire import PROTOCOL, to_bytes
from adyton.server.large_messages import LargeMessages
from adyton.server.listener import READ_BYTES, Counters, Limits, Listener
from adyton.server.pools import Pool, Readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from adyton.keyserver.service import KeyService

log = logging.getLogger("adyton.keyserver")

MAX_HEADER_BYTES: Final = 16 * 1024
RETRY_AFTER_S: Final = 5
"""Seconds in Retry-After for a client that could not be served."""

BEAT_S: Final = 0.25
"""The interval: a refusal is sent at a multiple of it after the arrival of its request."""

PER_BEAT: Final = 16
"""Every PER_BEAT requests without an answer delay a refusal by one interval. They take less (15 ms each)."""

MAX_BEATS: Final = 20

MAX_LENGTH_DIGITS: Final = 12
ACKNOWLEDGING_THREADS: Final = 2
MAX_ACKNOWLEDGING: Final = 256
RUN_MESSAGE_THREADS: Final = 2
MAX_RUN_MESSAGES: Final = 64
STATEMENT_THREADS: Final = 2
MAX_STATEMENTS: Final = 64


class KeyServer:
    """The key server's listeners over one `KeyService`."""

    def __init__(self, service: KeyService, limits: Limits) -> None:
        self.service = service
        self.limits = limits
        self.counters = Counters()
        self.listeners: list[Listener] = []
        self._acknowledging = Pool("acknowledgements", threads=ACKNOWLEDGING_THREADS, waiting=MAX_ACKNOWLEDGING)
        self._run_messages = Pool("messages of runs", threads=RUN_MESSAGE_THREADS, waiting=MAX_RUN_MESSAGES)
        self._statements = Pool("in-force statements", threads=STATEMENT_THREADS, waiting=MAX_STATEMENTS)
        self._readiness = Readiness(service.is_ready)
        self._large = LargeMessages()

    def listen_adyton(self, host: str, port: int, context: ssl.SSLContext) -> Listener:
        """Serve Adyton's own protocol here."""
        return self._listen("adyton", host, port, context, self._http)

    def listen_ra_tls(self, host: str, port: int, context: ssl.SSLContext) -> Listener:
        """Serve Gramine's secret provisioning here."""
        return self._listen("ra-tls", host, port, context, self._provision)

    def _listen(self, name: str, host: str, port: int, context: ssl.SSLContext, handler: Any) -> Listener:
        listener = Listener(name, context, handler, self.limits, self.counters)
        listener.start(host, port)
        self.listeners.append(listener)
        return listener

    async def stop(self, grace_s: float = 10) -> None:
        """Stop listening and finish what is under way."""
        await asyncio.gather(*(listener.stop(grace_s) for listener in self.listeners))
        self._acknowledging.close()
        self._run_messages.close()
        self._statements.close()
        self._readiness.close()

    # --- Gramine's protocol ------------------------------------------------------------------------------------

    async def _provision(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        """Read the request before the decision, so that a client that sends none uses up no run."""
        ssl_object = writer.get_extra_info("ssl_object")
        self.counters.requests["ra-tls"] += 1
        async with asyncio.timeout(self.limits.request_timeout_s):
            name = asked_name(ssl_object)
            try:
                secret_provisioning.check_request(await reader.readexactly(len(secret_provisioning.REQUEST)))
            except Error as error:
                self.service.note("not answered", peer, error)
                return
            taken_at, before = time.monotonic(), self.service.undecided
            try:
                answer = await asyncio.wrap_future(self.service.provision(peer_chain(ssl_object), name, peer))
            except Error as error:
                self.service.note("not answered", peer, error)
                await asyncio.sleep(until_beat(taken_at, time.monotonic(), before))
                return
            if answer.refusal is not None or answer.payload is None:
                await asyncio.sleep(until_beat(taken_at, time.monotonic(), before))
                return
            values = [*answer.payload.keys.values(), *answer.payload.secrets.values()]
            writer.write(secret_provisioning.response(values[0]))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await reader.read(1)

    # --- Adyton's protocol -------------------------------------------------------------------------------------

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        while True:
            async with asyncio.timeout(self.limits.idle_timeout_s):
                request = await self._next(connection, reader)
            if request is None:
                return
            async with asyncio.timeout(self.limits.request_timeout_s):
                status, body = await self._exchange(connection, reader, writer, request, peer)
                close = connection.their_state is not h11.DONE or any(item.stopping for item in self.listeners)
                headers = [
                    ("Content-Type", "application/json"),
                    ("Content-Length", str(len(body))),
                    ("Cache-Control", "no-store"),
                ]
                if close:
                    headers.append(("Connection", "close"))
                if status == 503:
                    headers.append(("Retry-After", str(RETRY_AFTER_S)))
                response = h11.Response(status_code=status, headers=headers)
                writer.write(
                    (connection.send(response) or b"")
                    + (connection.send(h11.Data(data=body)) or b"")
                    + (connection.send(h11.EndOfMessage()) or b"")
                )
                await writer.drain()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _next(self, connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return None
            if event is h11.NEED_DATA:
                data = await reader.read(READ_BYTES)
                try:
                    connection.receive_data(data)
                except h11.RemoteProtocolError:
                    return None
                if not data and connection.their_state is h11.IDLE:
                    return None
            elif isinstance(event, h11.Request):
                return event
            else:
                return None

    async def _exchange(
        self,
        connection: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: h11.Request,
        peer: str,
    ) -> tuple[int, bytes]:
        path, denial = _route(request.target.decode("ascii", "replace"))
        limit = _BODY_LIMITS.get(path)
        asks = request.method == b"GET" and path in ("/healthz", "/readyz")
        if asks and any(name in (b"transfer-encoding", b"content-length") for name, _ in request.headers):
            return 400, _problem("a question has no body", "no body")
        if asks:
            await self._body(connection, reader, writer, 0)
        if asks and path == "/healthz":
            self.counters.requests["health"] += 1
            return 200, to_bytes({"status": "stopping" if self._stopping() else "ok"})
        if asks:
            ready = await self._readiness.ask()
            return (200 if ready else 503), to_bytes({"status": "ready" if ready else "not ready"})
        if limit is None:
            another_version = path.startswith("/adyton/v")
            if another_version:
                return 426, _another_version(path)
            return 404, _problem("no such path", PROTOCOL)
        if request.method != b"POST":
            return 405, _problem("POST only", "POST")
        self.counters.requests[path.rpartition("/")[2]] += 1
        try:
            _check_length(request, limit)
            if path == PATH_EXPLAIN:
                return await self._explain(denial, lambda: self._body(connection, reader, writer, limit))
            with self._large.holding() as arrived:
                body = await self._body(connection, reader, writer, limit, arrived)
                return await self._answer(path, body, peer)
        except (OSError, EOFError):
            raise
        except Exception as error:
            told = public_error(error, f"answer {path}")
            return _status(told), to_bytes({"protocol": PROTOCOL, "status": "error", **told.details()})

    def _stopping(self) -> bool:
        return any(listener.stopping for listener in self.listeners)

    async def _body(
        self,
        connection: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int,
        arrived: Callable[[int], None] = lambda _bytes: None,
    ) -> bytes:
        found = bytearray()
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                raise OutOfOrder("malformed HTTP", check="HTTP message", seen=str(error)[:120]) from None
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    writer.write(connection.send(go_on) or b"")
                connection.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Data):
                found += event.data
                if len(found) > limit:
                    raise OutOfOrder(
                        "the message is too long",
                        check="length of the message",
                        expected=f"at most {limit} bytes",
                        seen=f"more than {limit} bytes",
                    )
                arrived(len(found))
            elif isinstance(event, h11.EndOfMessage):
                return bytes(found)
            else:
                raise ConnectionResetError

    async def _answer(self, path: str, body: bytes, peer: str) -> tuple[int, bytes]:
        if path == PATH_CHALLENGE:
            parse_challenge_request(body)
            nonce, lifetime_s = self.service.challenge()
            return 200, ChallengeAnswer(nonce, lifetime_s).to_bytes()
        if path == PATH_RELEASE:
            return await self._release(body, peer)
        if path == PATH_IN_FORCE:
            return await self._in_force(body)
        if path.startswith(PATH_RUN):
            message = parse_run_message(body, path.rpartition("/")[2])
            members = await self._run_messages.run(lambda: self.service.run_messages.answer(message))
            return (409 if members is None else 200), run_answer(members)
        grant, token = parse_used(body)
        found = await self._acknowledging.run(lambda: self.service.used(grant, token))
        return (200 if found else 409), to_bytes({"protocol": PROTOCOL, "status": "noted" if found else "unknown"})

    async def _release(self, body: bytes, peer: str) -> tuple[int, bytes]:
        request = parse_release_request(body)
        taken_at, before = time.monotonic(), self.service.undecided
        try:
            answer = await asyncio.wrap_future(self.service.release(request, peer))
        except Error:
            await asyncio.sleep(until_beat(taken_at, time.monotonic(), before))
            raise
        if answer.refusal is not None:
            await asyncio.sleep(until_beat(taken_at, time.monotonic(), before))
            return 403, answer.refusal.to_bytes()
        if answer.granted is None:
            raise busy("the key server has no answer", check="answer", expected="one", seen="none")
        return 200, answer.granted.to_bytes()

    async def _in_force(self, body: bytes) -> tuple[int, bytes]:
        """Answer whether an agreement is in force. Every other answer than yes is sent at one time, as a refusal is."""
        question = parse_question(body)
        asked_at = time.monotonic()
        statement = await self._statements.run(lambda: self.service.in_force(question))
        if statement is None:
            await asyncio.sleep(until_beat(asked_at, time.monotonic()))
        return (409 if statement is None else 200), in_force_answer(statement)

    async def _explain(self, denial: str, read: Callable[[], Awaitable[bytes]]) -> tuple[int, bytes]:
        """Take an explanation of a known refusal, a few at a time. The result is for the owner only."""
        explainer = self.service.explainer
        ticket = explainer.claim(denial)
        if ticket is None:
            return 409, explain_answer("unknown")
        try:
            message = await read()
        except BaseException:
            explainer.drop(ticket)
            raise
        explainer.take(ticket, message)
        return 202, explain_answer("taken")


_BODY_LIMITS: Final = {
    PATH_CHALLENGE: 1024,
    PATH_RELEASE: MAX_REQUEST_BYTES,
    PATH_USED: 1024,
    PATH_IN_FORCE: MAX_QUESTION_BYTES,
    PATH_EXPLAIN: MAX_EXPLAIN_BYTES,
    **{f"{PATH_RUN}/{action}": MAX_RUN_MESSAGE_BYTES for action in ACTIONS},
}


def _route(target: str) -> tuple[str, str]:
    """The path, and the denial's id at the end of an explanation's path."""
    head, _, tail = target.rpartition("/")
    return (head, tail[:40]) if head == PATH_EXPLAIN else (target, "")


def until_beat(began_at: float, now: float, before: int = 0) -> float:
    """Seconds until a refusal is sent. `before` is the number of requests without an answer at its arrival.

    `before` alone decides the interval, unless the decision took longer. So a client that sends many requests at once
    learns nothing from the time that they took together.
    """
    settled = min(MAX_BEATS, 1 + before // PER_BEAT)
    return began_at + BEAT_S * max(settled, math.ceil((now - began_at) / BEAT_S)) - now


def _check_length(request: h11.Request, limit: int) -> None:
    """Refuse a message without its length, or over the limit, before any of it is read.

    Chunked messages are refused: with one byte a chunk they cost thousands of times more.
    """
    length = next((value for name, value in request.headers if name == b"content-length"), None)
    chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    if chunked or length is None or len(length) > MAX_LENGTH_DIGITS or int(length) > limit:
        raise OutOfOrder(
            "the message is too long, or does not say how long it is",
            check="length of the message",
            expected=f"a Content-Length of at most {limit} bytes",
            seen="no length" if chunked or length is None else f"{length.decode('ascii', 'replace')[:20]} bytes",
        )


def _problem(message: str, expected: str) -> bytes:
    return to_bytes({"protocol": PROTOCOL, "status": "error", "message": message, "expected": expected})


def _another_version(path: str) -> bytes:
    """The answer to a program of another Adyton version, older or newer. The program shows these parts to its user."""
    error = VersionMismatch(
        "the program speaks another version of the release protocol than this key server",
        check="protocol version",
        expected=PROTOCOL,
        seen=path[:60],
        remedy="install the same version of Adyton on both sides, the newer of the two; then build the program and have"
        " it approved again",
    )
    return to_bytes({"protocol": PROTOCOL, "status": "error", **error.details()})


def _status(error: Error) -> int:
    if isinstance(error, Unavailable):
        return 503
    if isinstance(error, VersionMismatch):
        return 426
    return 400
