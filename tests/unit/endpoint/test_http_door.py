"""The HTTP door before a real ingress and a small program: what passes, and what is refused with which words."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import h11
import pytest

from adyton.endpoint import http_door, http_exchange
from adyton.endpoint.http_door import HTTPDoor
from adyton.endpoint.pool import Pool
from adyton.errors import Error, Mismatch
from tests.unit.endpoint.world import Verifier, dialler, ingress_before, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from adyton.endpoint.dial import Proved
    from adyton.endpoint.hello import Answer


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP/1.1 server that keeps connections, says what it got, streams, and switches protocols."""
    side = h11.Connection(h11.SERVER)

    async def event() -> h11.Event:
        while not isinstance(found := side.next_event(), h11.Event):
            side.receive_data(await reader.read(1 << 16))
        return found

    def send(*events: h11.Event) -> None:
        for one in events:
            writer.write(side.send(one) or b"")

    while isinstance(request := await event(), h11.Request):
        body = bytearray()
        while isinstance(part := await event(), h11.Data):
            body += part.data
        headers = [("X-Seen", ",".join(sorted(name.decode() for name, _ in request.headers)))]
        if request.target == b"/switch":
            send(h11.InformationalResponse(status_code=101, headers=[("Upgrade", "echo"), ("Connection", "Upgrade")]))
            while data := await reader.read(1 << 16):
                writer.write(data[::-1])
            return
        if request.target == b"/events":
            send(h11.Response(status_code=200, headers=[("Content-Type", "text/event-stream")]))
            for number in range(3):
                send(h11.Data(data=b"data: %d\n\n" % number))
                await writer.drain()
                await asyncio.sleep(0.01)
            send(h11.EndOfMessage())
        elif request.target == b"/cut":
            send(h11.Response(status_code=200, headers=[("Content-Length", "100")]), h11.Data(data=b"half"))
            await writer.drain()
            return
        elif request.target == b"/close":
            send(h11.Response(status_code=200, headers=[("Connection", "close"), ("Content-Length", "2")]))
            send(h11.Data(data=b"ok"), h11.EndOfMessage())
            await writer.drain()
            return
        else:
            text = request.method + b" " + request.target + b" " + bytes(body)
            send(h11.Response(status_code=200, headers=[*headers, ("Content-Length", str(len(text)))]))
            send(h11.Data(data=b"" if request.method == b"HEAD" else text), h11.EndOfMessage())
        await writer.drain()
        if side.our_state is not h11.DONE:
            return
        side.start_next_cycle()


class Door:
    """A door with its address, the verifier, and what was refused."""

    def __init__(self, address: tuple[str, int], verify: Verifier, refused: list[Error]) -> None:
        self.address = address
        self.verify = verify
        self.refused = refused

    async def raw(self, sent: bytes) -> bytes:
        """What the door says to these bytes, to the end of the connection."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(sent)
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionResetError:
            return b"reset"
        finally:
            writer.transport.abort()

    async def ask(self, head: str, body: bytes = b"", *headers: str) -> bytes:
        """The answer to one request that closes."""
        lines = [head + " HTTP/1.1", f"Host: 127.0.0.1:{self.address[1]}", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return await self.raw("\r\n".join([*lines, "", ""]).encode() + body)


@contextlib.asynccontextmanager
async def door(
    verify: Verifier | None = None,
    serves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = web,
) -> AsyncIterator[Door]:
    """A program, its ingress, and a door on this side."""
    verify = verify or Verifier()
    refused: list[Error] = []
    hosts: set[str] = set()
    async with listening(serves) as program, ingress_before(program) as address:
        pool = Pool(dialler(address, verify))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await HTTPDoor(pool, frozenset(hosts), refused.append).serve(reader, writer)

        async with listening(serve) as local:
            hosts |= {f"127.0.0.1:{local[1]}", f"localhost:{local[1]}"}
            yield Door(local, verify, refused)
        await pool.close()


def problem(answer: bytes, status: int) -> dict[str, str]:
    """The problem document of an answer with that status."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"application/problem+json" in head
    found: dict[str, str] = json.loads(body)
    return found


