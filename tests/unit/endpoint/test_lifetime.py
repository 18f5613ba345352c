"""How long the trust in a proof lasts: for the next request, for what is under way, over a change of the TLS key."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from adyton.endpoint.http_door import HTTPDoor
from adyton.endpoint.pool import Pool
from adyton.endpoint.tcp_door import TCPDoor
from adyton.errors import Error
from tests.unit.endpoint.test_http_door import web
from tests.unit.endpoint.world import Verifier, dialler, echo, ingress_before, listening

if TYPE_CHECKING:
    from adyton.endpoint.ingress import Ingress

SHORT = timedelta(seconds=0.6)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program that sends events without end, after any head of a request."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while True:
        writer.write(b"data: x\n\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def ask_without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One byte and its answer, again and again."""
    while True:
        writer.write(b"a")
        await writer.drain()
        assert await reader.readexactly(1) == b"A"
        await asyncio.sleep(0.01)


def test_bytes_in_use_are_cut_when_the_trust_ends() -> None:
    """With --tcp: a connection over which bytes pass all the time is reset, and the next one is verified again."""

    async def run() -> None:
        verify = Verifier(use=SHORT)
        refused: list[Error] = []
        async with listening(echo) as program, ingress_before(program) as address:
            tcp = TCPDoor(dialler(address, verify), refused.append)
            async with listening(tcp.serve) as door:
                for number in (1, 2):
                    reader, writer = await asyncio.open_connection(*door)
                    began = asyncio.get_running_loop().time()
                    with pytest.raises(ConnectionError):
                        await ask_without_end(reader, writer)
                    assert 0.4 < asyncio.get_running_loop().time() - began < 5
                    assert verify.calls == number
                    writer.transport.abort()
        assert refused == []

    asyncio.run(asyncio.wait_for(run(), 30))


def test_endless_response_is_cut_when_the_trust_ends() -> None:
    """A local program sees a reset, and never the end of a whole response."""

    async def run() -> None:
        async with listening(endless) as program, ingress_before(program) as address:
            pool = Pool(dialler(address, Verifier(use=SHORT)))
            async with listening(HTTPDoor(pool, None, lambda _error: None).serve) as door:
                reader, writer = await asyncio.open_connection(*door)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                with pytest.raises(ConnectionError):
                    await reader.read()
                writer.transport.abort()
            await pool.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_next_request_after_the_trust_is_verified_again() -> None:
    """No request fails: each one after the end of trust gets a new connection, and those before share one."""

    async def run() -> None:
        verify = Verifier(lifetime=SHORT)
        async with listening(web) as program, ingress_before(program) as address:
            pool = Pool(dialler(address, verify))
            async with listening(HTTPDoor(pool, None, lambda _error: None).serve) as door:
                reader, writer = await asyncio.open_connection(*door)
                for calls in (1, 1, 2, 3):
                    if calls > 1:
                        await asyncio.sleep(0.7)
                    writer.write(b"GET /ask HTTP/1.1\r\nHost: x\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200"), head
                    assert await reader.readexactly(len(b"GET /ask ")) == b"GET /ask "
                    assert verify.calls == calls
                writer.transport.abort()
            await pool.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_change_of_the_tls_key_fails_no_request() -> None:
    """Many local programs ask all the time while the ingress makes new keys. Old connections go on."""

    async def run() -> None:
        verify = Verifier()
        made: list[Ingress] = []
        answered = 0
        stop = asyncio.Event()

        async def ask(door: tuple[str, int]) -> None:
            nonlocal answered
            while not stop.is_set():
                reader, writer = await asyncio.open_connection(*door)
                for _ in range(3):
                    writer.write(b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200"), head
                    assert await reader.readexactly(len(b"POST /ask hi")) == b"POST /ask hi"
                    answered += 1
                writer.transport.abort()

        async with listening(web) as program, ingress_before(program, made=made) as address:
            pool = Pool(dialler(address, verify))
            async with listening(HTTPDoor(pool, None, lambda _error: None).serve) as door:
                programs = [asyncio.ensure_future(ask(door)) for _ in range(6)]
                while answered <= 50 or verify.calls <= 10:
                    await asyncio.sleep(0.05)
                    made[0].renew()
                    while pool._idle:  # so that new connections are made, too
                        connection, _ = await pool.lease()
                        await connection.stream.close()
                stop.set()
                await asyncio.gather(*programs)
            await pool.close()

    asyncio.run(asyncio.wait_for(run(), 300))
