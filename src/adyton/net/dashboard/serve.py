"""The dashboard in a thread of its own, so that a page never keeps a key waiting."""

from __future__ import annotations

import asyncio
import base64
import secrets
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Final

import uvicorn

from adyton.errors import Unavailable
from adyton.keyserver.wrapping import read_private_file, write_private_file
from adyton.net.dashboard.app import Dashboard
from adyton.net.dashboard.patience import PatientProtocol

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.applications import Starlette

    from adyton.keyserver.owner import Home
    from adyton.keyserver.store import Store
    from adyton.net.collateral_store import CollateralStore

MAX_CONCURRENT: Final = 64
PASSWORD_FILE: Final = "dashboard.password"  # noqa: S105 - a file's name


def password_of(home: Home) -> bytes:
    """The dashboard's password; made on first use, 120 random bits, in a file that only the owner reads."""
    path: Path = home.path / PASSWORD_FILE
    if not path.exists():
        write_private_file(path, base64.b32encode(secrets.token_bytes(15)).lower() + b"\n")
    return read_private_file(path, PASSWORD_FILE).strip()


class DashboardThread:
    """The dashboard listening on an address of its own, over TLS."""

    def __init__(self, home: Home, store: Store, collateral: CollateralStore, host: str, port: int) -> None:
        dashboard = Dashboard(store, collateral, password_of(home), home.config.name)
        self._socket = _listen(host, port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._server = uvicorn.Server(_config(home, dashboard.application()))
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def stop(self) -> None:
        """Finish what is under way and end the thread."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def _config(home: Home, application: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONCURRENT,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16 * 1024,
        ssl_certfile=str(home.path / "server.crt"),
        ssl_keyfile=str(home.path / "server.key"),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
    )


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
