"""A man in the middle attacks thousands of sessions: no client and no program ever takes a changed byte for a real one.

`make test` attacks some hundred sessions, `make test-long` ten thousand. Each attack is counted only if it took place.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from adyton.endpoint import dial as dial_module
from adyton.endpoint import ingress as ingress_module
from adyton.endpoint.hello import Answer
from tests.faults.network.key_attacks import ANSWERS, Thief, downgraded
from tests.faults.network.sessions import Seen, World, accepting, answer_to, served
from tests.faults.network.wire_attacks import DOWN, UP, Middle, Tape, WireAttack, wire_attack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from adyton.endpoint.dial import Proved

FEW: Final = 300
MANY: Final = 10_000

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two pieces of evidence, and short limits: attackers make both ends wait."""
    monkeypatch.setattr(ingress_module, "PAUSE_S", 0)
    monkeypatch.setattr(ingress_module, "HELLO_S", 5.0)
    monkeypatch.setattr(dial_module, "CONNECT_S", 10.0)


def request(chance: random.Random) -> bytes:
    """What a client sends: from a few bytes to several records."""
    return chance.randbytes(chance.choice((1, 40, 300, 5000, 50_000)))


async def recorded(world: World) -> tuple[Tape, Answer]:
    """The records of a session that nobody attacks, and the answer of its ingress."""
    tape, answers = Tape(), []

    async def judge(answer: Answer, wanted: bytes, gpu_nonce: bytes) -> Proved:
        answers.append(answer)
        return await world.judge(answer, wanted, gpu_nonce)

    async with accepting(Middle(world.address, None, tape)) as address:
        seen = await world.session(address, bytes(range(256)) * 100, judge)
    assert seen.whole, seen.refused
    assert seen.violations() == []
    await world.quiet()
    return tape, answers[0]


async def attacked(
    world: World,
    attacker: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    sent: bytes,
) -> Seen:
    """One session through an attacker."""
    async with accepting(attacker) as address:
        seen = await world.session(address, sent)
    await world.quiet()
    return seen


async def campaign(folder: Path, count: int, seed: int) -> Counter[str]:
    """So many attacked sessions, each judged. Gives how many of each kind were refused, cut or left as they were."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    async with served(folder) as world:
        tape, earlier = await recorded(world)
        attack: WireAttack | None
        done = 0
        while done < count:
            sent = request(chance)
            if chance.random() < 0.7:
                attack = wire_attack(chance, tape)
                seen = await attacked(world, Middle(world.address, attack), sent)
                if not attack.landed:  # the session was shorter
                    continue
                name = attack.name
                passes = attack.may_pass
            else:
                name = chance.choice((*ANSWERS, "downgrade by the server"))
                stolen = chance.random() < 0.6
                thief = Thief(world, stolen, ANSWERS.get(name, ANSWERS["relay"]), chance, earlier)
                serve = partial(downgraded, thief) if name not in ANSWERS else thief
                seen = await attacked(world, serve, sent)
                name = f"{'stolen' if stolen else 'own'} key: {name}"
                passes = False
                assert not seen.accepted, f"session {done}, seed {seed}: {name} was accepted"
                assert not any(seen.program_got), name
            done += 1
            broken = seen.violations()
            assert not broken, f"session {done}, seed {seed}: {name}: {broken}"
            assert passes or not seen.whole, f"session {done}, seed {seed}: {name} was not noticed"
            ends[name] += 1
            ends["refused" if not seen.accepted else "whole" if seen.whole else "cut"] += 1
        seen = await world.session(world.address, request(chance))
        assert seen.whole, "the ingress serves on"
    return ends


def test_some_hundred_attacked_sessions(tmp_path: Path) -> None:
    """No attack gets a byte through, and the ingress goes on serving."""
    ends = asyncio.run(campaign(tmp_path, FEW, seed=17))
    assert ends["refused"] > FEW / 4
    assert ends["cut"] > FEW / 10


@pytest.mark.slow
def test_ten_thousand_attacked_sessions(tmp_path: Path) -> None:
    """The same, ten thousand times, with every attack of the list among them."""
    seed = time.time_ns() % 1_000_000
    ends = asyncio.run(campaign(tmp_path, MANY, seed))
    print(f"seed {seed}: {sorted(ends.items())}")
    assert ends["refused"] + ends["cut"] + ends["whole"] == MANY
    for stolen in ("stolen", "own"):
        for name in (*ANSWERS, "downgrade by the server"):
            assert ends[f"{stolen} key: {name}"] > 20, name
    for kind in ("flip: ", "drop", "repeat", "insert: ", "replace", "swap", "cut ", "downgrade: "):
        assert sum(found for name, found in ends.items() if name.startswith(kind)) > 100, kind


def test_recorded_session_is_replayed_to_both_ends(tmp_path: Path) -> None:
    """Whoever sends a recorded session again reaches neither the program nor the client."""

    async def run() -> None:
        async with served(tmp_path) as world:
            tape, _ = await recorded(world)
            seen = world.current = Seen(b"")
            reader, writer = await asyncio.open_connection(*world.address)
            writer.write(b"".join(tape.records[UP]))
            writer.write_eof()
            await reader.read()
            writer.transport.abort()
            await world.quiet()
            assert seen.program_got == []

            async def replaying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(1)
                writer.write(b"".join(tape.records[DOWN]))
                await reader.read()

            seen = await attacked(world, replaying, b"secret")
            assert not seen.accepted

    asyncio.run(run())


def test_thief_succeeds_where_the_binding_is_not_compared(tmp_path: Path) -> None:
    """The harness has teeth: a client that takes any report data sends its bytes to the thief, and that is seen."""

    async def run() -> list[str]:
        async with served(tmp_path) as world:
            _, earlier = await recorded(world)
            at = world.place_of_report_data

            async def careless(answer: Answer, _wanted: bytes, gpu_nonce: bytes) -> Proved:
                return await world.judge(answer, answer.cpu[at : at + 64], gpu_nonce)

            thief = Thief(world, True, ANSWERS["relay"], random.Random(1), earlier)
            async with accepting(thief) as address:
                seen = await world.session(address, b"secret", careless)
            await world.quiet()
            return seen.violations()

    assert asyncio.run(run()) == ["the attacker read what the client sent"]


@pytest.mark.parametrize(
    ("spoilt", "broken"),
    [
        ({"got": b"X"}, "the client got a byte that the program did not send"),
        ({"whole": True}, "the client took a part of the answer for the whole"),
        ({"program_got": [b"abd"]}, "the program got a byte that the client did not send"),
        ({"program_whole": [b"ab"]}, "the program took a part of the request for the whole"),
        ({"program_whole": [b""]}, "the program took a part of the request for the whole"),
        ({"program_got": [b"abc", b"abc"]}, "the program got a request twice"),
        ({"heard": b"abc"}, "the attacker read what the client sent"),
    ],
)
def test_broken_promises_are_seen(spoilt: dict[str, object], broken: str) -> None:
    """Each promise has a session that breaks it."""
    assert Seen(b"abc", **spoilt).violations() == [broken]  # type: ignore[arg-type]
    assert Seen(b"abc", bytearray(answer_to(b"abc")), whole=True, program_whole=[b"abc"]).violations() == []