def test_requests_pass_and_connections_are_kept() -> None:
    """Many requests of many local connections go over one verified connection, one after the other."""

    async def run() -> None:
        async with door() as at:
            for number in range(5):
                answer = await at.ask(f"POST /{number}", b"x" * 100_000, "TE: trailers", "Proxy-Authorization: a")
                assert answer.endswith(b"POST /%d " % number + b"x" * 100_000)
                assert b"proxy-authorization" not in answer
                assert b",te," not in answer
            assert (await at.ask("HEAD /")).endswith(b"\r\n\r\n")
            assert at.verify.calls == 1

    asyncio.run(run())


def test_one_local_connection_asks_many_times() -> None:
    """Keep-alive on the local side."""

    async def run() -> None:
        async with door() as at:
            reader, writer = await asyncio.open_connection(*at.address)
            for number in range(3):
                writer.write(f"GET /{number} HTTP/1.1\r\nHost: localhost:{at.address[1]}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(len(f"GET /{number} ")) == f"GET /{number} ".encode()
            writer.transport.abort()

    asyncio.run(run())


def test_events_pass_as_they_come() -> None:
    """A stream of server-sent events is passed on part by part, and ends as it must."""

    async def run() -> None:
        async with door() as at:
            answer = await at.ask("GET /events")
            assert b"data: 0\n\n" in answer
            assert answer.endswith(b"0\r\n\r\n")

    asyncio.run(run())


def test_switched_protocol_passes_bytes() -> None:
    """After 101 the bytes flow as they are, as WebSockets need it."""

    async def run() -> None:
        async with door() as at:
            reader, writer = await asyncio.open_connection(*at.address)
            host = f"127.0.0.1:{at.address[1]}"
            writer.write(
                f"GET /switch HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\n"
                "Upgrade: echo\r\n\r\n".encode()
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            writer.write(b"abc")
            assert await reader.readexactly(3) == b"cba"
            writer.transport.abort()

    asyncio.run(run())


def test_cut_response_is_no_whole_response() -> None:
    """A response that the program did not finish is cut on this side, too."""

    async def run() -> None:
        async with door() as at:
            answer = await at.ask("GET /cut")
            assert answer == b"reset" or len(answer.partition(b"\r\n\r\n")[2]) < 100
            assert (await at.ask("GET /close")).endswith(b"ok")
            assert (await at.ask("GET /after")).endswith(b"GET /after ")

    asyncio.run(run())


LOCAL = "GET / HTTP/1.1\r\nHost: localhost:{port}\r\n"
FOREIGN = {
    "another host": ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "host"),
    "rebound name": ("GET / HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n", 403, "host"),
    "no host": ("GET / HTTP/1.0\r\n\r\n", 403, "host"),
    "origin": ("GET / HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: https://evil.example\r\n\r\n", 403, "origin"),
    "null origin": ("GET / HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: null\r\n\r\n", 403, "origin"),
    "cross-site": (
        "GET / HTTP/1.1\r\nHost: localhost:{port}\r\nSec-Fetch-Site: cross-site\r\n\r\n",
        403,
        "sec-fetch-site",
    ),
    "same-site": (
        "GET / HTTP/1.1\r\nHost: localhost:{port}\r\nSec-Fetch-Site: same-site\r\n\r\n",
        403,
        "sec-fetch-site",
    ),
    "proxy": ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", 400, "target of the request"),
    "connect": ("CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", 400, "target of the request"),
    "two lengths": (
        "POST / HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "length of the body",
    ),
    "two hosts": ("GET / HTTP/1.1\r\nHost: localhost:{port}\r\nHost: evil\r\n\r\n", 400, "form of the request"),
    "unequal lengths": (
        "POST / HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        400,
        "form of the request",
    ),
    "space before colon": ("GET / HTTP/1.1\r\nHost : localhost:{port}\r\n\r\n", 400, "form of the request"),
    "odd coding": (
        "POST / HTTP/1.1\r\nHost: localhost:{port}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        501,
        "form of the request",
    ),
    "no HTTP": ("\x16\x03\x01\r\n\r\n", 400, "form of the request"),
}


@pytest.mark.parametrize(("request_text", "status", "check"), FOREIGN.values(), ids=FOREIGN)
def test_what_a_web_page_or_smuggler_sends_is_refused(request_text: str, status: int, check: str) -> None:
    """It is refused before any connection is made, and the refusal names the check."""

    async def run() -> None:
        async with door() as at:
            answer = await at.raw(request_text.replace("{port}", str(at.address[1])).encode())
            found = problem(answer, status)
            assert found["check"] == check
            assert at.verify.calls == 0

    asyncio.run(run())


def test_refused_endpoint_is_said_and_nothing_is_sent() -> None:
    """Where the evidence is refused the local program gets 502 with check, expected, seen and remedy."""

    class Refusing(Verifier):
        async def __call__(self, answer: Answer, report_data: bytes, gpu_nonce: bytes) -> Proved:
            raise Mismatch("false", check="measurement", expected="aa", seen="bb", remedy="ask who runs it")

    async def run() -> None:
        async with door(Refusing()) as at:
            found = problem(await at.ask("POST /secret", b"my data"), 502)
            assert [found[name] for name in ("error", "check", "expected", "seen", "remedy")] == [
                "Mismatch",
                "measurement",
                "aa",
                "bb",
                "ask who runs it",
            ]
            assert [error.check for error in at.refused] == ["measurement"]

    asyncio.run(run())


async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program, or a network, that cuts a kept connection once the second request on it has come."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await writer.drain()
    await reader.readuntil(b"\r\n\r\n")


def test_request_asked_again_leaves_the_local_connection_in_order() -> None:
    """A kept connection is cut at each second request. The local program asks on, over one connection of its own."""

    async def run() -> None:
        async with door(serves=answers_once) as at:
            reader, writer = await asyncio.open_connection(*at.address)
            async with asyncio.timeout(30):
                for number in range(4):
                    writer.write(f"GET /{number} HTTP/1.1\r\nHost: localhost:{at.address[1]}\r\n\r\n".encode())
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                    assert await reader.readexactly(2) == b"ok"
            writer.transport.abort()
            assert at.verify.calls == 4
            assert at.refused == []

    asyncio.run(run())


def test_request_that_may_have_arrived_is_not_called_unsent() -> None:
    """Whoever cuts the connection behind a request does not make the local program believe that none was made."""

    async def run() -> None:
        async with door(serves=answers_once) as at:
            assert (await at.ask("GET /")).endswith(b"ok")
            found = problem(await at.ask("POST /pay", b"\r\n\r\n"), 502)
            assert found["title"] == "no response came, and the program may have got the request"
            assert found["check"] == "response of the program"
            assert [error.check for error in at.refused] == ["response of the program"]

    asyncio.run(run())


def test_half_a_request_holds_no_connection() -> None:
    """A local program that goes away within its request takes the connection behind the door with it."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waits(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 16):
                begun.set()
        finally:
            ended.set()

    async def run() -> None:
        async with door(serves=waits) as at, asyncio.timeout(30):
            host = f"localhost:{at.address[1]}"
            for cut in (True, False):
                begun.clear()
                ended.clear()
                reader, writer = await asyncio.open_connection(*at.address)
                writer.write(f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf".encode())
                await begun.wait()
                if cut:
                    writer.transport.abort()
                else:
                    writer.write(b"\r\nno length\r\n")
                    assert problem(await reader.read(), 400)["check"] == "form of the request"
                await ended.wait()
                writer.transport.abort()

    asyncio.run(run())


def saying(*answers: bytes, ends: bool = False) -> Callable[..., Awaitable[None]]:
    """A program that gives these answers, as they are, one for each request on a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        if not ends:
            await reader.read()

    return serve


SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"
SMUGGLED = {
    "a second answer behind the length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst" + SECOND,
    "a second answer behind no body": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + SECOND,
    "a second answer behind the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n" + SECOND
    ),
    "a body of 304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" + SECOND,
    "an answer before the last one": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n" + SECOND,
}


