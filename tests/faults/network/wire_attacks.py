"""An attacker who holds no key: it alters, drops, repeats, cuts and mixes TLS records on their way.

A record is 5 bytes of header (type, version, length) and its body (RFC 8446, section 5.1). The attacker sees both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

UP: Final = "client to ingress"
DOWN: Final = "ingress to client"
WAYS: Final = (UP, DOWN)

HEADER: Final = 5
TAG: Final = 16
QUIET_S: Final = 0.05
"""After an attack that made both ends wait, the attacker ends the connection: silence is no plaintext."""

_HANDSHAKE, _CHANGE, _DATA = 22, 20, 23


@dataclass
class Tape:
    """The records of an earlier session, each way."""

    records: dict[str, list[bytes]] = field(default_factory=lambda: {UP: [], DOWN: []})


class Cut(Exception):
    """The attacker ends the connection here, with a reset or as an ordinary end."""

    def __init__(self, before: bytes, *, reset: bool) -> None:
        super().__init__()
        self.before = before
        self.reset = reset


Alter = Callable[[bytes], Iterable[bytes]]
"""What becomes of one record. Raises Cut."""


@dataclass
class WireAttack:
    """What is done to record number `index` of one way."""

    name: str
    way: str
    index: int
    alter: Alter
    landed: bool = False
    may_pass: bool = False
    """Whether TLS leaves what was changed open, so that the session may go on. The plaintext stays the same anyway."""


class Middle:
    """The attacker on one connection: two pumps that parse records."""

    def __init__(self, target: tuple[str, int], attack: WireAttack | None, tape: Tape | None = None) -> None:
        self._target = target
        self._attack = attack
        self._tape = tape
        self._moved = 0

    async def __call__(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        far_reader, far = await asyncio.open_connection(*self._target)
        ways = [
            asyncio.ensure_future(self._pump(UP, near_reader, far)),
            asyncio.ensure_future(self._pump(DOWN, far_reader, near)),
        ]
        watch = asyncio.ensure_future(self._end_silence(near, far))
        try:
            await asyncio.gather(*ways)
        except Cut as cut:
            if cut.reset:
                near.transport.abort()
                far.transport.abort()
            for writer in (near, far):
                if writer.can_write_eof():
                    writer.write_eof()
            await asyncio.wait(ways, timeout=QUIET_S)
        finally:
            for task in (*ways, watch):
                task.cancel()
            await asyncio.gather(*ways, watch, return_exceptions=True)
            far.transport.abort()
            near.transport.abort()

    async def _end_silence(self, *writers: asyncio.StreamWriter) -> None:
        before = -1
        while self._attack is None or not self._attack.landed or self._moved != before:
            before = self._moved
            await asyncio.sleep(QUIET_S)
        for writer in writers:
            writer.transport.abort()

    async def _pump(self, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        index = 0
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await source.readexactly(HEADER)
                record = head + await source.readexactly(int.from_bytes(head[3:], "big"))
                if self._tape is not None:
                    self._tape.records[way].append(record)
                await self._pass(way, index, record, sink)
                index += 1
        if sink.can_write_eof():
            sink.write_eof()

    async def _pass(self, way: str, index: int, record: bytes, sink: asyncio.StreamWriter) -> None:
        self._moved += 1
        attack = self._attack
        if attack is None or attack.way != way or attack.index != index:
            sink.write(record)
        else:
            attack.landed = True
            try:
                for part in attack.alter(record):
                    sink.write(part)
            except Cut as cut:
                sink.write(cut.before)
                raise
        await sink.drain()


def _at(record: bytes, where: str, chance: random.Random) -> int:
    body = len(record) - HEADER
    return {
        "type": 0,
        "version": 1 + chance.randrange(2),
        "length": 3 + chance.randrange(2),
        "first byte": HEADER,
        "body": HEADER + chance.randrange(max(body, 1)),
        "tag": len(record) - 1 - chance.randrange(min(TAG, max(body, 1))),
        "last byte": len(record) - 1,
    }[where]


def _closes(record: bytes) -> bool:
    """Whether it is an alert: two bytes, a type and a tag. No message and no request of these tests has two bytes."""
    return record[0] == _DATA and len(record) == HEADER + 2 + 1 + TAG


OFFSETS: Final = ("type", "version", "length", "first byte", "body", "tag", "last byte")


def flip(way: str, index: int, where: str, chance: random.Random) -> WireAttack:
    """One bit of one record."""

    def alter(record: bytes) -> Iterable[bytes]:
        changed = bytearray(record)
        at = min(_at(record, where, chance), len(record) - 1)
        changed[at] ^= 1 << chance.randrange(8)
        # The version of a plain record is ignored (RFC 8446, section 5.1), and a change of cipher means nothing.
        attack.may_pass = record[0] == _CHANGE or (record[0] == _HANDSHAKE and at in (1, 2))
        yield bytes(changed)

    attack = WireAttack(f"flip: {where}", way, index, alter)
    return attack


def drop(way: str, index: int) -> WireAttack:
    """One record does not arrive."""

    def alter(record: bytes) -> Iterable[bytes]:
        attack.may_pass = record[0] == _CHANGE
        return ()

    attack = WireAttack("drop", way, index, alter)
    return attack


def repeat(way: str, index: int) -> WireAttack:
    """One record arrives twice."""

    def alter(record: bytes) -> Iterable[bytes]:
        attack.may_pass = record[0] == _CHANGE or _closes(record)  # what follows an end is not read
        return (record, record)

    attack = WireAttack("repeat", way, index, alter)
    return attack


def insert(way: str, index: int, what: str, chance: random.Random, tape: Tape) -> WireAttack:
    """A record of the attacker's own before one of theirs."""

    def alter(record: bytes) -> Iterable[bytes]:
        forged = {
            "data": bytes([_DATA, 3, 3, 0, 40]) + chance.randbytes(40),
            "change of cipher": bytes([_CHANGE, 3, 3, 0, 1, 1]),
            "close": bytes([21, 3, 3, 0, 2, 1, 0]),
            "fatal alert": bytes([21, 3, 3, 0, 2, 2, 40]),
            "handshake": bytes([_HANDSHAKE, 3, 3, 0, 5, 24, 0, 0, 1, 0]),
            "empty": bytes([_DATA, 3, 3, 0, 0]),
            "too long": bytes([_DATA, 3, 3, 0x7F, 0xFF]) + bytes(0x7FFF),
            "the other way's": chance.choice(tape.records[DOWN if way == UP else UP]),
            "an earlier session's": chance.choice(tape.records[way]),
        }[what]
        attack.may_pass = forged[0] == _CHANGE
        return (forged, record)

    attack = WireAttack(f"insert: {what}", way, index, alter)
    return attack


