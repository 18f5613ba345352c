"""A TLS channel on an asyncio connection: plaintext in and out, with back-pressure, and ends that are told apart."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol

from adyton.endpoint.channel import READ_BYTES, Channel
from adyton.endpoint.hello import LENGTH_BYTES, body_length
from adyton.errors import FetchFailed

if TYPE_CHECKING:
    from datetime import timedelta

    from OpenSSL import SSL


_NO_LINGER: Final = struct.pack("ii", 1, 0)

CLOSE_S: Final = 5.0
"""How long a peer has to take the last bytes of a connection."""


"""SO_LINGER, on and 0 s: the close is a reset. Without it the kernel ends the connection as if it was whole."""


_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A peer that says nothing for 60 s is asked four times, every 15 s."""


class Source(Protocol):
    """Where bytes come from. No bytes mean the end."""

    async def read(self, size: int) -> bytes:
        """Some bytes, at most `size`."""
        ...


class Sink(Protocol):
    """Where bytes go."""

    async def write(self, data: bytes) -> None:
        """Take bytes, and wait while too many wait already."""
        ...

    async def end(self) -> None:
        """No more bytes follow."""
        ...


class SecureStream:
    """Plaintext over TLS 1.3. It is one connection, and is closed once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, channel: Channel) -> None:
        self._reader = reader
        self._writer = writer
        self.channel = channel
        self._pending = b""
        self._end: asyncio.TimerHandle | None = None
        self._ahead: asyncio.Task[bytes] | None = None

    @classmethod
    async def open(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: SSL.Context, *, server: bool
    ) -> SecureStream:
        """Make the handshake. Raises FetchFailed."""
        channel = Channel(context, server=server)
        stream = cls(reader, writer, channel)
        try:
            while not channel.handshake():
                await stream._flush()
                await stream._more("the handshake")
        finally:
            with contextlib.suppress(OSError):
                await stream._flush()  # an alert says why
        return stream

    async def _more(self, what: str) -> None:
        data = await self._reader.read(READ_BYTES)
        if not data:
            raise FetchFailed(
                f"the peer closed the connection in {what}",
                check=what,
                expected="bytes",
                seen="the end of the connection",
                remedy="see whether this is the port of an ingress, and whether it is still running",
            )
        self.channel.receive(data)

    async def _flush(self) -> None:
        data = self.channel.outgoing()
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def read(self, size: int = READ_BYTES) -> bytes:
        """Plaintext, at most `size` bytes. Empty at the peer's end. Raises FetchFailed where the end was cut."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._pending = await ahead + self._pending
            if not self._pending:
                return b""
        return await self._read(size)

    def read_ahead(self) -> None:
        """Begin to read before anything is asked for. The next `read` goes on with it."""
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(self._read(READ_BYTES))

    @property
    def quiet(self) -> bool:
        """Whether the peer has said nothing that was not read, its end included."""
        return not self._pending and (self._ahead is None or not self._ahead.done())

    async def _stop_reading(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _read(self, size: int) -> bytes:
        while not self._pending:
            self._pending = self.channel.read()
            if self._pending or self.channel.closed_by_peer:
                break
            await self._flush()  # a key update asks for an answer
            await self._more("a message")
        found, self._pending = self._pending[:size], self._pending[size:]
        return found

    async def write(self, data: bytes) -> None:
        """Send plaintext. Waits while the network is slower."""
        self.channel.write(data)
        await self._flush()

    async def end(self) -> None:
        """End this side's direction. The other one stays open."""
        self.channel.end()
        await self._flush()

    async def read_message(self, limit: int) -> bytes:
        """One message of the protocol, at most so many bytes. Raises MalformedQuote and FetchFailed."""
        size = body_length(await self._exactly(LENGTH_BYTES), limit)
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            data = await self.read(size - len(found))
            if not data:
                raise FetchFailed(
                    "the peer ended before its message was whole",
                    check="length of the message",
                    expected=f"{size} bytes",
                    seen=f"{len(found)} bytes",
                )
            found += data
        return bytes(found)

    def cut_after(self, time: timedelta) -> None:
        """Cut the connection once this time is over, unless it has ended by then."""
        self._end = asyncio.get_running_loop().call_later(max(0.0, time.total_seconds()), self.abort)

    def abort(self) -> None:
        """Cut the connection."""
        self._no_end()
        self._writer.transport.abort()

    def _no_end(self) -> None:
        if self._end is not None:
            self._end.cancel()

    async def close(self) -> None:
        """Close the connection at once."""
        self._no_end()
        await self._stop_reading()
        self.channel.end()
        self._writer.write(self.channel.outgoing())
        await _closed(self._writer)


class PlainStream:
    """A plain connection within one machine, in the same terms."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, size: int = READ_BYTES) -> bytes:
        """Some bytes, at most `size`. Empty at the peer's end."""
        return await self._reader.read(size)

    async def write(self, data: bytes) -> None:
        """Send bytes. Waits while the peer is slower."""
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        """End this side's direction. The other one stays open."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def abort(self) -> None:
        """Reset the connection, so that the peer cannot take it for a whole one (a Unix socket has no reset)."""
        found = self._writer.get_extra_info("socket")
        if found is not None and found.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):  # it is closed already
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection at once."""
        await _closed(self._writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection. A peer that does not take its last bytes in time is cut off."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except OSError:
        return


def notice_dead_peers(writer: asyncio.StreamWriter) -> None:
    """Let the kernel ask a silent peer whether it is still there. Else one that vanished keeps its place for ever."""
    own = writer.get_extra_info("socket")
    if own is None or own.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            own.setsockopt(socket.IPPROTO_TCP, option, value)


async def pump(source: Source, sink: Sink) -> None:
    """Carry bytes from one to the other until the end, and pass the end on."""
    while data := await source.read(READ_BYTES):
        await sink.write(data)
    await sink.end()


async def join(one: SecureStream, other: PlainStream) -> None:
    """Carry both directions to their ends. Where either fails, both sides are cut, not closed as if all was well."""
    ways = [asyncio.ensure_future(pump(one, other)), asyncio.ensure_future(pump(other, one))]
    try:
        await asyncio.gather(*ways)
    except BaseException:
        other.abort()
        one.abort()
        raise
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
