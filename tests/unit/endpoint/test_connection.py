"""A client and an ingress over loopback: what is proved, and what an attacker between them gets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from adyton.endpoint import ingress as ingress_module
from adyton.endpoint import stream as stream_module
from adyton.endpoint.channel import Identity, client_context, server_context
from adyton.endpoint.dial import MAX_DIALS, Proxy
from adyton.endpoint.hello import (
    ALPN,
    MAX_ANSWER_BYTES,
    MAX_CHALLENGE_BYTES,
    Answer,
    Challenge,
    message,
    parse_challenge,
)
from adyton.endpoint.pool import Pool
from adyton.endpoint.stream import PlainStream, SecureStream
from adyton.endpoint.tcp_door import TCPDoor
from adyton.errors import FetchFailed, MalformedQuote, Mismatch, Timeout, UsageError
from tests.unit.endpoint.world import MANIFEST, Verifier, dialler, echo, evidence_over, ingress_before, listening

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.endpoint.ingress import Ingress


def test_verified_connection_carries_bytes() -> None:
    """After the proof the program's bytes flow, in both directions and to both ends."""

    async def run() -> bytes:
        verify = Verifier()
        async with listening(echo) as program, ingress_before(program) as address:
            verified = await dialler(address, verify, name="api").dial()
            await verified.stream.write(b"hello " * 100_000)
            await verified.stream.end()
            found = bytearray()
            while data := await verified.stream.read():
                found += data
            await verified.stream.close()
        assert verify.calls == 1
        return bytes(found)

    assert asyncio.run(run()) == b"HELLO " * 100_000


def test_another_name_is_refused() -> None:
    """An ingress of the same program under another name is not the one that was meant."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address:
            with pytest.raises(Mismatch) as caught:
                await dialler(address, name="admin").dial()
            assert caught.value.check == "name of the ingress"

    asyncio.run(run())


def test_another_manifest_is_refused() -> None:
    """Where the evidence has no place for the program, the hash of its manifest names it."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address:
            with pytest.raises(Mismatch) as caught:
                await dialler(address, manifest_sha256=bytes(32)).dial()
            assert caught.value.check == "SHA-256 of the manifest"
            verified = await dialler(address, manifest_sha256=MANIFEST).dial()
            await verified.stream.close()

    asyncio.run(run())


def test_thief_of_the_tls_key_gets_nothing() -> None:
    """Who holds the key of an accepted machine can end the client's TLS, but evidence is for other connections."""

    async def run() -> None:
        made: list[Ingress] = []
        seen: list[bytes] = []
        async with listening(echo) as program, ingress_before(program, made=made) as address:
            stolen = made[0]._identity
            others: list[SecureStream] = []

            async def thief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                near = await SecureStream.open(reader, writer, server_context(stolen), server=True)
                nonce = parse_challenge(await near.read_message(MAX_CHALLENGE_BYTES)).nonce
                far = await SecureStream.open(*await asyncio.open_connection(*address), client_context(), server=False)
                others.append(far)
                await far.write(message(Challenge(nonce).to_bytes()))
                await near.write(message(await far.read_message(MAX_ANSWER_BYTES)))
                seen.append(await near.read())

            async with listening(thief) as middle:
                with pytest.raises(Mismatch) as caught:
                    await dialler(middle).dial()
                assert caught.value.check == "report data"
                for far in others:
                    far.abort()
        assert not any(seen), "the client sent bytes to an unproved peer"

    asyncio.run(run())


def test_reflected_and_replayed_evidence_is_refused() -> None:
    """Evidence of an earlier connection proves nothing about a later one."""

    async def run() -> None:
        verify = Verifier()
        async with listening(echo) as program, ingress_before(program) as address:
            await (await dialler(address, verify).dial()).stream.close()
        recorded = verify.answers[0]

        async def replaying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            near = await SecureStream.open(reader, writer, server_context(Identity("api")), server=True)
            await near.read_message(MAX_CHALLENGE_BYTES)
            await near.write(message(recorded.to_bytes()))

        async with listening(replaying) as middle:
            with pytest.raises(Mismatch) as caught:
                await dialler(middle, verify).dial()
            assert caught.value.check == "report data"

    asyncio.run(run())


