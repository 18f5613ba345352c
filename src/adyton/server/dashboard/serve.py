"""The dashboard in a thread of its own, so that a page never keeps a key waiting."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from adyton.atomic_file import write_private_file
from adyton.capped_read import read_private_file
from adyton.errors import Unavailable, UsageError
from adyton.keyserver.consent import mine
from adyton.release.tls import server_context
from adyton.server.dashboard.accepting import Accepting
from adyton.server.dashboard.app import Dashboard
from adyton.server.dashboard.http_timeouts import TimeoutProtocol
from adyton.server.dashboard.shield import Shield

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from adyton.collateral.store import CollateralStore
    from adyton.keystore.home import Home
    from adyton.keystore.store import Store

LEAST_PASSWORD_BYTES: Final = 20
PASSWORD_FILE: Final = "dashboard.password"  # noqa: S105 - a file's name


def password_of(home: Home) -> bytes:
    """The dashboard's password; made on first use, 120 random bits, in a file that only the owner reads."""
    path: Path = home.path / PASSWORD_FILE
    if not path.exists():
        write_private_file(path, base64.b32encode(secrets.token_bytes(15)).lower() + b"\n")
    found = read_private_file(path, PASSWORD_FILE).strip()
    if len(found) < LEAST_PASSWORD_BYTES:
        raise UsageError(
            "the dashboard's password is so short that it can be guessed",
            check=PASSWORD_FILE,
            expected=f"at least {LEAST_PASSWORD_BYTES} random characters",
            seen=f"{len(found)} characters",
            remedy=f"remove {path}: adyton serve makes a good one",
        )
    return found


class DashboardThread:
    """The dashboard listening on an address of its own, over TLS."""

    def __init__(self, home: Home, store: Store, collateral: CollateralStore, host: str, port: int) -> None:
        dashboard = Dashboard(store, collateral, password_of(home), home.config.name, mine(home))
        context = server_context(home.path / "server.crt", home.path / "server.key", client_certificate=False)
        self._socket = _listen(host, port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._server = _Server(_config(dashboard), context)
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def stop(self) -> None:
        """Finish what is under way and end the thread."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which takes its connections through `accepting`: TLS 1.3 only, and bounded before it."""

    def __init__(self, config: uvicorn.Config, context: ssl.SSLContext) -> None:
        super().__init__(config)
        self._context = context
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup([])
        accepting = Accepting(self._protocol, self._context)
        for listening in sockets or []:
            self._accepting = asyncio.create_task(accepting.run(listening))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and finish what is under way."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made


def _config(dashboard: Dashboard) -> uvicorn.Config:
    class Protocol(TimeoutProtocol):
        recognise = staticmethod(dashboard.recognises)

    config = uvicorn.Config(
        Shield(dashboard.application()),
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16 * 1024,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # bad requests are not logged
    return config


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        raise Unavailable(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            check="listening address (dashboard)",
            expected="an address of this machine and a free port",
            seen=f"{host}:{port}",
            remedy="stop what listens there, or name another port (0 takes any)",
        ) from error
    return listening
