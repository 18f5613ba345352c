"""Where local programs connect to: a loopback address or a Unix socket, and nowhere that other machines reach."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.address import address_text, parse_listening_address
from adyton.endpoint.channel import READ_BYTES
from adyton.endpoint.http_door import HTTPDoor
from adyton.endpoint.tcp_door import TCPDoor
from adyton.errors import Error, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from adyton.endpoint.dial import Dialler
    from adyton.endpoint.pool import Pool

_UNIX: Final = "unix:"


class LocalDoor:
    """A local address, HOST:PORT of loopback or `unix:PATH`. Raises UsageError for any other."""

    def __init__(self, listen: str, tcp: bool) -> None:
        self.tcp = tcp
        self.path = Path(listen[len(_UNIX) :]) if listen.startswith(_UNIX) else None
        self.address = ("", 0)
        if self.path is None:
            self.address = parse_listening_address(listen, "--listen")
            _require_loopback(self.address[0])

    @contextlib.asynccontextmanager
    async def open(self, dialler: Dialler, pool: Pool, refused: Callable[[Error], None]) -> AsyncIterator[str]:
        """Listen within the context. Gives the address as a program writes it."""
        tasks: set[asyncio.Task[None]] = set()
        hosts: set[str] = set()

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            door = (
                TCPDoor(dialler, refused)
                if self.tcp
                else HTTPDoor(pool, None if self.path else frozenset(hosts), refused)
            )
            task = asyncio.ensure_future(door.serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if self.path is None:
            server = await asyncio.start_server(take, *self.address, limit=READ_BYTES)
            port = server.sockets[0].getsockname()[1]
            shown = address_text((self.address[0], port))
            hosts |= {shown.lower(), f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}
        else:
            _remove_socket(self.path)
            before = os.umask(0o177)
            try:
                server = await asyncio.start_unix_server(take, self.path, limit=READ_BYTES)
            finally:
                os.umask(before)
            shown = f"{_UNIX}{self.path}"
        try:
            yield shown
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.path is not None:
                self.path.unlink(missing_ok=True)


def _require_loopback(host: str) -> None:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost":
        return
    raise UsageError(
        "the local door has no authentication, so other machines must not reach it",
        check="--listen",
        expected="127.0.0.1:PORT, [::1]:PORT, localhost:PORT or unix:PATH",
        seen=host,
        remedy="run `adyton connect` on each machine whose programs use the endpoint",
    )


def _remove_socket(path: Path) -> None:
    """Remove the socket of an earlier run. Raises UsageError where something else has the name."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} exists and is no socket", check="--listen", expected="a free path", seen=str(path))
    path.unlink()
