"""The queue of requests, and the one thread that decides them in batches."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.keyserver.stages import Answered, Received

log = logging.getLogger("adyton.keyserver")

MAX_BATCH: Final = 64
MAX_WAITING: Final = 2000
"""Most requests in the queue. Further ones are refused."""

IDLE_S: Final = 5.0

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A request, and the future of its answer."""

    received: Received
    future: Future[Answered] = field(default_factory=Future)
    has_waited: bool = False
    """Whether it waited for collateral already. It waits once at most."""

    def claim(self) -> bool:
        """Mark the request as running. False where its client no longer waits."""
        if self.future.done():
            return False
        return self.future.running() or self.future.set_running_or_notify_cancel()


class DecisionQueue(Generic[Item]):
    """A bounded queue, and the thread that empties it. An error in a batch does not end the thread.

    `work` gets up to 64 items at a time, in the order of their arrival. `idle` is called after a while without items.
    """

    def __init__(self, work: Callable[[list[Item]], None], idle: Callable[[], None]) -> None:
        self._work = work
        self._idle = idle
        self._waiting: queue.Queue[Item | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> bool:
        """Add an item. False where the queue is full."""
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            return False
        return True

    @property
    def waiting(self) -> int:
        """The number of waiting items."""
        return self._waiting.qsize()

    @property
    def is_full(self) -> bool:
        """Whether the queue is full."""
        return self._waiting.qsize() >= MAX_WAITING

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish the waiting items, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            batch, going = self._next()
            try:
                self._work(batch) if batch else self._idle()
            except Exception:
                log.exception("internal error between decisions")

    def _next(self) -> tuple[list[Item], bool]:
        """The next items, and whether more may come. No items after a while without any."""
        batch: list[Item] = []
        try:
            item = self._waiting.get(timeout=IDLE_S)
            while item is not None:
                batch.append(item)
                if len(batch) == MAX_BATCH:
                    return batch, True
                item = self._waiting.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False
