"""Keep the newest checkpoint of the audit record beside the store. A failure is logged, and tried again."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from adyton.errors import Error

if TYPE_CHECKING:
    from adyton.keyserver.service import KeyService
    from adyton.keystore.home import Home

log = logging.getLogger("adyton.keyserver")

EVERY_S: Final = 2


class Checkpoints:
    """Keeps the checkpoint of one server."""

    def __init__(self, home: Home, service: KeyService) -> None:
        self._home = home
        self._service = service
        self._last = -1
        self._failing = False
        self.kept_at: float | None = None
        """The last time when the checkpoint beside the store was known to be the newest (seconds since 1970)."""

    async def run(self) -> None:
        """Write checkpoints until cancelled."""
        while True:
            await asyncio.to_thread(self.keep)
            await asyncio.sleep(EVERY_S)

    def keep(self) -> None:
        """Write the newest checkpoint, if it has changed."""
        try:
            checkpoint = self._service.checkpoint()
            if checkpoint.seq != self._last:
                self._home.keep_checkpoint(checkpoint)
                self._last = checkpoint.seq
        except Exception as error:
            if not self._failing:
                reason = error.message if isinstance(error, Error) else repr(error)
                log.exception("the checkpoint beside the store is not kept", extra={"reason": reason})
            self._failing = True
            return
        self._failing = False
        self.kept_at = time.time()
