"""The key server's sockets: Adyton's protocol over HTTPS, and Gramine's over RA-TLS, bounded in every direction.

A connection passes three stages. Until its first TLS record has arrived whole it costs a file descriptor and a timer;
then the handshake, one request at a time, each with a deadline; a connection that stalls in any of them is closed,
and harms nobody else. HTTP is parsed by h11, TLS is the `ssl` module's, decisions are `KeyService`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import h11

from adyton.errors import Error, OutOfOrder, Unavailable, VersionMismatch
from adyton.net import ratls
from adyton.net.failures import Busy, for_far_side
from adyton.net.release import (
    MAX_EXPLAIN_BYTES,
    MAX_REQUEST_BYTES,
    PATH_CHALLENGE,
    PATH_EXPLAIN,
    PATH_RELEASE,
    PATH_USED,
    PROTOCOL,
    ChallengeAnswer,
    parse_challenge_request,
    parse_explain,
    parse_release_request,
    parse_used,
)
from adyton.net.tls import asked_name, peer_chain
from adyton.net.wire import to_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from adyton.net.service import KeyService

log = logging.getLogger("adyton.keyserver")

TLS_RECORD_HEADER: Final = 5
MAX_HELLO_BYTES: Final = 16 * 1024 + 256
MAX_HEADER_BYTES: Final = 16 * 1024
READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 4096
MAX_EXPLAINING: Final = 4
"""Explanations that are read or worked on at a time: each is megabytes."""

EXPLAIN_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of the server; `max_connections` counts all, `max_active` those whose TLS has begun."""

    max_connections: int = 12_000
    max_active: int = 1024
    max_per_address: int = 2000
    max_active_per_address: int = 256
    first_byte_timeout_s: float = 30
    handshake_timeout_s: float = 10
    request_timeout_s: float = 20
    idle_timeout_s: float = 30
    connection_timeout_s: float = 90


@dataclass(slots=True)
class Counters:
    """What the server has seen, for metrics."""

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    open: int = 0
    active: int = 0