@pytest.mark.parametrize("answer", [b"\xff" * 4, message(b"x"), b"\0\0\0\0", message(bytes(8))])
def test_false_answers_are_refused(answer: bytes) -> None:
    """A peer that speaks TLS and not the protocol is refused by name."""

    async def run() -> None:
        async def false(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            near = await SecureStream.open(reader, writer, server_context(Identity("api")), server=True)
            await near.write(answer)

        async with listening(false) as address:
            with pytest.raises(MalformedQuote):
                await dialler(address).dial()

    asyncio.run(run())


def test_plain_server_and_silence_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without TLS, one that closes, one that says nothing, and none at all: each is said."""
    monkeypatch.setattr("adyton.endpoint.dial.CONNECT_S", 0.3)

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def closing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def run() -> None:
        for serve, error in ((plain, FetchFailed), (closing, FetchFailed), (silent, Timeout)):
            async with listening(serve) as address:
                with pytest.raises(error):
                    await dialler(address).dial()
        with pytest.raises(FetchFailed) as caught:
            await dialler(address).dial()
        assert caught.value.check == "connection to the ingress"

    asyncio.run(run())


def test_older_tls_and_another_alpn_get_no_handshake() -> None:
    """TLS 1.2 and a client of another protocol are refused before anything else."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address:
            for change in ("old", "alpn", "none"):
                reader, writer = await asyncio.open_connection(*address)
                context = SSL.Context(SSL.TLS_METHOD)
                context.set_verify(SSL.VERIFY_NONE)
                if change == "old":
                    context.set_max_proto_version(SSL.TLS1_2_VERSION)
                if change != "none":
                    context.set_alpn_protos([b"http/1.1" if change == "alpn" else ALPN])
                with pytest.raises(FetchFailed):
                    await SecureStream.open(reader, writer, context, server=False)
                writer.transport.abort()

    asyncio.run(run())


async def to_the_end(stream: SecureStream) -> None:
    """Read until the peer's end."""
    while await stream.read():
        pass


def test_certificate_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """OpenSSL takes a certificate of version 8, and the client's own reading of it refuses it by name."""
    identity = Identity("api")
    raw = bytearray(identity.certificate.public_bytes(Encoding.DER))
    raw[raw.index(bytes.fromhex("a003020102")) + 4] = 7
    context = server_context(identity)
    (tmp_path / "certificate").write_bytes(raw)
    context.use_certificate_file(tmp_path / "certificate", crypto.FILETYPE_ASN1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = await SecureStream.open(reader, writer, context, server=True)
        await stream.read_message(MAX_CHALLENGE_BYTES)
        await stream.write(message(Answer("api", MANIFEST, b"evidence").to_bytes()))
        await stream.read()

    async def run() -> None:
        async with listening(serve) as address:
            with pytest.raises(FetchFailed) as caught:
                await dialler(address).dial()
            assert caught.value.check == "certificate of the ingress"

    asyncio.run(run())


def test_cut_stream_is_no_whole_stream() -> None:
    """An attacker who closes the TCP connection is told from a program that ended."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address:

            async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                far_reader, far_writer = await asyncio.open_connection(*address)

                async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int) -> None:
                    count = 0
                    while count < most and (data := await source.read(4096)):
                        count += len(data)
                        sink.write(data)

                ways = [
                    asyncio.ensure_future(carry(reader, far_writer, 1 << 30)),
                    asyncio.ensure_future(carry(far_reader, writer, 100_000)),
                ]
                await ways[1]
                ways[0].cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                far_writer.transport.abort()
                writer.close()

            async with listening(cutting) as middle:
                verified = await dialler(middle).dial()
                sending = asyncio.ensure_future(verified.stream.write(b"x" * 2_000_000))
                with pytest.raises((FetchFailed, OSError)):
                    await to_the_end(verified.stream)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                verified.stream.abort()

    asyncio.run(run())


def test_cut_is_a_reset_for_programs_on_both_sides() -> None:
    """A connection that was cut between the two ends is no ordinary end for the program, nor for the local one."""
    ends: list[str] = []

    async def until_the_end(reader: asyncio.StreamReader) -> None:
        try:
            while await reader.read(1 << 16):
                pass
            ends.append("whole")
        except ConnectionResetError:
            ends.append("reset")

    async def program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half of an answer")
        await until_the_end(reader)

    async def run() -> None:
        async with listening(program) as target, ingress_before(target) as address:

            async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                far_reader, far = await asyncio.open_connection(*address)

                async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                    while data := await source.read(1 << 16):
                        sink.write(data)

                ways = [asyncio.ensure_future(carry(reader, far)), asyncio.ensure_future(carry(far_reader, writer))]
                try:
                    await half_came.wait()
                    for one in (far, writer):
                        one.write_eof()  # an ordinary end of TCP, without TLS's own
                    await asyncio.gather(*ways, return_exceptions=True)
                finally:
                    far.transport.abort()

            half_came = asyncio.Event()
            async with listening(middle) as between:
                door = TCPDoor(dialler(between), lambda _error: None)
                async with listening(door.serve) as local:
                    reader, writer = await asyncio.open_connection(*local)
                    assert await reader.readexactly(17) == b"half of an answer"
                    half_came.set()
                    await until_the_end(reader)
                    writer.transport.abort()
                    async with asyncio.timeout(30):
                        while len(ends) < 2:
                            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert ends == ["reset", "reset"]


def test_reset_of_the_program_is_no_end() -> None:
    """The program's side is reset within an answer, as when it crashes. The client sees a cut."""

    async def crashing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half of an answer")
        await reader.readexactly(5)
        PlainStream(reader, writer).abort()

    async def run() -> None:
        async with listening(crashing) as program, ingress_before(program) as address, asyncio.timeout(30):
            verified = await dialler(address).dial()
            assert await verified.stream.read() == b"half of an answer"
            await verified.stream.write(b"hello")
            with pytest.raises((FetchFailed, OSError)):
                await verified.stream.read()
            verified.stream.abort()

    asyncio.run(run())


def test_what_was_read_ahead_is_read_once_and_whole() -> None:
    """More than one read's worth comes while nobody reads. It is no longer quiet, and nothing of it is lost."""
    sent = bytes(range(256)) * 4096

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address, asyncio.timeout(30):
            verified = await dialler(address).dial()
            stream = verified.stream
            stream.read_ahead()
            stream.read_ahead()
            sending = asyncio.ensure_future(stream.write(sent))
            while stream.quiet:
                await asyncio.sleep(0.01)
            found = bytearray(await stream.read(1000))
            assert len(found) == 1000
            while len(found) < len(sent):
                found += await stream.read()
            await sending
            assert found == sent.upper()
            await stream.close()

    asyncio.run(run())


def test_more_than_one_read_ahead_loses_nothing() -> None:
    """Records that came at once can hold more than one read gives."""
    sent = random.Random(1).randbytes(1 << 19)

    class Full:
        closed_by_peer = False
        held = sent

        def read(self) -> bytes:
            found, self.held = self.held, b""
            return found

    async def run() -> None:
        stream = SecureStream(None, None, Full())  # type: ignore[arg-type]
        stream.read_ahead()
        found = await stream.read(10)
        while len(found) < len(sent):
            found += await stream.read()
        assert found == sent

    asyncio.run(run())


def test_connection_that_said_more_is_not_kept() -> None:
    """Bytes that nobody asked for would be taken for the answer to the next request."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address, asyncio.timeout(30):
            pool = Pool(dialler(address))
            one, _ = await pool.lease()
            await one.stream.write(b"hello")
            assert await one.stream.read(2) == b"HE"
            await pool.give_back(one)
            other, was_kept = await pool.lease()
            assert not was_kept
            assert other is not one
            await other.stream.close()
            await pool.close()

    asyncio.run(run())


def test_request_that_goes_away_gives_its_connection_back() -> None:
    """A connection that comes for a request that was just given up is there for the next one."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address, asyncio.timeout(30):
            verify = Verifier()
            pool = Pool(dialler(address, verify))
            first, _ = await pool.lease()
            waits = asyncio.ensure_future(pool.lease())
            await asyncio.sleep(0)
            await pool.give_back(first)
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            again, was_kept = await pool.lease()
            assert was_kept
            await again.stream.write(b"x")
            assert await again.stream.read() == b"X"
            await again.stream.close()
            await pool.close()

    asyncio.run(run())


def test_limit_of_connections_holds() -> None:
    """One connection over the limit is closed, and when another ends there is room again."""

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program, most=1) as address:
            first = await dialler(address).dial()
            with pytest.raises((FetchFailed, Timeout)):
                await dialler(address).dial()
            await first.stream.close()
            for _ in range(100):
                with contextlib.suppress(FetchFailed):
                    await (await dialler(address).dial()).stream.close()
                    return
                await asyncio.sleep(0.05)
            pytest.fail("no room after the end of a connection")

    asyncio.run(run())


def test_client_that_says_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a challenge is closed after a while."""
    monkeypatch.setattr(ingress_module, "HELLO_S", 0.2)

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address:
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    asyncio.run(run())


def test_client_that_is_slow_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then gains no time, within the handshake and within the challenge."""
    monkeypatch.setattr(ingress_module, "HELLO_S", 0.5)

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address, asyncio.timeout(30):
            began = asyncio.get_running_loop().time()
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.suppress(OSError):
                for byte in b"\x16\x03\x01\x7f\xff" + bytes(1000):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.05)
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            assert asyncio.get_running_loop().time() - began < 20, "a thousand bytes would take 50 s"
            writer.transport.abort()

            reader, writer = await asyncio.open_connection(*address)
            stream = await SecureStream.open(reader, writer, client_context(), server=False)
            ended = asyncio.ensure_future(stream.read())
            with contextlib.suppress(FetchFailed, OSError):
                for byte in message(Challenge(bytes(32)).to_bytes()):
                    await stream.write(bytes([byte]))
                    await asyncio.wait([ended], timeout=0.1)
                    if ended.done():
                        break
            with pytest.raises((FetchFailed, OSError)):
                await ended
            stream.abort()

    asyncio.run(run())


