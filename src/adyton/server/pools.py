"""Threads beside the sockets' own, a pool for each kind of work: no kind can take the threads of another.

What waits in a pool is bounded; one more is turned away at once, and told to come again.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from adyton.keyserver.public_errors import busy

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("adyton.keyserver")

Result = TypeVar("Result")

READY_WAIT_S: Final = 5.0


class Pool:
    """A few threads for one kind of work, and a bounded number of callers who wait for them."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        self._name = name
        self._most = threads + waiting
        self._inside = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises; raises Unavailable where too many wait already."""
        if self._inside >= self._most:
            raise busy(
                "the key server is overloaded", check=f"{self._name} at a time", expected=self._most, seen="more"
            )
        self._inside += 1
        future = asyncio.wrap_future(self._threads.submit(work))
        future.add_done_callback(self._left)
        return await asyncio.shield(future)

    def _left(self, future: asyncio.Future[Result]) -> None:
        """A thread is free again, also where whoever waited has gone; what it failed with is then nobody's."""
        self._inside -= 1
        if not future.cancelled():
            future.exception()

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Readiness:
    """Whether the server is ready, looked up by one thread of its own and once for all who ask."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._looking: asyncio.Future[bool] | None = None

    async def ask(self) -> bool:
        """Whether it is; no where that cannot be known within five seconds."""
        if self._looking is None:
            self._looking = asyncio.wrap_future(self._thread.submit(self._look))
            self._looking.add_done_callback(self._found)
        try:
            async with asyncio.timeout(READY_WAIT_S):
                return await asyncio.shield(self._looking)
        except Exception as error:
            log.warning("readiness is not known", extra={"reason": repr(error)[:200]})
            return False

    def _found(self, looking: asyncio.Future[bool]) -> None:
        self._looking = None
        if not looking.cancelled():
            looking.exception()

    def close(self) -> None:
        """Look no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
