"""Carries a program's connections to the one server outside that its manifest names for them.

The program connects to an address of its own network, and nothing that it sends there chooses where the bytes go. Where
a CA is pinned, TLS is made here, and the program speaks in clear. Where the server cannot be had, or is not the one
that is named, the program's connection is reset before a byte of it has left.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from adyton.address import address_text
from adyton.endpoint.channel import READ_BYTES
from adyton.endpoint.pinned_tls import PinnedStream, pinned_context
from adyton.endpoint.stream import PlainStream
from adyton.errors import Error

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from adyton.endpoint.stream import Sink, Source

CONNECT_S: Final = 20.0
"""The time for the name, the connection and the handshake."""

IDLE_S: Final = 3600.0
"""A connection over which nothing passed for so long is cut, in both directions."""


class Egress:
    """The way to one server. `ca` (PEM) is the one under which it must show itself. None: bytes pass as they are."""

    def __init__(
        self,
        address: tuple[str, int],
        ca: str | None,
        *,
        max_connections: int,
        note: Callable[[str], None] = lambda _text: None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._address = address
        self._context = None if ca is None else pinned_context(ca)
        self._most = max_connections
        self._note = note
        self._idle_s = idle_s
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve connections of a bound socket within the context. Its end cuts those that are still open."""
        server = await asyncio.start_server(self._take, sock=listener, limit=READ_BYTES)
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._guard(PlainStream(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, program: PlainStream) -> None:
        if self._open >= self._most:
            program.abort()
            self._tell(f"a connection over the limit of {self._most} was closed")
            return
        self._open += 1
        try:
            await self._carry(program)
        except Error as error:
            self._tell(error.message)
        except TimeoutError:
            self._tell(f"no connection within {CONNECT_S:.0f} s, or nothing passed for {self._idle_s:g} s")
        except OSError as error:
            self._tell(error.strerror or str(error))
        finally:
            self._open -= 1
            program.abort()  # without an effect after its close

    def _tell(self, what: str) -> None:
        self._note(f"egress {address_text(self._address)}: {what}")

    async def _carry(self, program: PlainStream) -> None:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(*self._address, limit=READ_BYTES)
            try:
                server: PlainStream | PinnedStream = PlainStream(reader, writer)
                if self._context is not None:
                    server = await PinnedStream.open(reader, writer, self._context, self._address[0])
            except BaseException:
                writer.transport.abort()
                raise
        try:
            await _both_ways(program, server, self._idle_s)
        except BaseException:
            server.abort()
            raise
        await server.close()
        await program.close()


async def _both_ways(program: PlainStream, server: PlainStream | PinnedStream, idle_s: float) -> None:
    """Carry both directions to their ends. Raises what fails, and TimeoutError where nothing passes for too long."""
    try:
        async with asyncio.timeout(idle_s) as idle, asyncio.TaskGroup() as ways:

            def passed() -> None:
                idle.reschedule(asyncio.get_running_loop().time() + idle_s)

            ways.create_task(_one_way(program, server, passed))
            ways.create_task(_one_way(server, program, passed))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _one_way(source: Source, sink: Sink, passed: Callable[[], None]) -> None:
    while data := await source.read(READ_BYTES):
        passed()
        await sink.write(data)
        passed()
    await sink.end()
