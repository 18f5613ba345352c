"""The process through which a program reaches the servers that its manifest names. It has no key of any file.

It listens in the program's network and stays on the host's: the host says what a name means, and carries the bytes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from adyton.errors import SandboxFailed
from adyton.runtime import program_network
from adyton.runtime.network_process import Event, NetworkProcess
from adyton.runtime.resolver_config import inside_addresses

if TYPE_CHECKING:
    from adyton.manifest.egress import Egress

_BACKLOG: Final = 128


def start(servers: Sequence[Egress], network: int) -> NetworkProcess:
    """Fork the process. Returns once its ports listen in the program's network. Raises SandboxFailed."""
    listeners = program_network.within(network, lambda: _listen(servers))

    def serve(event: Event, ready: Callable[[], None]) -> None:
        asyncio.run(_serve(servers, listeners, event, ready))

    try:
        return NetworkProcess.start("egress", serve)
    finally:
        for listener in listeners:
            listener.close()


def _listen(servers: Sequence[Egress]) -> list[socket.socket]:
    addresses = inside_addresses(servers)
    found: list[socket.socket] = []
    for one in servers:
        try:
            listener = socket.socket()
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((addresses[one.name], one.port))
            listener.listen(_BACKLOG)
        except OSError as error:
            for made in found:
                made.close()
            raise SandboxFailed(
                f"the egress {one.name} cannot listen in the program's network: {error.strerror}",
                check=f"port of the egress {one.name}",
                expected="a free port of the program's network",
                seen=str(error.strerror),
            ) from error
    return found


async def _serve(
    servers: Sequence[Egress], listeners: Sequence[socket.socket], event: Event, ready: Callable[[], None]
) -> None:
    from adyton.endpoint.egress import Egress as Way

    async with AsyncExitStack() as stack:
        for one, listener in zip(servers, listeners, strict=True):
            way = Way((one.host, one.port), one.ca, max_connections=one.max_connections, note=event)
            await stack.enter_async_context(way.serving(listener))
        ready()
        await asyncio.Event().wait()
