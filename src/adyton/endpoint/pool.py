"""Verified connections that wait for their next request, so that not each request pays for evidence."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.errors import Error

if TYPE_CHECKING:
    from adyton.endpoint.dial import Dialler, Verified

MAX_IDLE: Final = 32


@dataclass(slots=True)
class _Idle:
    connection: Verified
    watch: asyncio.Task[bytes]
    """Ends when the peer closes, or says something without being asked."""


class Pool:
    """Idle connections to one ingress. Each was verified by itself, and is used by one request at a time."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._idle: list[_Idle] = []
        self._closed = False

    async def lease(self) -> tuple[Verified, bool]:
        """A verified connection, and whether it was used before. Raises what `Dialler.dial` raises."""
        while self._idle:
            idle = self._idle.pop()
            if await _still_quiet(idle) and idle.connection.proved.valid_until > datetime.now(UTC):
                return idle.connection, True
            await idle.connection.stream.close()
        return await self._dialler.dial(), False

    async def give_back(self, connection: Verified) -> None:
        """Keep a connection on which nothing is under way."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            await connection.stream.close()
            return
        self._idle.append(_Idle(connection, asyncio.ensure_future(connection.stream.read(1))))

    async def close(self) -> None:
        """Close all idle connections, and keep no more."""
        self._closed = True
        for idle in self._idle:
            await _still_quiet(idle)
            await idle.connection.stream.close()
        self._idle.clear()


async def _still_quiet(idle: _Idle) -> bool:
    quiet = not idle.watch.done()
    idle.watch.cancel()
    with contextlib.suppress(asyncio.CancelledError, Error, OSError):
        await idle.watch
    return quiet
