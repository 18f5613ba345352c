"""A live server among hostile clients: noise at every layer, at random; an approved program still gets its key."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable

import pytest

from adyton.release import secret_provisioning
from adyton.release.messages import PATH_CHALLENGE, PATH_RELEASE, PATH_USED, challenge_request
from adyton.release.tls import client_context, use_certificate
from adyton.server.listener import Limits
from tests.support.owner_world import RA_TLS, Running, World, running
from tests.support.release_by_hand import Logged, credential, obtain, release_message, wait_until

ROUNDS = 120


def hello(world: World, name: str) -> bytes:
    """The first bytes of a TLS client that asks for this server name."""
    outgoing = ssl.MemoryBIO()
    client = client_context(world.ca_pem).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


class Hostile:
    """One client after another, each doing something else that no client should."""

    def __init__(self, world: World, server: Running, seed: int) -> None:
        self._world = world
        self._addresses = (server.adyton, server.ra_tls)
        self._random = random.Random(seed)
        self._pair = credential(world, world.program())
        self.held: list[socket.socket] = []

    def act(self) -> None:
        """One thing."""
        choices: tuple[Callable[[], None], ...] = (self.noise, self.broken_hello, self.speak, self.ask_for_names)
        with contextlib.suppress(OSError, ssl.SSLError):
            self._random.choice(choices)()

    def noise(self) -> None:
        """Bytes that are no TLS, or look like it at first."""
        head = self._random.choice((b"", b"\x16\x03\x01", b"\x16\x03\x03\x00\x40", b"GET / HTTP/1.1\r\n"))
        self._say(self._plain(), head + self._random.randbytes(self._random.randrange(300)))

    def broken_hello(self) -> None:
        """A ClientHello that is cut, or has one byte changed."""
        raw = bytearray(hello(self._world, self._random.choice(("adyton-key-server", "x" * 60, "1.2.3.4"))))
        raw[self._random.randrange(len(raw))] ^= 1 << self._random.randrange(8)
        self._say(self._plain(), bytes(raw[: self._random.randrange(1, len(raw) + 1)]))

    def speak(self) -> None:
        """Something of either protocol, cut, changed, or not at all, after a handshake."""
        number = self._random.randrange(2)
        connection = self._secure(number, "adyton-key-server")
        body = challenge_request()
        path = self._random.choice((PATH_CHALLENGE, PATH_RELEASE, PATH_USED, "/adyton/v4/explain/d-1", "/healthz", "/"))
        if path == PATH_RELEASE and number == 0:
            body = release_message(self._world, connection, self._world.program())
        length = self._random.choice((len(body), len(body) + 1, 0, 1 << 40))
        message = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + body
        if number == 1:
            message = secret_provisioning.REQUEST + secret_provisioning.REQUEST
        raw = bytearray(message[: self._random.randrange(len(message) + 1)])
        if raw and self._random.random() < 0.5:
            raw[self._random.randrange(len(raw))] ^= 1 << self._random.randrange(8)
        self._say(connection, bytes(raw))

    def ask_for_names(self) -> None:
        """Server names that no server has."""
        label = "".join(self._random.choices("abc_0", k=self._random.randrange(60)))
        name = self._random.choice((f"a{label}.keys.adyton-key-server", f"a{label}", "keys.adyton-key-server"))
        self._say(self._secure(1, name), secret_provisioning.REQUEST)

    def _plain(self) -> socket.socket:
        host, _, port = self._random.choice(self._addresses).rpartition(":")
        return socket.create_connection((host, int(port)), timeout=5)

    def _secure(self, number: int, name: str) -> ssl.SSLSocket:
        context = client_context(self._world.ca_pem)
        context.check_hostname = False
        if number == 1:
            use_certificate(context, *self._pair)
        host, _, port = self._addresses[number].rpartition(":")
        plain = socket.create_connection((host, int(port)), timeout=5)
        try:
            return context.wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise

    def _say(self, connection: socket.socket, raw: bytes) -> None:
        """Send in pieces; then leave at once, leave in order, or stay."""
        try:
            while raw:
                size = self._random.randrange(1, 1 + len(raw))
                connection.sendall(raw[:size])
                raw = raw[size:]
        finally:
            how = self._random.randrange(3)
            if how == 0:
                self.held.append(connection)
            else:
                if how == 1:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                connection.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_clients_at_random_harm_nobody(world: World, seed: int) -> None:
    """After all of it, and while some still stay, keys are released over both protocols and nothing failed inside."""
    signed = world.program(tables=RA_TLS)
    world.approve(signed, protocols=("adyton", "ra-tls"))
    limits = Limits(
        first_byte_timeout_s=4, handshake_timeout_s=6, request_timeout_s=6, idle_timeout_s=4, connection_timeout_s=15
    )
    with running(world, limits=limits) as server, Logged("adyton.keyserver", "asyncio") as logged:
        hostile = Hostile(world, server, seed)
        for number in range(ROUNDS):
            hostile.act()
            if number % 40 == 39:
                for protocol in ("adyton", "ra-tls"):
                    assert obtain(world, server, signed, protocol=protocol).keys
        wait_until(lambda: server.server.counters.open == 0, within_s=60)
        for connection in hostile.held:
            connection.close()
        assert server.server.counters.active == 0
        assert server.server.service.is_ready()
        for protocol in ("adyton", "ra-tls"):
            assert obtain(world, server, signed, protocol=protocol).keys
    assert logged.errors == []
    world.store.verify_audit()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed (apt-get install openssl)")
@pytest.mark.parametrize("command", [b"K\n", b"R\n"], ids=["key update", "renegotiation"])
def test_tls_endless_key_updates_end_in_time(world: World, command: bytes) -> None:
    """Key updates are no request: who sends nothing else is dropped, and others are served meanwhile."""
    signed = world.program()
    world.approve(signed)
    with running(world, limits=Limits(idle_timeout_s=1.5)) as server:
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", server.adyton, "-CAfile", str(world.home.ca_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert client.stdin is not None
        try:
            wait_until(lambda: server.server.counters.active == 1)
            for _ in range(50):
                with contextlib.suppress(OSError):
                    client.stdin.write(command)
                    client.stdin.flush()
            assert obtain(world, server, signed).keys
            wait_until(lambda: server.server.counters.open == 0)
        finally:
            client.kill()
            with contextlib.suppress(OSError):
                client.stdin.close()
            client.wait()
