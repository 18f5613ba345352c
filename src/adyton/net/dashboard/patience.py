"""How long the dashboard waits for a request, and how many connections of one address it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

REQUEST_S: Final = 5.0
"""Until a request is here whole."""

ANSWER_S: Final = 60.0
"""From then on until its answer has been taken."""

MAX_PER_ADDRESS: Final = 24


class PatientProtocol(H11Protocol):
    """uvicorn's own HTTP, with an end to every wait."""

    _deadline: asyncio.TimerHandle | None = None
    _answering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless its address has many already."""
        super().connection_made(transport)
        peers = [getattr(other, "client", None) for other in self.connections]
        if sum(peer is not None and peer[:1] == (self.client or ())[:1] for peer in peers) > MAX_PER_ADDRESS:
            transport.abort()
            return
        self._wait(REQUEST_S)

    def data_received(self, data: bytes) -> None:
        """Go on with the request; it must be whole in time, however it trickles in."""
        super().data_received(data)
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
