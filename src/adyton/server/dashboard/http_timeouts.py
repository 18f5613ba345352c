"""How long the dashboard waits for a request, and how many connections it takes, in all and of one address.

The newest connection takes the place of the one that is there longest, so that a stranger who holds many keeps nobody
out; one that showed the cookie of somebody who knows the password stays.
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

MAX_CONNECTIONS: Final = 64
MAX_PER_ADDRESS: Final = 24


class BoundedProtocol(H11Protocol):
    """uvicorn's own HTTP, with an end to every wait."""

    recognise: Callable[[list[tuple[bytes, bytes]]], bool] = staticmethod(lambda _headers: False)
    """Whether a request's headers show that its sender knows the password."""

    _deadline: asyncio.TimerHandle | None = None
    _answering = False
    since = 0.0
    recognised = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and let another go where there are too many."""
        super().connection_made(transport)
        self.since = self.loop.time()
        every = [other for other in self.connections if isinstance(other, BoundedProtocol)]
        same = [other for other in every if other.source() == self.source()]
        if len(same) > MAX_PER_ADDRESS:
            self._make_room(same)
        elif len(every) > MAX_CONNECTIONS:
            self._make_room(every)
        self._wait(REQUEST_S)

    def source(self) -> str:
        """Whose connection it is."""
        return source_of(self.client[0] if self.client else "")

    def _make_room(self, among: Iterable[BoundedProtocol]) -> None:
        others = [other for other in among if other is not self and not other.recognised]
        going = min(others, key=lambda other: other.since, default=self)
        self.connections.discard(going)
        going.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Go on with the request; it must be whole in time, however it trickles in."""
        super().data_received(data)
        if self.headers and not self.recognised:
            self.recognised = type(self).recognise(self.headers)
        if self.conn.their_state is h11.IDLE or self.conn.their_state is h11.SEND_BODY:
            if self._deadline is None:
                self._wait(REQUEST_S)
        elif not self._answering:
            self._answering = True
            self._wait(ANSWER_S)

    def on_response_complete(self) -> None:
        """The answer is out; from here uvicorn's own keep-alive time counts."""
        super().on_response_complete()
        self._answering = False
        self._cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._cancel()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
