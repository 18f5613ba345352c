"""An owner's world and her dashboard, as strangers reach it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from adyton.collateral.store import CollateralStore
from adyton.server.dashboard.serve import PASSWORD_FILE, DashboardThread
from tests.support.owner_world import World, make_world

Connect = Callable[..., ssl.SSLSocket]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform."""
    with make_world(tmp_path) as found:
        yield found


@pytest.fixture
def page(world: World) -> Iterator[str]:
    """The dashboard's address; it listens for every address of this machine."""
    thread = DashboardThread(world.home, world.store, CollateralStore(world.home.collateral_path), "0.0.0.0", 0)
    yield f"https://127.0.0.1:{thread.address[1]}"
    thread.stop()


@pytest.fixture
def password(world: World, page: str) -> str:
    """The owner's password."""
    return (world.home.path / PASSWORD_FILE).read_text().strip()


@pytest.fixture
def browser(page: str) -> Iterator[Callable[[str], httpx.Client]]:
    """Makes a browser at an address of its own."""
    made: list[httpx.Client] = []

    def make(address: str) -> httpx.Client:
        transport = httpx.HTTPTransport(verify=False, local_address=address)
        made.append(httpx.Client(base_url=page, transport=transport, timeout=30))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def connect(page: str) -> Iterator[Connect]:
    """Makes bare TLS connections to the dashboard."""
    made: list[ssl.SSLSocket] = []

    def make(source: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        chosen = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        chosen.check_hostname = False
        chosen.verify_mode = ssl.CERT_NONE
        port = int(page.rpartition(":")[2])
        plain = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
        made.append(chosen.wrap_socket(plain))
        return made[-1]

    yield make
    for connection in made:
        connection.close()
