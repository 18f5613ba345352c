"""How long the dashboard waits for a request, and how many connections it takes, in all and of one address.

The newest connection takes the place of the oldest one, so that a client that holds many keeps nobody out. A connection
that showed the cookie of somebody who knows the password stays.

A request that is no HTTP, or too long, is answered while its sender may still be sending. To close at once would make
the kernel reset the connection, and the sender could lose the answer. So what still comes is read and thrown away until
nothing has come for a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from adyton.server.dashboard.guesses import source_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

REQUEST_S: Final = 5.0
"""Until a request is here whole."""

ANSWER_S: Final = 60.0
"""From then on until its answer has been taken."""

QUIET_S: Final = 0.5
"""After a request was refused unread: close once nothing has come for so long, and after REQUEST_S whatever comes."""

MAX_CONNECTIONS: Final = 64
MAX_PER_ADDRESS: Final = 24


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with a deadline for every wait."""

    recognise: Callable[[list[tuple[bytes, bytes]]], bool] = staticmethod(lambda _headers: False)
    """Whether a request's headers show that its sender knows the password."""

    _deadline: asyncio.TimerHandle | None = None
    _answering = False
    _closing = False
    """Whether a request was refused unread, and the connection is closed soon."""

    _closes_by = 0.0
    """When it is closed at the latest."""

    since = 0.0
    recognised = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and let another go where there are too many."""
        super().connection_made(transport)
        self.since = self.loop.time()
        every = [other for other in self.connections if isinstance(other, TimeoutProtocol)]
        same = [other for other in every if other.source() == self.source()]
        if len(same) > MAX_PER_ADDRESS:
            self._make_room(same)
        elif len(every) > MAX_CONNECTIONS:
            self._make_room(every)
        self._wait(REQUEST_S)

    def source(self) -> str:
        """Whose connection it is."""
        return source_of(self.client[0] if self.client else "")

    def _make_room(self, among: Iterable[TimeoutProtocol]) -> None:
        others = [other for other in among if other is not self and not other.recognised]
        going = min(others, key=lambda other: other.since, default=self)
        self.connections.discard(going)
        going.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Go on with the request; it must be whole in time, however it trickles in."""
        if not self._closing:
            super().data_received(data)
        if self._closing:
            self._wait_for_quiet()
            return
        if self.headers and not self.recognised:
            self.recognised = type(self).recognise(self.headers)
        if self.conn.their_state is h11.IDLE or self.conn.their_state is h11.SEND_BODY:
            if self._deadline is None:
                self._wait(REQUEST_S)
        elif not self._answering:
            self._answering = True
            self._wait(ANSWER_S)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is no HTTP; the connection is closed once its sender is quiet."""
        body = msg.encode("ascii")
        headers = [
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._closing = True
        self._closes_by = self.loop.time() + REQUEST_S

    def on_response_complete(self) -> None:
        """The answer is out; from here uvicorn's own keep-alive time counts."""
        super().on_response_complete()
        self._answering = False
        self._cancel()
        if self._closing:  # what came behind the request is none
            self._wait_for_quiet()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._cancel()
        super().connection_lost(exc)

    def _wait_for_quiet(self) -> None:
        self._cancel()
        self._deadline = self.loop.call_at(min(self.loop.time() + QUIET_S, self._closes_by), self.transport.close)

    def _wait(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
