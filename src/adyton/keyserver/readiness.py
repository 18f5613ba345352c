"""Readiness of the store. Anybody may ask, so an answer is cached for a second and costs no write."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from adyton.errors import Error

if TYPE_CHECKING:
    from adyton.keystore.store import Store

log = logging.getLogger("adyton.keyserver")

KEPT_S: Final = 1.0


class Readiness:
    """Tests the store: reads it, and writes only if the last decision could not be recorded. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failing = False
        self._works = True
        self._looked_at: float | None = None
        self._looking = threading.Lock()

    def note(self, *, works: bool) -> None:
        """Note whether the last decision could be recorded."""
        if works is self._failing:
            self._failing = not works
            self._works = works
            self._looked_at = None

    def works(self) -> bool:
        """Whether the store can be used. While one caller tests it, the others get the last result."""
        if not self._looking.acquire(blocking=False):
            return self._works
        try:
            if self._looked_at is None or time.monotonic() - self._looked_at > KEPT_S:
                self._works = self._look()
                self._looked_at = time.monotonic()
            return self._works
        finally:
            self._looking.release()

    def _look(self) -> bool:
        try:
            if self._failing:
                with self._store.write():
                    pass
                self._failing = False
            else:
                with self._store.read() as view:
                    view.head()
        except Error as error:
            log.warning("the store does not work", extra={"reason": error.message})
            return False
        return True
