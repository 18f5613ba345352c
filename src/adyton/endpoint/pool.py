"""Verified connections that wait for their next request, so that not each request pays for evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from adyton.endpoint.dial import Dialler, Verified

MAX_IDLE: Final = 32


class Pool:
    """Idle connections to one ingress. Each was verified by itself, and is used by one request at a time.

    An idle connection is read from, so that it is known when the peer closes it, or says something without being asked.
    """

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._idle: list[Verified] = []
        self._closed = False

    async def lease(self) -> tuple[Verified, bool]:
        """A verified connection, and whether it was used before. Raises what `Dialler.dial` raises."""
        while self._idle:
            idle = self._idle.pop()
            if idle.stream.quiet and idle.proved.valid_until > datetime.now(UTC):
                return idle, True
            await idle.stream.close()
        return await self._dialler.dial(), False

    async def give_back(self, connection: Verified) -> None:
        """Keep a connection on which nothing is under way."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            await connection.stream.close()
            return
        connection.stream.read_ahead()
        self._idle.append(connection)

    async def close(self) -> None:
        """Close all idle connections, and keep no more."""
        self._closed = True
        while self._idle:
            await self._idle.pop().stream.close()
