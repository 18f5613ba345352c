"""Taking connections: how many at a time may be in their TLS handshake, in all and from one address.

Unauthenticated clients get no more of the process's descriptors than this, however many connections they open. The
newest connection replaces the one that has waited longest, so a quick client gets through.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from adyton.server.dashboard.guesses import source_of

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

HANDSHAKE_S: Final = 5.0
MAX_HANDSHAKES: Final = 64
MAX_HANDSHAKES_PER_SOURCE: Final = 24
PAUSE_S: Final = 0.1


class Accepting:
    """Accepts connections and lets each through its handshake, to a protocol of `protocol`."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        self._protocol = protocol
        self._context = context
        self._under_way: dict[asyncio.Task[None], str] = {}

    async def run(self, listening: socket.socket) -> None:
        """Accept until cancelled; what is in its handshake then is dropped."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(listening)
                except OSError:  # it left again, or there are no descriptors
                    await asyncio.sleep(PAUSE_S)
                    continue
                source = source_of(peer[0])
                self._make_room(source)
                task = loop.create_task(self._shake(loop, connection))
                self._under_way[task] = source
                task.add_done_callback(partial(self._done, connection))
        finally:
            for task in list(self._under_way):
                task.cancel()

    async def _shake(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        await loop.connect_accepted_socket(
            self._protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
        )

    def _done(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        """Forget a handshake that is over; one that failed, or was dropped before it began, leaves nothing open."""
        self._under_way.pop(task, None)
        if task.cancelled() or task.exception() is not None:
            connection.close()

    def _make_room(self, source: str) -> None:
        same = [task for task, whose in self._under_way.items() if whose == source]
        if len(same) >= MAX_HANDSHAKES_PER_SOURCE:
            self._drop(same[0])
        elif len(self._under_way) >= MAX_HANDSHAKES:
            self._drop(next(iter(self._under_way)))

    def _drop(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)
        task.cancel()
