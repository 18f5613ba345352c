"""A program's way out: to the one server that is named, under the one CA that is pinned, and to nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from adyton.endpoint import egress
from adyton.endpoint.egress import Egress
from adyton.endpoint.pinned_tls import PinnedStream, pinned_context
from tests.support.tls_factory import CLIENT, DAY, Pair, make_ca, make_leaf, server_context
from tests.unit.endpoint.world import echo, free_socket, listening

NAME = "localhost"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A TLS server on loopback that notes what it got in clear."""

    def __init__(self, context: ssl.SSLContext, serve: Serve = echo) -> None:
        self.context = context
        self.serve = serve
        self.got = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Its port."""

        async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.got += 1  # asyncio calls this after the handshake
            with contextlib.suppress(OSError):
                await self.serve(reader, writer)

        server = await asyncio.start_server(counted, NAME, 0, ssl=self.context, family=socket.AF_INET)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


@contextlib.asynccontextmanager
async def way(
    port: int, ca: str | None, notes: list[str], *, host: str = NAME, most: int = 64, idle_s: float = 60.0
) -> AsyncIterator[tuple[str, int]]:
    """The address inside."""
    listener = free_socket()
    made = Egress((host, port), ca, max_connections=most, note=notes.append, idle_s=idle_s)
    async with made.serving(listener):
        yield listener.getsockname()[:2]


async def asked(address: tuple[str, int], text: bytes) -> bytes:
    """What a program gets for this text. Raises ConnectionError where its connection is reset."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(text)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [5, 3_000_000])
def test_program_speaks_in_clear_and_the_wire_is_tls(tmp_path: Path, version: ssl.TLSVersion, size: int) -> None:
    """What the program sends comes back whole, in both versions of TLS."""
    ca = make_ca("theirs")
    notes: list[str] = []

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(size)
        writer.write(data.upper())
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = Server(server_context(tmp_path, make_leaf(ca, NAME), version=version), whole)
        async with server.running() as port, way(port, ca.pem, notes) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"a" * size)
            assert await reader.read(-1) == b"A" * size
            writer.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert notes == []


class ServerInMemory:
    """The other end of a `PinnedStream`: what it writes lies ready, and nothing passes by itself."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def read(self, size: int) -> bytes:
        """What the client gets next."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read(size)

    def write(self, data: bytes) -> None:
        """What the client sent."""
        self._incoming.write(data)

    async def drain(self) -> None:
        """There is room at any time."""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_program_may_end_its_side_while_an_answer_comes(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """What came before its end and was not read yet is not lost, nor what comes after it."""
    ca = make_ca("theirs")
    server = ServerInMemory(server_context(tmp_path, make_leaf(ca, NAME), version=version))

    async def run() -> bytes:
        stream = await PinnedStream.open(server, server, pinned_context(ca.pem), NAME)  # type: ignore[arg-type]
        await stream.write(b"question")
        assert server.tls.read() == b"question"
        server.tls.write(b"A" * 60_000)
        found = await stream.read(100)  # the rest of it lies in the client now
        await stream.end()
        assert server.tls.read() == b""
        server.tls.write(b"B" * 60_000)
        server.tls.unwrap()
        while data := await stream.read(1000):
            found += data
        return found

    assert asyncio.run(asyncio.wait_for(run(), 30)) == b"A" * 60_000 + b"B" * 60_000


def wrong(ca: Pair, other: Pair) -> dict[str, Pair]:
    """Certificates that must be refused, by what is wrong with them."""
    return {
        "another CA": make_leaf(other, NAME),
        "another name": make_leaf(ca, "other.example"),
        "a name in the subject only": make_leaf(ca, common_name=NAME),
        "expired": make_leaf(ca, NAME, start=-2 * DAY, end=timedelta(hours=-1)),
        "not valid yet": make_leaf(ca, NAME, start=timedelta(hours=1)),
        "a client's": make_leaf(ca, NAME, usage=CLIENT),
        "the CA of its own": make_ca(NAME),
        "no CA signs for others": make_leaf(make_leaf(ca, NAME), NAME),
    }


@pytest.mark.parametrize("what", wrong(make_ca("a"), make_ca("b")))
def test_server_that_is_another_gets_nothing(tmp_path: Path, what: str) -> None:
    """The program's connection is reset, the reason is told, and the server got no byte of the program."""
    ca, other = make_ca("theirs"), make_ca("theirs")
    notes: list[str] = []

    async def run() -> None:
        server = Server(server_context(tmp_path, wrong(ca, other)[what], ca))
        async with server.running() as port, way(port, ca.pem, notes) as address:
            with pytest.raises(ConnectionError):
                await asked(address, b"secret")
        assert server.got == 0

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(notes) == 1
    assert notes[0].startswith(f"egress {NAME}:")
    assert "TLS failed" in notes[0]


def test_old_tls_and_no_tls_are_refused(tmp_path: Path) -> None:
    """A server of TLS 1.1, and one that speaks no TLS, get nothing in clear."""
    ca = make_ca("theirs")
    notes: list[str] = []
    seen: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1 << 16))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async def run() -> None:
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context = server_context(tmp_path, make_leaf(ca, NAME), version=ssl.TLSVersion.TLSv1_1)
        async with Server(context).running() as port, way(port, ca.pem, notes) as address:
            with pytest.raises(ConnectionError):
                await asked(address, b"secret")
        async with listening(plain) as (_, port), way(port, ca.pem, notes) as address:
            with pytest.raises(ConnectionError):
                await asked(address, b"secret")

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(notes) == 2
    assert not any(b"secret" in data for data in seen)


