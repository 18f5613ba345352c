"""An attacker who ends the client's TLS itself: with a key of its own, or with the stolen key of the accepted machine.

It has connections of its own with the accepted machine, machines of its own with genuine evidence, and all that it
recorded before. It wants the client to send one byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from adyton.endpoint.channel import Identity, client_context, server_context
from adyton.endpoint.hello import ALPN, MAX_ANSWER_BYTES, MAX_CHALLENGE_BYTES, Answer, Challenge, message, parse_answer
from adyton.endpoint.hello import parse_challenge as parse
from adyton.endpoint.stream import SecureStream
from tests.faults.network.sessions import MANIFEST, NAME

if TYPE_CHECKING:
    from adyton.endpoint.binding import Connection
    from tests.faults.network.sessions import World

Answers = Callable[["Thief", bytes, bytes], Awaitable[bytes]]
"""What the attacker says to a challenge: itself, the nonce, and the client's message as it came."""


@dataclass
class Thief:
    """One attacked session. `stolen`: with the TLS key of the accepted machine, else with one of its own."""

    world: World
    stolen: bool
    answers: Answers
    chance: random.Random
    earlier: Answer
    connection: Connection | None = None

    @property
    def identity(self) -> Identity:
        """The key with which it ends the client's TLS."""
        return self.world.ingress._identity if self.stolen else Identity(NAME)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the client."""
        seen = self.world.current
        seen.attackers_own = True
        identity = self.identity
        near = await SecureStream.open(reader, writer, server_context(identity), server=True)
        asked = await near.read_message(MAX_CHALLENGE_BYTES)
        nonce = parse(asked).nonce
        self.connection = near.channel.facts(nonce, identity.spki_sha256)
        await near.write(await self.answers(self, nonce, asked))
        if self.answers is bad_frame:
            await asyncio.sleep(0.02)  # else the client would wait for the rest
            return
        while data := await near.read():
            seen.heard += data

    @contextlib.asynccontextmanager
    async def own(self) -> AsyncIterator[SecureStream]:
        """A connection of its own with the accepted machine."""
        reader, writer = await asyncio.open_connection(*self.world.address)
        try:
            yield await SecureStream.open(reader, writer, client_context(), server=False)
        finally:
            writer.transport.abort()

    async def relayed(self, nonce: bytes) -> Answer:
        """The accepted machine's answer to this nonce, on the attacker's own connection."""
        async with self.own() as far:
            await far.write(message(Challenge(nonce).to_bytes()))
            answer = parse_answer(await far.read_message(MAX_ANSWER_BYTES))
        if not isinstance(answer, Answer):
            raise TypeError("the ingress refused the attacker")
        return answer


async def relay(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """The machine's evidence for the client's nonce, made on the attacker's connection."""
    return message((await thief.relayed(nonce)).to_bytes())


async def relay_another_nonce(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """The same, for a nonce of the attacker's."""
    return message((await thief.relayed(thief.chance.randbytes(32))).to_bytes())


async def replay(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """The answer of an earlier session, with the same machine and the same TLS key."""
    return message(thief.earlier.to_bytes())


async def reflect(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """The client's own message."""
    return message(asked)


async def reflect_through_an_answer(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """The client's own message in the place of evidence."""
    return message(Answer(NAME, MANIFEST, asked).to_bytes())


def machine(which: str) -> Answers:
    """Genuine evidence of another machine, made for the attacker's connection with this client."""

    async def answers(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
        if thief.connection is None:
            raise TypeError("no connection")
        return message(thief.world.evidence_of(which, thief.connection).to_bytes())

    return answers


async def program(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """Evidence that the accepted program, taken over, asks for itself."""
    if thief.connection is None:
        raise TypeError("no connection")
    return message(thief.world.evidence_of_the_program(thief.connection).to_bytes())


async def another_field(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """Relayed evidence with another name, hash of the manifest, event log or device beside it."""
    answer = await thief.relayed(nonce)
    changed = thief.chance.choice(
        (
            replace(answer, name="admin"),
            replace(answer, manifest_sha256=thief.chance.randbytes(32)),
            replace(answer, event_log=thief.chance.randbytes(100)),
            replace(answer, devices=(thief.chance.randbytes(100),)),
            replace(answer, cpu=answer.cpu[: thief.chance.randrange(1, len(answer.cpu))]),
        )
    )
    return message(changed.to_bytes())


async def altered(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """Relayed evidence with some bytes of it changed."""
    raw = bytearray((await thief.relayed(nonce)).to_bytes())
    for _ in range(thief.chance.choice((1, 1, 2, 8))):
        raw[thief.chance.randrange(len(raw))] ^= 1 << thief.chance.randrange(8)
    return message(bytes(raw))


async def forged(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """The report data that this client wants, put into the machine's signed evidence."""
    if thief.connection is None:
        raise TypeError("no connection")
    wanted = thief.world.evidence_of("another program", thief.connection).cpu
    answer, at = await thief.relayed(nonce), thief.world.place_of_report_data
    patched = answer.cpu[:at] + wanted[at : at + 64] + answer.cpu[at + 64 :]
    return message(replace(answer, cpu=patched).to_bytes())


async def bad_frame(thief: Thief, nonce: bytes, asked: bytes) -> bytes:
    """A length, and other bytes than it says."""
    size = thief.chance.choice((0, 1, 64, 1 << 10, 1 << 20, (1 << 32) - 1))
    return size.to_bytes(4, "big") + thief.chance.randbytes(min(size, 1 << 10))


ANSWERS: Final[dict[str, Answers]] = {
    "relay": relay,
    "relay for another nonce": relay_another_nonce,
    "replay": replay,
    "reflection": reflect,
    "reflection within an answer": reflect_through_an_answer,
    "another program's evidence": machine("another program"),
    "a debugged program's evidence": machine("a debugged program"),
    "another maker's evidence": machine("another maker's machine"),
    "the taken-over program's evidence": program,
    "another field": another_field,
    "altered answer": altered,
    "forged report data": forged,
    "bad frame": bad_frame,
}


async def downgraded(thief: Thief, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Another ALPN, none, or TLS 1.2, from a server with the accepted machine's key."""
    seen = thief.world.current
    seen.attackers_own = True
    identity = thief.identity
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.key)
    kind = thief.chance.choice(("no ALPN", "another ALPN", "TLS 1.2"))
    if kind == "TLS 1.2":
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    if kind != "no ALPN":
        context.set_alpn_select_callback(lambda _connection, _offered: ALPN if kind == "TLS 1.2" else b"http/1.1")
    near = await SecureStream.open(reader, writer, context, server=True)
    asked = await near.read_message(MAX_CHALLENGE_BYTES)
    await near.write(message((await thief.relayed(parse(asked).nonce)).to_bytes()))
    while data := await near.read():
        seen.heard += data
