"""Worker threads, with a pool for each kind of work, so that no kind can take the threads of another.

A pool has a limit on waiting callers. Further ones are refused at once and told to try again.
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
    """A few threads for one kind of work, and a limited number of waiting callers."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        self._name = name
        self._most = threads + waiting
        self._inside = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the pool, and return its result. Raises Unavailable where too many wait."""
        if self._inside >= self._most:
            raise busy(
                "the key server is overloaded", check=f"{self._name} at a time", expected=self._most, seen="more"
            )
        self._inside += 1
        future = asyncio.wrap_future(self._threads.submit(work))
        future.add_done_callback(self._left)
        return await asyncio.shield(future)

    def _left(self, future: asyncio.Future[Result]) -> None:
        """Count a thread as free, also where the caller has gone. Its error is then dropped."""
        self._inside -= 1
        if not future.cancelled():
            future.exception()

    def close(self) -> None:
        """Start no further work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Readiness:
    """Readiness of the server, tested by one thread and once for all callers."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._looking: asyncio.Future[bool] | None = None

    async def ask(self) -> bool:
        """Whether the server is ready. False where the test takes more than five seconds."""
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
        """Stop testing."""
        self._thread.shutdown(wait=False, cancel_futures=True)