def test_ingress_that_is_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends its answer byte by byte holds a client no longer than the limit."""
    monkeypatch.setattr("adyton.endpoint.dial.CONNECT_S", 0.5)

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near = await SecureStream.open(reader, writer, server_context(Identity("api")), server=True)
        await near.read_message(MAX_CHALLENGE_BYTES)
        for byte in message(Answer("api", MANIFEST, bytes(1000)).to_bytes()):
            await near.write(bytes([byte]))
            await asyncio.sleep(0.02)

    async def run() -> None:
        async with listening(dripping) as address:
            with pytest.raises(Timeout) as caught:
                await dialler(address).dial()
            assert caught.value.check == "time for connection and evidence"

    asyncio.run(run())


def test_ten_thousand_idle_connections_keep_nobody_out() -> None:
    """They take as many places as the manifest says and no more. A client is served at once, while they are there."""
    count, most = 10_000, 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 3 * most
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this machine allows {hard} open files, and the test needs {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))

    async def run() -> None:
        made: list[Ingress] = []
        held: list[socket.socket] = []
        async with (
            listening(echo) as program,
            ingress_before(program, most=most, made=made) as address,
            asyncio.timeout(100),
        ):
            try:
                for number in range(count):
                    one = socket.socket()
                    one.setblocking(False)
                    held.append(one)
                    await asyncio.get_running_loop().sock_connect(one, address)
                    if number % 100 == 0:
                        assert made[0]._open <= most + 200, "those that are being ended count until they are"
                for _ in range(3):
                    verified = await dialler(address).dial()
                    await verified.stream.write(b"hello")
                    assert await verified.stream.read() == b"HELLO"
                    await verified.stream.close()
                assert made[0]._open <= most + 1
            finally:
                for one in held:
                    one.close()
            while made[0]._open:
                await asyncio.sleep(0.01)
            assert not made[0]._greeting

    try:
        asyncio.run(run())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_busy_ingress_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than wait for evidence at once: all are proved, one after the other."""
    monkeypatch.setattr(ingress_module, "MAX_UNPROVED", 1)
    monkeypatch.setattr("adyton.endpoint.dial.RETRY_S", 0.02)

    async def run() -> None:
        async with listening(echo) as program, ingress_before(program) as address, asyncio.timeout(60):
            to_ingress = dialler(address)
            for verified in await asyncio.gather(*(to_ingress.dial() for _ in range(8))):
                await verified.stream.close()

    asyncio.run(run())


