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
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
    )
)
_MAY_REPEAT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


async def next_event(source: Source, side: h11.Connection, limit_s: float | None = None) -> h11.Event:
    """The next event of a side, reading as far as it needs. Raises h11.RemoteProtocolError and TimeoutError."""
    async with asyncio.timeout(limit_s):
        while True:
            event = side.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                raise h11.RemoteProtocolError("a message begins before the one before it was answered")
            side.receive_data(await source.read(READ_BYTES))


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
        self.local_failure: Exception | None = None
        """Why the local program's request ended before it was whole."""

    async def ask(self, request: h11.Request) -> h11.Event:
        """Send the request, and wait for the head of the response. The body follows while the response comes."""
        head = h11.Request(method=request.method, target=request.target, headers=_forwarded(request))
        await send_event(self._stream, self._back, head)
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

    async def _send_body(self) -> None:
        if self._front.their_state is h11.DONE:  # this request is asked again, and was read to its end before
            await send_event(self._stream, self._back, h11.EndOfMessage())
            return
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
        if self._back.our_state is h11.DONE and self._back.their_state is h11.DONE and not self._back.trailing_data[0]:
            await pool.give_back(self._verified)
        else:
            await self._stream.close()
        return self._front.our_state is h11.DONE and self._front.their_state is h11.DONE

    async def _carry(self, response: h11.Event) -> None:
        if not isinstance(response, h11.Response):
            raise FetchFailed("no response", check="response of the program", seen=type(response).__name__)
        head = h11.Response(status_code=response.status_code, reason=response.reason, headers=_forwarded(response))
        await send_event(self._local, self._front, head)
        while True:
            event = await next_event(self._stream, self._back)
            await send_event(self._local, self._front, event)
            if isinstance(event, h11.EndOfMessage):
                return

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


def _forwarded(message: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    """The headers to pass on: those of one hop are left out, except where the protocol is switched."""
    named = {
        token.strip().lower() for name, value in message.headers if name == b"connection" for token in value.split(b",")
    }
    upgrade = b"upgrade" in named and any(name == b"upgrade" for name, _ in message.headers)
    dropped = (_HOP_BY_HOP | named | {b"expect", b"upgrade"}) - {b"transfer-encoding", b"content-length", b"host"}
    kept = [(name, value) for name, value in message.headers.raw_items() if name.lower() not in dropped]
    if upgrade and isinstance(message, h11.Request):
        kept += [(b"Connection", b"Upgrade")]
        kept += [(b"Upgrade", value) for name, value in message.headers if name == b"upgrade"]
    return kept