INSERTED: Final = (
    *("data", "change of cipher", "close", "fatal alert", "handshake"),
    *("empty", "too long", "the other way's", "an earlier session's"),
)


def replace(way: str, index: int, tape: Tape) -> WireAttack:
    """The record of an earlier session with the same place."""

    def alter(record: bytes) -> Iterable[bytes]:
        earlier = tape.records[way]
        attack.may_pass = record[0] == _CHANGE
        return (earlier[min(index, len(earlier) - 1)],)

    attack = WireAttack("replace by an earlier session's", way, index, alter)
    return attack


def swap(way: str, index: int) -> WireAttack:
    """Half of a record comes after its other half."""

    def alter(record: bytes) -> Iterable[bytes]:
        middle = len(record) // 2
        attack.may_pass = record[:middle] == record[middle:] or record[0] == _CHANGE
        return (record[middle:], record[:middle])

    attack = WireAttack("swap halves", way, index, alter)
    return attack


def cut(way: str, index: int, where: str, *, reset: bool) -> WireAttack:
    """The connection ends before, within or after a record."""

    def alter(record: bytes) -> Iterable[bytes]:
        size = {"before": 0, "within": len(record) // 2, "after": len(record)}[where]
        attack.may_pass = where == "after"
        raise Cut(record[:size], reset=reset)

    attack = WireAttack(f"cut {where} a record, {'reset' if reset else 'ordinary end'}", way, index, alter)
    return attack


def rewrite(name: str, old: bytes, new: bytes) -> WireAttack:
    """Other bytes of the same length in the client's first message, which TLS has in its transcript."""

    def alter(record: bytes) -> Iterable[bytes]:
        if old not in record:
            raise AssertionError(f"{name}: the first message has no {old!r}")
        return (record.replace(old, new),)

    return WireAttack(name, UP, 0, alter)


def wire_attack(chance: random.Random, tape: Tape) -> WireAttack:
    """Any attack of this page, at any place."""
    way = chance.choice(WAYS)
    index = chance.randrange(len(tape.records[way]))
    kind = chance.randrange(12)
    if kind < 5:
        return flip(way, index, chance.choice(OFFSETS), chance)
    if kind == 5:
        return drop(way, index)
    if kind == 6:
        return repeat(way, index)
    if kind == 7:
        return insert(way, index, chance.choice(INSERTED), chance, tape)
    if kind == 8:
        return replace(way, index, tape)
    if kind == 9:
        return swap(way, index)
    if kind == 10:
        return cut(way, index, chance.choice(("before", "within", "after")), reset=chance.random() < 0.5)
    return chance.choice(
        (
            rewrite("downgrade: another ALPN", b"adyton-connect/1", b"adyton-connect/0"),
            rewrite("downgrade: no TLS 1.3", b"\x00\x2b\x00\x03\x02\x03\x04", b"\x00\x2b\x00\x03\x02\x03\x03"),
            rewrite("downgrade: TLS 1.3 hidden", b"\x00\x2b\x00\x03\x02\x03\x04", b"\xff\x2b\x00\x03\x02\x03\x04"),
        )
    )