def test_connections_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client proves more than a few connections at once, and one that never has its turn says so."""
    monkeypatch.setattr("adyton.endpoint.dial.TURN_S", 0.3)
    there: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.append(writer)
        await reader.read()
        await asyncio.Event().wait()

    async def run() -> None:
        async with listening(silent) as address:
            to_ingress = dialler(address)
            held = [asyncio.ensure_future(to_ingress.dial()) for _ in range(MAX_DIALS)]
            while len(there) < MAX_DIALS:
                await asyncio.sleep(0.01)
            with pytest.raises(Timeout) as caught:
                await to_ingress.dial()
            assert caught.value.check == "time for the turn of a connection"
            assert len(there) == MAX_DIALS
            for one in held:
                one.cancel()
            await asyncio.gather(*held, return_exceptions=True)

    asyncio.run(run())


def test_dead_peers_are_noticed() -> None:
    """The kernel asks a silent peer on both sides. Without that, a client that vanished keeps its place for ever."""
    asked: list[int] = []

    def look(own: socket.socket) -> None:
        asked.append(own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        asked.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))

    async def run() -> None:
        made: list[Ingress] = []
        async with listening(echo) as program, ingress_before(program, made=made) as address:
            guard = made[0]._serve

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                look(writer.get_extra_info("socket"))
                await guard(reader, writer)

            made[0]._serve = serve  # type: ignore[method-assign]
            verified = await dialler(address).dial()
            look(verified.stream._writer.get_extra_info("socket"))
            await verified.stream.close()

    asyncio.run(run())
    assert asked == [1, 60, 1, 60]


def test_peer_that_takes_nothing_does_not_keep_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client stops reading in the middle of a long answer. The end of the ingress does not wait for it."""
    monkeypatch.setattr(stream_module, "CLOSE_S", 0.2)

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async def run() -> None:
        async with asyncio.timeout(30):
            async with listening(flood) as program, ingress_before(program) as address:
                verified = await dialler(address).dial()
                await asyncio.sleep(0.5)
            verified.stream.abort()

    asyncio.run(run())