@pytest.mark.parametrize("answer", SMUGGLED.values(), ids=SMUGGLED)
def test_second_answer_reaches_nobody(answer: bytes) -> None:
    """What comes behind an answer is not the answer to a later request, of whichever local program."""

    async def run() -> None:
        async with door(serves=saying(answer)) as at, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(*at.address)
            for _ in range(2):
                writer.write(f"GET / HTTP/1.1\r\nHost: localhost:{at.address[1]}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"Content-Length: 6" not in head
                if b"chunked" in head.lower():
                    assert await reader.readuntil(b"0\r\n\r\n") == b"5\r\nfirst\r\n0\r\n\r\n"
                elif b"Content-Length: 5" in head and b"304" not in head:
                    assert await reader.readexactly(5) == b"first"
            writer.transport.abort()
            assert at.verify.calls == 2, "the connection was not used again"

    asyncio.run(run())


UNREADABLE = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "no number": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nabcde",
    "an odd coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nabcde",
    "no HTTP": b"hello\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * (70 << 10),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
def test_answer_with_two_readings_is_refused(answer: bytes) -> None:
    """The local program gets 502 in place of it."""

    async def run() -> None:
        async with door(serves=saying(answer)) as at, asyncio.timeout(30):
            assert problem(await at.ask("POST /", b"x"), 502)["check"] == "response of the program"

    asyncio.run(run())


def test_length_and_chunks_at_once_are_read_as_chunks() -> None:
    """As RFC 9112 says. The local program gets one of them only."""

    async def run() -> None:
        both = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n"
        async with door(serves=saying(both)) as at, asyncio.timeout(30):
            head, _, body = (await at.ask("GET /")).partition(b"\r\n\r\n")
            assert body == b"5\r\nfirst\r\n0\r\n\r\n"
            assert b"content-length" not in head.lower()

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfirst",
    ],
)
def test_connection_that_ends_with_its_answer_is_not_kept(answer: bytes) -> None:
    """A later request gets a new one."""

    async def run() -> None:
        async with door(serves=saying(answer, answer)) as at, asyncio.timeout(30):
            for _ in range(2):
                assert (await at.ask("GET /")).endswith(b"\r\n\r\nfirst")
            assert at.verify.calls == 2

    asyncio.run(run())


