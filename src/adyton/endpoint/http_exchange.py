"""One HTTP request and its response over one verified connection, each parsed and written anew."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import h11

from adyton.endpoint.channel import READ_BYTES
from adyton.endpoint.stream import join
from adyton.errors import FetchFailed

if TYPE_CHECKING:
    from adyton.endpoint.dial import Verified
    from adyton.endpoint.pool import Pool
    from adyton.endpoint.stream import PlainStream, Sink, Source

IDLE_S: Final = 75.0
"""How long a local program may wait between two requests, and within one that is half sent."""

MAX_HEAD_BYTES: Final = 64 << 10

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
    )
)
_ALWAYS_KEPT: Final = frozenset((b"transfer-encoding", b"content-length", b"host"))
_WITHOUT_BODY: Final = frozenset((204, 304))
_MAY_REPEAT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


async def next_event(source: Source, side: h11.Connection, limit_s: float | None = None) -> h11.Event:
    """The next event of a side, reading as far as it needs. Raises h11.RemoteProtocolError and TimeoutError."""
    event = _event_at_hand(side)
    if event is not None:
        return event
    async with asyncio.timeout(limit_s):
        while event is None:
            side.receive_data(await source.read(READ_BYTES))
            event = _event_at_hand(side)
    return event


def _event_at_hand(side: h11.Connection) -> h11.Event | None:
    """The next event of what was read already, or None where more must be read. Raises h11.RemoteProtocolError."""
    event = side.next_event()
    if event is h11.PAUSED:
        raise h11.RemoteProtocolError("a message begins before the one before it was answered")
    return event if isinstance(event, h11.Event) else None


async def send_event(sink: Sink, side: h11.Connection, event: h11.Event) -> None:
    """Write an event."""
    data = side.send(event)
    if data:
        await sink.write(data)


def is_repeatable(request: h11.Request) -> bool:
    """Whether a request may be asked twice: it changes nothing and has no body (RFC 9110, section 9.2.2)."""
    names = {name for name, _ in request.headers}
    return request.method in _MAY_REPEAT and not names & {b"content-length", b"transfer-encoding", b"upgrade"}


class Exchange:
    """A request that a local program (`front`) made, under way to the ingress (`back`)."""

    def __init__(self, local: PlainStream, front: h11.Connection, verified: Verified) -> None:
        self._local = local
        self._front = front
        self._verified = verified
        self._stream = verified.stream
        self._back = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._upload: asyncio.Task[None] | None = None
        self._method = b""
        self._passed = False
        self.local_failure: Exception | None = None
        """Why the local program's request ended before it was whole."""

    async def ask(self, request: h11.Request) -> h11.Event:
        """Send the request, and wait for the head of the response. The body follows while the response comes."""
        self._method = request.method
        head = h11.Request(method=request.method, target=request.target, headers=_forwarded(request))
        if not await self._send_at_hand(head):
            self._upload = asyncio.ensure_future(self._send_body())
        while True:
            event = await next_event(self._stream, self._back)
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                continue  # 100 was answered by this side
            if isinstance(event, h11.Response | h11.InformationalResponse):
                return event
            raise FetchFailed(
                "the program ended the connection instead of answering",
                check="response of the program",
                expected="a response",
                seen=type(event).__name__,
            )

    async def _send_at_hand(self, head: h11.Request) -> bool:
        """Send the head with as much of the body as was read already. Whether that is the whole."""
        parts = [self._back.send(head) or b""]
        event: h11.Event | None = None
        if self._front.their_state is h11.DONE:  # this request is asked again, and was read to its end before
            event = h11.EndOfMessage()
            parts.append(self._back.send(event) or b"")
        while not isinstance(event, h11.EndOfMessage):
            try:
                event = _event_at_hand(self._front)
            except h11.ProtocolError as error:
                self.local_failure = error
                raise
            if event is None:
                break
            parts.append(self._back.send(event) or b"")
        await self._stream.write(b"".join(parts))
        return event is not None

    async def _send_body(self) -> None:
        while True:
            try:
                if self._front.they_are_waiting_for_100_continue:
                    await send_event(self._local, self._front, h11.InformationalResponse(status_code=100, headers=[]))
                event = await next_event(self._local, self._front, IDLE_S)
            except (OSError, TimeoutError, h11.ProtocolError) as error:
                self.local_failure = error
                self._stream.abort()  # or the program would wait for the rest, and hold its connection
                raise
            await send_event(self._stream, self._back, event)
            if isinstance(event, h11.EndOfMessage):
                return

    async def finish(self, response: h11.Event, pool: Pool) -> bool:
        """Carry the response to the local program. Whether another request may follow on its connection."""
        if isinstance(response, h11.InformationalResponse):
            await self._switch(response)
            return False
        try:
            await self._carry(response)
            if self._upload is not None:
                await self._upload
        except BaseException:
            await self.give_up()
            raise
        whole = self._passed or (self._back.their_state is h11.DONE and not self._back.trailing_data[0])
        if self._back.our_state is h11.DONE and whole:  # it is another state where the connection ends with the answer
            await pool.give_back(self._verified)
        else:
            await self._stream.close()
        return self._front.our_state is h11.DONE and self._front.their_state is h11.DONE

    async def _carry(self, response: h11.Event) -> None:
        if not isinstance(response, h11.Response):
            raise FetchFailed("no response", check="response of the program", seen=type(response).__name__)
        head = h11.Response(status_code=response.status_code, reason=response.reason, headers=_forwarded(response))
        parts = [self._front.send(head) or b""]
        length = _length(response, self._method)
        if length is not None:
            await self._pass_on(parts, length)
            return
        event: h11.Event | None = None
        while not isinstance(event, h11.EndOfMessage):
            event = _event_at_hand(self._back)
            if event is None:
                await self._local.write(b"".join(parts))  # at once: an event of a stream may be the last for long
                parts.clear()
                event = await next_event(self._stream, self._back)
            parts.append(self._front.send(event) or b"")
        await self._local.write(b"".join(parts))

    async def _pass_on(self, parts: list[bytes], length: int) -> None:
        """Carry a body whose length was said: its bytes need no parser. The head is in `parts`."""
        data = self._back.trailing_data[0]
        while True:
            found, extra = data[:length], len(data) > length
            length -= len(found)
            if found:
                parts += self._front.send_with_data_passthrough(h11.Data(data=found)) or ()
            if length == 0:
                break
            if parts:
                await self._local.write(b"".join(parts))
                parts = []
            data = await self._stream.read(READ_BYTES)
            if not data:
                raise FetchFailed(
                    "the program ended the connection within its answer",
                    check="length of the response",
                    expected="as its Content-Length says",
                    seen=f"{length} bytes fewer",
                )
        parts.append(self._front.send(h11.EndOfMessage()) or b"")
        await self._local.write(b"".join(parts))
        self._passed = not extra

    async def _switch(self, response: h11.InformationalResponse) -> None:
        """Another protocol from here on (a WebSocket): bytes flow as they are."""
        try:
            await send_event(self._local, self._front, response)
            await self._stream.write(self._front.trailing_data[0])
            await self._local.write(self._back.trailing_data[0])
            await join(self._stream, self._local)
        finally:
            await self.give_up()

    async def give_up(self) -> None:
        """End the exchange and its connection, whatever its state."""
        if self._upload is not None:
            self._upload.cancel()
            await asyncio.gather(self._upload, return_exceptions=True)
        await self._stream.close()


