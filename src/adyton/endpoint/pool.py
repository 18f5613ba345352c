"""Verified connections that wait for their next request, so that not each request pays for evidence."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.endpoint.dial import MAX_DIALS

if TYPE_CHECKING:
    from adyton.endpoint.dial import Dialler, Verified

MAX_IDLE: Final = 64


class Pool:
    """Idle connections to one ingress. Each was verified by itself, and is used by one request at a time.

    An idle connection is read from, so that it is known when the peer closes it, or says something without being asked.
    A request that finds none gets whatever comes first: one that another request gives back, or a new one.
    """

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._idle: list[Verified] = []
        self._waiting: deque[asyncio.Future[tuple[Verified, bool]]] = deque()
        self._dials: set[asyncio.Task[None]] = set()
        self._closed = False

    async def lease(self) -> tuple[Verified, bool]:
        """A verified connection, and whether it was used before. Raises what `Dialler.dial` raises."""
        while self._idle:
            idle = self._idle.pop()
            if idle.stream.quiet and _is_trusted(idle):
                return idle, True
            await idle.stream.close()
        if self._closed:
            return await self._dialler.dial(), False
        waiting: asyncio.Future[tuple[Verified, bool]] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._dial()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                await self.give_back(waiting.result()[0])  # it came just when nobody wanted it any more
            raise

    async def give_back(self, connection: Verified) -> None:
        """Keep a connection on which nothing is under way, or hand it to the request that waits longest."""
        usable = connection.stream.quiet and _is_trusted(connection) and not self._closed
        waiting = self._next() if usable else None
        if not usable or (waiting is None and len(self._idle) >= MAX_IDLE):
            await connection.stream.close()
            return
        connection.stream.read_ahead()
        if waiting is None:
            self._idle.append(connection)
        else:
            waiting.set_result((connection, True))

    async def close(self) -> None:
        """Close all idle connections, and keep no more."""
        self._closed = True
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        while (waiting := self._next()) is not None:
            waiting.cancel()
        while self._idle:
            await self._idle.pop().stream.close()

    def _next(self) -> asyncio.Future[tuple[Verified, bool]] | None:
        """The request that waits longest."""
        while self._waiting:
            found = self._waiting.popleft()
            if not found.done():
                return found
        return None

    def _dial(self) -> None:
        """Have as many dials under way as requests wait, up to the limit."""
        while not self._closed and len(self._dials) < min(len(self._waiting), MAX_DIALS):
            dial = asyncio.ensure_future(self._dial_one())
            self._dials.add(dial)
            dial.add_done_callback(self._dialled)

    def _dialled(self, dial: asyncio.Task[None]) -> None:
        self._dials.discard(dial)
        self._dial()

    async def _dial_one(self) -> None:
        try:
            made = await self._dialler.dial()
        except Exception as error:
            waiting = self._next()
            if waiting is not None:
                waiting.set_exception(error)
            return
        waiting = self._next()
        if waiting is None:
            await self.give_back(made)
        else:
            waiting.set_result((made, False))


def _is_trusted(connection: Verified) -> bool:
    return connection.proved.valid_until > datetime.now(UTC)