def test_pool_keeps_connections_and_drops_ended_ones() -> None:
    """A kept connection is used again, unless it ended or its trust is over."""

    async def run() -> None:
        verify = Verifier()
        async with listening(echo) as program, ingress_before(program) as address:
            pool = Pool(dialler(address, verify))
            first, used = await pool.lease()
            assert not used
            await pool.give_back(first)
            await asyncio.sleep(0)
            again, used = await pool.lease()
            assert used
            assert again is first
            verify.lifetime = timedelta(seconds=-1)
            other, _ = await pool.lease()
            await pool.give_back(other)
            third, used = await pool.lease()
            assert not used
            await third.stream.end()
            await third.stream.close()
            await again.stream.close()
            await pool.close()

    asyncio.run(run())


def test_proxy_is_asked_to_connect() -> None:
    """Through a proxy the same proof is made; the proxy's refusal is named, and its password never shown."""

    async def run() -> None:
        heads: list[bytes] = []
        async with listening(echo) as program, ingress_before(program) as address:

            async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                if b"Basic" not in heads[-1]:
                    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                    writer.close()
                    return
                far_reader, far_writer = await asyncio.open_connection(*address)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

                async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                    while data := await source.read(4096):
                        sink.write(data)

                try:
                    await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer), return_exceptions=True)
                finally:
                    far_writer.transport.abort()

            async with listening(proxy) as (host, port):
                good = Proxy.parse(f"http://user:s3cret@{host}:{port}")
                verified = await dialler(address, proxy=good).dial()
                await verified.stream.close()
                with pytest.raises(FetchFailed) as caught:
                    await dialler(address, proxy=Proxy.parse(f"http://{host}:{port}")).dial()
                assert caught.value.check == "answer of the proxy"
        assert heads[0].startswith(f"CONNECT {address[0]}:{address[1]} HTTP/1.1\r\n".encode())

    asyncio.run(run())
    for url in ("https://h:1", "http://h", "http://u:s3cret@h:x", "socks5://h:1", "http://h:1/path", "nonsense"):
        with pytest.raises(UsageError) as refused:
            Proxy.parse(url)
        assert "s3cret" not in str(refused.value)


def test_evidence_needs_the_machine() -> None:
    """The keyed hash of this test is no formality: another key is refused."""
    assert evidence_over(bytes(64)) != bytes(96)