def test_pinned_ca_may_be_an_intermediate_one(tmp_path: Path) -> None:
    """The CA that is pinned ends the chain, whoever signed it. Another CA under the same root is refused."""
    root = make_ca("root")
    theirs, sibling = make_ca("theirs", under=root), make_ca("sibling", under=root)

    async def run() -> None:
        for signer, accepted in ((theirs, True), (sibling, False)):
            server = Server(server_context(tmp_path, make_leaf(signer, NAME), signer))
            async with server.running() as port, way(port, theirs.pem, []) as address:
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"hello")
                if accepted:
                    assert await reader.read(5) == b"HELLO"
                else:
                    with pytest.raises(ConnectionError):
                        await reader.read(5)
                writer.transport.abort()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_server_by_its_address(tmp_path: Path) -> None:
    """A certificate may name an IP address. One that names another is refused."""
    ca = make_ca("theirs")

    async def run() -> None:
        for named, accepted in (("127.0.0.1", True), ("127.0.0.2", False), (NAME, False)):
            server = Server(server_context(tmp_path, make_leaf(ca, named)))
            async with server.running() as port, way(port, ca.pem, [], host="127.0.0.1") as address:
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"hello")
                if accepted:
                    assert await reader.read(5) == b"HELLO"
                else:
                    with pytest.raises(ConnectionError):
                        await reader.read(5)
                writer.transport.abort()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("whole", [True, False])
def test_response_that_was_cut_is_not_taken_for_a_whole_one(tmp_path: Path, whole: bool) -> None:
    """Without close_notify the program's connection is reset."""
    ca = make_ca("theirs")

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"the first half")
        await writer.drain()
        if whole:
            writer.close()
        else:
            raw = writer.get_extra_info("socket").dup()
            await asyncio.sleep(0.1)
            raw.shutdown(socket.SHUT_RDWR)
            raw.close()

    async def run() -> None:
        server = Server(server_context(tmp_path, make_leaf(ca, NAME)), half)
        async with server.running() as port, way(port, ca.pem, []) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x")
            assert await reader.readexactly(14) == b"the first half"
            if whole:
                assert await reader.read() == b""
            else:
                with pytest.raises(ConnectionError):
                    await reader.read()
            writer.transport.abort()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_plain_bytes_pass_with_their_ends() -> None:
    """Half-closed connections work where nothing is added."""

    async def run() -> None:
        async with listening(echo) as (_, port), way(port, None, []) as address:
            assert await asked(address, b"hello") == b"HELLO"

    asyncio.run(asyncio.wait_for(run(), 30))


def test_server_that_is_down_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port, a name that nobody knows, and a server that never finishes its handshake: each a clean end."""
    notes: list[str] = []
    monkeypatch.setattr(egress, "CONNECT_S", 0.3)

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.sleep(30)

    async def run() -> None:
        with free_socket() as closed:
            async with way(closed.getsockname()[1], None, notes) as address:
                with pytest.raises(ConnectionError):
                    await asked(address, b"hello")
        async with way(1, None, notes, host="nowhere.invalid") as address:
            with pytest.raises(ConnectionError):
                await asked(address, b"hello")
        async with listening(silent) as (_, port), way(port, make_ca("theirs").pem, notes) as address:
            with pytest.raises(ConnectionError):
                await asked(address, b"hello")

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(notes) == 3
    assert all(note.startswith(("egress localhost:", "egress nowhere.invalid:1")) for note in notes)
    assert "no connection within" in notes[2]


def test_flood_of_connections_is_bounded() -> None:
    """Over the limit a connection is closed at once, said once it happens, and the others go on."""
    notes: list[str] = []

    async def run() -> None:
        async with listening(echo) as (_, port), way(port, None, notes, most=5) as address:
            kept = [await asyncio.open_connection(*address) for _ in range(5)]
            for _, writer in kept:
                writer.write(b"a")
            assert [await reader.read(1) for reader, _ in kept] == [b"A"] * 5
            for _ in range(50):
                with pytest.raises(ConnectionError):
                    await asked(address, b"b")
            kept[0][1].write(b"c")
            assert await kept[0][0].read(1) == b"C"
            kept[1][1].transport.abort()
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(ConnectionError):
                        if await asked(address, b"d") == b"D":
                            break
            for _, writer in kept:
                writer.transport.abort()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert any("over the limit of 5" in note for note in notes)


def test_idle_connection_is_cut_and_a_busy_one_is_not() -> None:
    """The time counts from the last byte in either direction."""
    notes: list[str] = []

    async def run() -> None:
        async with listening(echo) as (_, port), way(port, None, notes, idle_s=0.5) as address:
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(6):
                writer.write(b"a")
                assert await reader.read(1) == b"A"
                await asyncio.sleep(0.2)
            with pytest.raises(ConnectionError):
                await reader.read(1)
            writer.transport.abort()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert any("nothing passed" in note for note in notes)


def test_server_that_never_reads_holds_little() -> None:
    """What waits for a slow server is bounded: the program is made to wait."""

    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)

    async def run() -> None:
        async with listening(deaf) as (_, port), way(port, None, []) as address:
            _, writer = await asyncio.open_connection(*address)
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    while sent < 512 << 20:
                        writer.write(b"x" * (1 << 20))
                        await writer.drain()
                        sent += 1 << 20
            writer.transport.abort()
            assert sent < 64 << 20

    asyncio.run(asyncio.wait_for(run(), 30))
