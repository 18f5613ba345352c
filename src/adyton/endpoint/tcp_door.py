"""The local door for any protocol: each connection of a local program gets a verified one of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from adyton.endpoint.stream import PlainStream, join
from adyton.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.endpoint.dial import Dialler


class TCPDoor:
    """Carries bytes. It knows nothing of HTTP, so it cannot tell a web page's request from a program's."""

    def __init__(self, dialler: Dialler, refused: Callable[[Error], None]) -> None:
        self._dialler = dialler
        self._refused = refused

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one local connection. A refusal cuts it: no byte of it goes anywhere."""
        local = PlainStream(reader, writer)
        try:
            verified = await self._dialler.dial()
        except Error as error:
            self._refused(error)
            local.abort()
            return
        except BaseException:
            local.abort()
            raise
        try:
            await join(verified.stream, local)
        except (Error, OSError):
            local.abort()
        finally:
            await verified.stream.close()
            await local.close()
