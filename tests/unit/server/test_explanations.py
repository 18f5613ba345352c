"""Explanations at the running server: few at a time, and nothing is read of what cannot be explained."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.keyserver.refused_programs import MAX_OF_ONE_PLATFORM
from adyton.manifest.signed import SignedManifest
from adyton.release.shown_program import MAX_EXPLAIN_BYTES, PATH_EXPLAIN, explain_message
from adyton.release.wire import PROTOCOL
from tests.support.owner_world import RUNTIME_PARTS, Running, World, make_world
from tests.support.release_by_hand import Logged, answer, entries, explanation, https, post, release, wait_until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform, an approved program."""
    with make_world(tmp_path) as found:
        found.approve(found.program())
        yield found


def denied(world: World, server: Running, signed: SignedManifest) -> str:
    """The id of a fresh denial of this program."""
    status, document = release(world, server, signed)
    assert status == 403
    return str(document["denial"])


def message(signed: SignedManifest, denial: str) -> bytes:
    """The program's explanation."""
    return explain_message(denial, signed.manifest_bytes, {name: part.hex() for name, part in RUNTIME_PARTS.items()})


def begin(connection: ssl.SSLSocket, denial: str, size: int) -> None:
    """Announce an explanation without sending it."""
    head = f"POST {PATH_EXPLAIN}/{denial} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode())


@pytest.mark.parametrize("denial", ["d-nothing", "", "not kept"])
def test_explain_of_no_denial_is_refused_before_it_is_read(world: World, server: Running, denial: str) -> None:
    """Megabytes are announced, none of them sent, and the answer is there."""
    with https(world, server.adyton) as connection:
        begin(connection, denial.replace(" ", "%20"), MAX_EXPLAIN_BYTES)
        status, document = answer(connection)
    assert (status, document["status"]) == (409, "unknown")


def test_explain_under_another_id_is_refused(world: World, server: Running) -> None:
    """The path and the message name the same denial."""
    signed = world.program(argument="x.py")
    first, second = denied(world, server, signed), denied(world, server, signed)
    with https(world, server.adyton) as connection, Logged() as logged:
        assert post(connection, f"{PATH_EXPLAIN}/{first}", message(signed, second))[0] == 202
        wait_until(lambda: any(item["event"] == "not explained" for item in logged.records), within_s=120)
        assert entries(world, "explanation") == []
        assert post(connection, f"{PATH_EXPLAIN}/{second}", message(signed, second))[0] == 202
    assert explanation(world)["denial"] == second


def test_explain_once(world: World, server: Running) -> None:
    """A refusal is explained once; the second answer is that of a refusal that never was."""
    signed = world.program(argument="x.py")
    denial = denied(world, server, signed)
    with https(world, server.adyton) as connection:
        assert post(connection, f"{PATH_EXPLAIN}/{denial}", message(signed, denial)) == (
            202,
            {"protocol": PROTOCOL, "status": "taken"},
        )
    with https(world, server.adyton) as connection:
        again = post(connection, f"{PATH_EXPLAIN}/{denial}", message(signed, denial))
    with https(world, server.adyton) as connection:
        assert post(connection, f"{PATH_EXPLAIN}/d-0123456789abcdef0123", message(signed, denial)) == again
    assert again[0] == 409


def test_explain_few_at_a_time(world: World, server: Running) -> None:
    """A platform that announces much and sends nothing takes its own places for explanations, and no other."""
    signed = world.program(argument="x.py")
    held = [https(world, server.adyton) for _ in range(MAX_OF_ONE_PLATFORM)]
    for connection in held:
        begin(connection, denied(world, server, signed), MAX_EXPLAIN_BYTES)
    explainer = server.server.service.explainer
    wait_until(lambda: explainer.held == MAX_OF_ONE_PLATFORM)
    denial = denied(world, server, signed)
    with https(world, server.adyton) as connection:
        status, document = post(connection, f"{PATH_EXPLAIN}/{denial}", message(signed, denial))
        assert (status, document["check"]) == (503, "explanations at a time")
    assert release(world, server, world.program())[0] == 200
    for connection in held:
        connection.close()
    wait_until(lambda: explainer.held == 0)
    with https(world, server.adyton) as connection:
        assert post(connection, f"{PATH_EXPLAIN}/{denial}", message(signed, denial))[0] == 202
