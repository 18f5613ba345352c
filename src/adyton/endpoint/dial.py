"""The client's side: a connection to an ingress that was verified before a byte of the program is sent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from adyton.address import address_text
from adyton.endpoint.binding import client_report_data, gpu_nonce, report_data
from adyton.endpoint.channel import READ_BYTES, Credential, client_context
from adyton.endpoint.hello import (
    BUSY,
    MAX_ANSWER_BYTES,
    MAX_JUDGEMENT_BYTES,
    NONCE_BYTES,
    Answer,
    Challenge,
    ClientEvidence,
    Refused,
    message,
    parse_answer,
    parse_judgement,
)
from adyton.endpoint.stream import SecureStream, notice_dead_peers
from adyton.errors import EvidenceError, FetchFailed, Mismatch, Timeout, Unavailable, UsageError

CONNECT_S: Final = 30.0
"""The time for connection, handshake and evidence. A hardware quote takes up to 100 ms."""

MAX_DIALS: Final = 16
"""The most connections of one client that are proved at once. Others wait for their turn."""

TURN_S: Final = 120.0
"""How long a connection waits for its turn."""

RETRY_S: Final = 0.2
"""How long a client waits before it asks a busy ingress again: this, and at random up to as much again."""

_MAX_PROXY_ANSWER_BYTES: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Proved:
    """What the verification of an answer gave."""

    summary: tuple[str, ...]
    valid_until: datetime
    """From then on no new request is sent over the connection."""
    cut_at: datetime | None = None
    """Then the connection is cut, whatever passes over it. None: at `valid_until`."""


class _Busy(Exception):
    """The ingress has too many connections to prove just now."""


Verify = Callable[[Answer, bytes, bytes], Awaitable[Proved]]
"""Judges an answer whose evidence must carry these 64 bytes of report data, and whose GPUs must have signed these 32.
Raises EvidenceError or Unavailable."""


Prove = Callable[[bytes], Awaitable[ClientEvidence]]
"""Makes evidence that carries these 64 bytes of report data. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that is asked to CONNECT. `authorization` is the header's value, if it wants one."""

    address: tuple[str, int]
    authorization: str | None = None

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read `http://[user:password@]host:port`. Raises UsageError, which never shows the password."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme != "http" or not host or not port or parts.path not in ("", "/") or parts.query:
            raise UsageError(
                "the proxy's URL cannot be used",
                check="HTTPS_PROXY",
                expected="http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT",
                seen="another form",
                remedy="unset HTTPS_PROXY, or name a proxy that takes CONNECT over plain HTTP",
            )
        authorization = None
        if parts.username is not None:
            pair = f"{parts.username}:{parts.password or ''}".encode()
            authorization = "Basic " + base64.b64encode(pair).decode("ascii")
        return cls((host, port), authorization)


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified connection: bytes may flow."""

    stream: SecureStream
    answer: Answer
    proved: Proved


@dataclass(frozen=True, slots=True)
class Dialler:
    """Opens verified connections to one address."""

    address: tuple[str, int]
    verify: Verify
    name: str | None = None
    """The name that the ingress must have. None: any of the program's."""
    manifest_sha256: bytes | None = None
    """32 bytes that the answer must name as its manifest. None: the evidence alone says which program it is."""
    proxy: Proxy | None = None
    credential: Credential | None = None
    """What the client shows where the ingress asks for a certificate."""
    prove: Prove | None = None
    """Makes the client's own evidence, for an ingress that judges its clients."""
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_DIALS), repr=False, compare=False)

    async def dial(self) -> Verified:
        """A verified connection. Raises EvidenceError where the peer is refused, Unavailable where none can be had."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise Timeout(
                f"the connections to {address_text(self.address)} before this one took too long",
                check="time for the turn of a connection",
                expected=f"at most {TURN_S:.0f} s, {MAX_DIALS} at once",
                seen="more",
                remedy="see how long the ingress takes for its evidence, and keep connections instead of opening many",
            ) from None
        try:
            return await self._dial()
        finally:
            self._turns.release()

    async def _dial(self) -> Verified:
        try:
            async with asyncio.timeout(CONNECT_S):
                while True:
                    reader, writer = await self._connect()
                    try:
                        return await self._prove(reader, writer)
                    except _Busy:
                        writer.transport.abort()
                    except BaseException:
                        writer.transport.abort()
                        raise
                    await asyncio.sleep(RETRY_S * (1 + secrets.randbelow(1000) / 1000))
        except TimeoutError:
            raise Timeout(
                f"{address_text(self.address)} did not prove itself in time",
                check="time for connection and evidence",
                expected=f"at most {CONNECT_S:.0f} s",
                seen="more",
                remedy="see whether the ingress runs, and whether its machine gives evidence (adyton doctor)",
            ) from None
        except OSError as error:
            raise FetchFailed(
                f"{address_text(self.address)}: {error.strerror or error}",
                check="connection to the ingress",
                expected="a listening ingress",
                seen=error.strerror or str(error),
                remedy="see whether the program runs, and whether the address is right",
            ) from error

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.proxy is None:
            return await asyncio.open_connection(*self.address, limit=READ_BYTES)
        reader, writer = await asyncio.open_connection(*self.proxy.address, limit=READ_BYTES)
        target = address_text(self.address)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.proxy.authorization}")
        writer.write("".join(line + "\r\n" for line in [*lines, ""]).encode("ascii"))
        await writer.drain()
        head = b""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        if not head.startswith(b"HTTP/1.") or len(head) > _MAX_PROXY_ANSWER_BYTES or status != [b"200"]:
            writer.transport.abort()
            raise FetchFailed(
                f"the proxy does not connect to {target}",
                check="answer of the proxy",
                expected="HTTP status 200",
                seen=ascii(head[:40])[2:-1] or "the end of the connection",
                remedy="see HTTPS_PROXY, and what the proxy allows",
            )
        return reader, writer

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Verified:
        notice_dead_peers(writer)
        stream = await SecureStream.open(reader, writer, client_context(self.credential), server=False)
        nonce = secrets.token_bytes(NONCE_BYTES)
        await stream.write(message(Challenge(nonce, proves=self.prove is not None).to_bytes()))
        answer = parse_answer(await stream.read_message(MAX_ANSWER_BYTES))
        if isinstance(answer, Refused):
            if answer.reason == BUSY:
                raise _Busy
            raise FetchFailed(
                "the ingress shows no evidence for this connection",
                check="answer of the ingress",
                expected="evidence",
                seen=ascii(answer.reason[:200])[1:-1],
                remedy="try again later; whoever runs the program finds the reason in its notes",
            )
        if self.name is not None and answer.name != self.name:
            raise Mismatch(
                f"this is the ingress {answer.name}, not {self.name}",
                check="name of the ingress",
                expected=self.name,
                seen=answer.name,
                remedy="connect to the port of the ingress that you named",
            )
        if self.manifest_sha256 is not None and answer.manifest_sha256 != self.manifest_sha256:
            raise Mismatch(
                "the ingress belongs to a program with another manifest",
                check="SHA-256 of the manifest",
                expected=self.manifest_sha256.hex(),
                seen=answer.manifest_sha256.hex(),
                remedy="take the hash from the manifest that you built or checked: sha256sum NAME.manifest",
            )
        facts = stream.channel.facts(nonce)
        wanted = report_data(facts, answer.manifest_sha256, answer.name, answer.devices)
        proved = await self.verify(answer, wanted, gpu_nonce(facts))
        if self.prove is not None:
            await _show(stream, await self.prove(client_report_data(facts, answer.manifest_sha256, answer.name)))
        stream.cut_after((proved.cut_at or proved.valid_until) - datetime.now(UTC))
        return Verified(stream, answer, proved)


async def _show(stream: SecureStream, evidence: ClientEvidence) -> None:
    """Show the client's evidence to an ingress that was verified. Raises FetchFailed where it is not accepted."""
    await stream.write(message(evidence.to_bytes()))
    judged = parse_judgement(await stream.read_message(MAX_JUDGEMENT_BYTES))
    if judged is not None:
        raise FetchFailed(
            "the ingress does not accept the evidence of this client",
            check="evidence of the client",
            expected="evidence that the policy in the program's manifest accepts",
            seen=ascii(judged.reason[:400])[1:-1],
            remedy="ask whoever runs the program what its policy for clients wants",
        )


REFUSALS: Final = (EvidenceError, Unavailable)
"""The errors with which `dial` ends."""