def _length(response: h11.Response, method: bytes) -> int | None:
    """The length of the body, where the response says it (RFC 9112, section 6.3). h11 has checked that it is one."""
    if method == b"HEAD" or response.status_code in _WITHOUT_BODY:
        return None
    found = {name: value for name, value in response.headers if name in (b"content-length", b"transfer-encoding")}
    return int(found[b"content-length"]) if list(found) == [b"content-length"] else None


def _tokens(message: h11.Request | h11.Response) -> frozenset[bytes]:
    """The words of its Connection headers, in lower case."""
    return frozenset(
        token.strip().lower() for name, value in message.headers if name == b"connection" for token in value.split(b",")
    )


def _forwarded(message: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    """The headers to pass on: those of one hop are left out, except where the protocol is switched."""
    named = _tokens(message)
    dropped = (_HOP_BY_HOP | named) - _ALWAYS_KEPT if named else _HOP_BY_HOP
    kept = [(name, value) for name, value in message.headers.raw_items() if name.lower() not in dropped]
    upgrade = b"upgrade" in named and any(name == b"upgrade" for name, _ in message.headers)
    if upgrade and isinstance(message, h11.Request):
        kept += [(b"Connection", b"Upgrade")]
        kept += [(b"Upgrade", value) for name, value in message.headers if name == b"upgrade"]
    return kept
