"""The outermost layer of the dashboard. An unexpected exception becomes one log line without values.

A traceback's last line may quote the input of a client or of the owner, or the parameters of a database. So the log has
only the class of the exception and its place.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("adyton.keyserver")

MAX_FRAMES: Final = 4


class Shield:
    """Lets an application answer, and answers 500 where it raised instead."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; never raises an Exception."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._application(scope, receive, watched)
        except Exception as error:
            facts = {"error": type(error).__name__, "where": _where(error)}
            log.error("the dashboard failed", extra=facts)  # noqa: TRY400 - its text may quote a secret
            if not begun:
                await send({"type": "http.response.start", "status": 500, "headers": [(b"connection", b"close")]})
                await send({"type": "http.response.body", "body": b""})


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