def test_answer_shorter_than_its_length_is_cut() -> None:
    """Also within one of many parts, and the local program never takes it for the whole."""

    async def run() -> None:
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000
        async with door(serves=saying(half, ends=True)) as at, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(*at.address)
            writer.write(f"GET / HTTP/1.1\r\nHost: localhost:{at.address[1]}\r\n\r\n".encode())
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.transport.abort()

    asyncio.run(run())


def test_slow_local_program_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that comes byte by byte, and a body that stops, end after a while."""
    monkeypatch.setattr(http_door, "IDLE_S", 0.3)
    monkeypatch.setattr(http_exchange, "IDLE_S", 0.3)

    async def run() -> None:
        async with door() as at, asyncio.timeout(30):
            host = f"Host: localhost:{at.address[1]}\r\n".encode()
            for sent, pause in ((b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100, 0.02), (b"", 0)):
                reader, writer = await asyncio.open_connection(*at.address)
                with contextlib.suppress(OSError):
                    if not sent:
                        writer.write(b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 100\r\n\r\nhalf")
                    for byte in sent:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(pause)
                        if reader.at_eof():
                            break
                    assert b"200" not in await reader.read()
                writer.transport.abort()

    asyncio.run(run())


def test_local_program_that_never_reads_holds_one_connection() -> None:
    """The program is not read faster than the local one reads, and others are served meanwhile."""
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/flood" not in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            written += 1 << 16

    async def run() -> None:
        async with door(serves=flood) as at, asyncio.timeout(60):
            _, writer = await asyncio.open_connection(*at.address)
            writer.write(f"GET /flood HTTP/1.1\r\nHost: localhost:{at.address[1]}\r\n\r\n".encode())
            before = -1
            while written != before or not written:
                before = written
                await asyncio.sleep(0.3)
            assert written < 100 << 20, "sockets and buffers, and not the whole gigabyte"
            assert (await at.ask("GET /")).endswith(b"ok")
            writer.transport.abort()

    asyncio.run(run())


def test_many_local_programs_share_few_proofs() -> None:
    """Hundreds ask at once. Each is answered, and none is refused because evidence takes its time."""

    async def run() -> None:
        async with door() as at, asyncio.timeout(60):
            answers = await asyncio.gather(*(at.ask(f"GET /{number}") for number in range(300)))
            assert [answer.rpartition(b"/")[2] for answer in answers] == [b"%d " % number for number in range(300)]
            assert at.verify.calls <= 300
            assert at.refused == []

    asyncio.run(run())