class Listener:
    """One listening address and all its connections."""

    def __init__(
        self,
        name: str,
        context: ssl.SSLContext,
        handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]],
        limits: Limits,
        counters: Counters,
    ) -> None:
        self.name = name
        self._context = context
        self._handler = handler
        self._limits = limits
        self._counters = counters
        self._active = asyncio.Semaphore(limits.max_active)
        self._addresses: Counter[str] = Counter()
        self._busy: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._stopping = False
        self.address: tuple[str, int] = ("", 0)

    def start(self, host: str, port: int) -> None:
        """Bind and listen; raises Unavailable where the address cannot be had."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            listening.close()
            raise Unavailable(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                check=f"listening address ({self.name})",
                expected="an address of this machine and a free port",
                seen=f"{host}:{port}",
                remedy="stop what listens there, or name another port (0 takes any)",
            ) from error
        self._socket = listening
        self.address = listening.getsockname()[:2]
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    def _accept(self) -> None:
        if self._socket is None:
            return
        for _ in range(64):
            try:
                connection, peer = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._counters.rejected["accept"] += 1
                log.warning("accept failed", extra={"reason": error.strerror})
                self._pause()
                return
            host = str(peer[0])
            self._counters.accepted += 1
            if self._counters.open >= self._limits.max_connections:
                self._counters.rejected["connections"] += 1
                _reset(connection)
                continue
            if self._addresses[host] >= self._limits.max_per_address:
                self._counters.rejected["address"] += 1
                _reset(connection)
                continue
            connection.setblocking(False)
            self._counters.open += 1
            self._addresses[host] += 1
            Waiting(self, connection, host, f"{host}:{peer[1]}").watch()

    def _pause(self) -> None:
        """Out of file descriptors: stop accepting for a moment instead of spinning."""
        loop = asyncio.get_running_loop()
        listening = self._socket
        if listening is not None:
            loop.remove_reader(listening.fileno())
            loop.call_later(0.2, self._resume)

    def _resume(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def left(self, host: str, how: str) -> None:
        """A connection is gone."""
        self._counters.open -= 1
        self._counters.closed[how] += 1
        self._addresses[host] -= 1
        if not self._addresses[host]:
            del self._addresses[host]

    def begin(self, connection: socket.socket, host: str, peer: str) -> None:
        """A connection has sent its first TLS record: serve it."""
        if self._busy[host] >= self._limits.max_active_per_address:
            _reset(connection)
            self.left(host, "address busy")
            return
        self._busy[host] += 1
        task = asyncio.get_running_loop().create_task(self._serve(connection, host, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def limits(self) -> Limits:
        """The bounds in force."""
        return self._limits

    async def _serve(self, connection: socket.socket, host: str, peer: str) -> None:
        how = "overloaded"
        slot = False
        try:
            async with asyncio.timeout(self._limits.handshake_timeout_s):
                slot = await self._active.acquire()
            self._counters.active += 1
            how = "too long"
            async with asyncio.timeout(self._limits.connection_timeout_s):
                how = await self._talk(connection, peer)
        except TimeoutError:
            pass
        finally:
            if slot:
                self._counters.active -= 1
                self._active.release()
            self._busy[host] -= 1
            if not self._busy[host]:
                del self._busy[host]
            connection.close()
            self.left(host, how)

    async def _talk(self, connection: socket.socket, peer: str) -> str:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_timeout_s,
                ssl_shutdown_timeout=2,
            )
        except (ssl.SSLError, OSError, TimeoutError):
            return "handshake"
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._handler(reader, writer, peer)
        except (ssl.SSLError, ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            return "broken"
        finally:
            await _end(writer)
        return "served"

    async def stop(self, grace_s: float) -> None:
        """Stop listening, let what is under way finish for at most `grace_s` seconds."""
        self._stopping = True
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished, timeout=1)

    @property
    def stopping(self) -> bool:
        """Whether new requests are no longer taken."""
        return self._stopping


class Waiting:
    """A connection whose first TLS record is not here yet: watched by the kernel, no buffer, no TLS state."""

    __slots__ = ("_connection", "_host", "_listener", "_peer", "_timer")

    def __init__(self, listener: Listener, connection: socket.socket, host: str, peer: str) -> None:
        self._listener = listener
        self._connection = connection
        self._host = host
        self._peer = peer
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(listener.limits.first_byte_timeout_s, self._give_up)

    def watch(self) -> None:
        """Wake when the next part that is needed has arrived (SO_RCVLOWAT counts it in the kernel)."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, TLS_RECORD_HEADER)
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._look)

    def _look(self) -> None:
        try:
            head = self._connection.recv(TLS_RECORD_HEADER, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop("reset")
            return
        if len(head) < TLS_RECORD_HEADER:
            self._drop("closed early")
            return
        kind, major, _, size = struct.unpack(">BBBH", head)
        if kind != 22 or major != 3 or not 4 <= size <= MAX_HELLO_BYTES:
            self._drop("not TLS")
            return
        wanted = TLS_RECORD_HEADER + size
        try:
            here = len(self._connection.recv(wanted, socket.MSG_PEEK))
        except OSError:
            self._drop("reset")
            return
        if here < wanted:
            if self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == wanted:
                self._drop("closed early")
                return
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            return
        self._unwatch()
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._listener.begin(self._connection, self._host, self._peer)

    def _unwatch(self) -> None:
        self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _give_up(self) -> None:
        self._drop("silent")

    def _drop(self, how: str) -> None:
        self._unwatch()
        _reset(self._connection)
        self._listener.left(self._host, how)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ssl.SSLError, OSError, TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(3):
            await writer.wait_closed()


class KeyServer:
    """The key server's listeners over one `KeyService`."""

    def __init__(self, service: KeyService, limits: Limits) -> None:
        self.service = service
        self.limits = limits
        self.counters = Counters()
        self.listeners: list[Listener] = []
        self._explaining = asyncio.Semaphore(MAX_EXPLAINING)

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

    # --- Gramine's protocol ------------------------------------------------------------------------------------

    async def _provision(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        """Read the request before anything is decided: who connects and asks for nothing uses up no run."""
        ssl_object = writer.get_extra_info("ssl_object")
        self.counters.requests["ra-tls"] += 1
        async with asyncio.timeout(self.limits.request_timeout_s):
            name = asked_name(ssl_object)
            try:
                ratls.check_request(await reader.readexactly(len(ratls.REQUEST)))
                answer = await asyncio.wrap_future(self.service.provision(peer_chain(ssl_object), name, peer))
            except Error as error:
                log.info("not answered", extra={"peer": peer, "reason": error.message})
                return
            if answer.refusal is not None or answer.payload is None:
                return
            values = [*answer.payload.keys.values(), *answer.payload.secrets.values()]
            writer.write(ratls.response(values[0]))
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
        if request.method == b"GET" and path == "/healthz":
            self.counters.requests["health"] += 1
            await self._body(connection, reader, writer, 0)
            return 200, to_bytes({"status": "stopping" if self._stopping() else "ok"})
        if request.method == b"GET" and path == "/readyz":
            await self._body(connection, reader, writer, 0)
            ready = await asyncio.to_thread(self.service.is_ready)
            return (200 if ready else 503), to_bytes({"status": "ready" if ready else "not ready"})
        if limit is None:
            return 404, _problem("no such path", PROTOCOL)
        if request.method != b"POST":
            return 405, _problem("POST only", "POST")
        self.counters.requests[path.rpartition("/")[2]] += 1
        try:
            if path == PATH_EXPLAIN:
                return await self._explain(denial, lambda: self._body(connection, reader, writer, limit))
            body = await self._body(connection, reader, writer, limit)
            return await self._answer(path, body, peer)
        except (OSError, EOFError):
            raise
        except Exception as error:
            told = for_far_side(error, f"answer {path}")
            return _status(told), to_bytes({"protocol": PROTOCOL, "status": "error", **told.details()})

    def _stopping(self) -> bool:
        return any(listener.stopping for listener in self.listeners)

    async def _body(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int
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
            request = parse_release_request(body)
            answer = await asyncio.wrap_future(self.service.release(request, peer))
            if answer.refusal is not None:
                return 403, answer.refusal.to_bytes()
            if answer.granted is None:
                raise Busy("the key server has no answer")
            return 200, answer.granted.to_bytes()
        grant, token = parse_used(body)
        found = await asyncio.to_thread(self.service.used, grant, token)
        return (200 if found else 409), to_bytes({"protocol": PROTOCOL, "status": "noted" if found else "unknown"})

    async def _explain(self, denial: str, read: Callable[[], Awaitable[bytes]]) -> tuple[int, bytes]:
        """Read and work out an explanation: only of what can be explained, few at a time, beside the other requests."""
        await asyncio.to_thread(self.service.check_explainable, denial)
        try:
            async with asyncio.timeout(EXPLAIN_WAIT_S):
                await self._explaining.acquire()
        except TimeoutError:
            raise Busy(
                "too many programs are being explained",
                check="explanations at a time",
                expected=f"at most {MAX_EXPLAINING}",
                seen="more",
                remedy="the refusal stands as it is; start the program again to have it explained",
            ) from None
        try:
            told = await asyncio.to_thread(self._explained, denial, await read())
        finally:
            self._explaining.release()
        return 200, to_bytes({"protocol": PROTOCOL, "status": "explained", "changed": told})

    def _explained(self, denial: str, body: bytes) -> list[str]:
        explanation = parse_explain(body)
        if explanation.denial != denial:
            raise OutOfOrder(
                "this explains another denial than its path says",
                check="denial id",
                expected=denial,
                seen=explanation.denial,
                remedy="use an Adyton of the same protocol version on both sides",
            )
        return self.service.explain(explanation)


_BODY_LIMITS: Final = {
    PATH_CHALLENGE: 1024,
    PATH_RELEASE: MAX_REQUEST_BYTES,
    PATH_USED: 1024,
    PATH_EXPLAIN: MAX_EXPLAIN_BYTES,
}


def _route(target: str) -> tuple[str, str]:
    """Path, and the denial's id that stands at its end where it is explained."""
    head, _, tail = target.rpartition("/")
    return (head, tail[:40]) if head == PATH_EXPLAIN else (target, "")


def _problem(message: str, expected: str) -> bytes:
    return to_bytes({"protocol": PROTOCOL, "status": "error", "message": message, "expected": expected})


def _status(error: Error) -> int:
    if isinstance(error, Unavailable):
        return 503
    if isinstance(error, VersionMismatch):
        return 426
    return 400
