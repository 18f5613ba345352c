"""Accept connections within limits, each with a deadline at every stage, for any protocol.

A connection has three stages. Until its first TLS record has fully arrived it costs a file descriptor and a timer.
After that come the handshake and the handler. A connection that stalls in any stage is closed, without harm to others.
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
from typing import TYPE_CHECKING, Final

from adyton.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger("adyton.keyserver")

TLS_RECORD_HEADER: Final = 5
MAX_HELLO_BYTES: Final = 16 * 1024 + 256
READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the server. `max_connections` counts all, `max_active` those whose TLS has begun."""

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
    """Counters for the metrics."""

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
        """Bind and listen. Raises Unavailable where the address cannot be used."""
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
        """Stop accepting for a moment, because the file descriptors are used up."""
        loop = asyncio.get_running_loop()
        listening = self._socket
        if listening is not None:
            loop.remove_reader(listening.fileno())
            loop.call_later(0.2, self._resume)

    def _resume(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def left(self, host: str, how: str) -> None:
        """Count a connection as closed."""
        self._counters.open -= 1
        self._counters.closed[how] += 1
        self._addresses[host] -= 1
        if not self._addresses[host]:
            del self._addresses[host]

    def begin(self, connection: socket.socket, host: str, peer: str) -> None:
        """Serve a connection whose first TLS record has arrived."""
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
        """The limits in force."""
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
        """Stop listening. Running requests may finish within `grace_s` seconds."""
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
        """Whether the listener is stopping: it takes no new requests."""
        return self._stopping


class Waiting:
    """A connection without its first TLS record yet: the kernel watches it, without a buffer or TLS state."""

    __slots__ = ("_connection", "_host", "_listener", "_peer", "_timer")

    def __init__(self, listener: Listener, connection: socket.socket, host: str, peer: str) -> None:
        self._listener = listener
        self._connection = connection
        self._host = host
        self._peer = peer
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(listener.limits.first_byte_timeout_s, self._give_up)

    def watch(self) -> None:
        """Wake when the next needed bytes have arrived (the kernel counts them: SO_RCVLOWAT)."""
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
