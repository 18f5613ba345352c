"""Waves of the worst that strangers can send: whatever becomes of it, releases, acknowledgements and /readyz go on.

Nothing here rests on speed: what must be answered has minutes for it, and would have no answer at all where the
strangers' work stood in its way.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adyton.attest.bundle import EvidenceBundle
from adyton.attest.certificates import parse_chain
from adyton.attest.evidence import parse_evidence
from adyton.attest.ratls import parse_certificate, parse_claims, parse_evidence_extension
from adyton.confined_process import Bounds
from adyton.errors import Error, OutOfOrder
from adyton.keyserver import program_comparison
from adyton.keyserver.refused_programs import MAX_EXPLAINING
from adyton.manifest.measure import combine, workload_measurement
from adyton.release.client import obtain_keys
from adyton.release.messages import (
    MAX_REQUEST_BYTES,
    PATH_CHALLENGE,
    PATH_RELEASE,
    PATH_USED,
    EnclaveKey,
    ReleaseRequest,
    challenge_request,
    parse_challenge,
    parse_release_request,
    parse_used,
    used_message,
)
from adyton.release.shown_program import MAX_EXPLAIN_BYTES, PATH_EXPLAIN
from adyton.release.wire import PROTOCOL, parse_object
from adyton.server.listener import Limits
from adyton.server.process import server_identity
from adyton.values import Digest
from tests.support.owner_world import RUNTIME_PARTS, Running, World, running
from tests.support.release_by_hand import answer, entries, get, https, post, wait_until
from tests.support.run_keys import RUN_KEY

PATIENCE_S = 300
LIMITS = Limits(request_timeout_s=PATIENCE_S, idle_timeout_s=PATIENCE_S, connection_timeout_s=3 * PATIENCE_S)
PARTS = {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}


def deep(size: int) -> bytes:
    """One dotted key of so many parts: 22 KB of it kept a thread busy for ever."""
    return b".".join([b"a"] * (size // 2)) + b" = 1\n"


def crossed(size: int) -> bytes:
    """Tables that lie in each other and are written again and again."""
    line = b"[" + b".".join([b"a"] * 500) + b".%d]\n"
    return b"".join(line % number for number in range(size // len(line)))


def nested(size: int) -> bytes:
    """Arrays in arrays."""
    return b"a = " + b"[" * (size // 2) + b"]" * (size // 2) + b"\n"


def quotes(size: int) -> bytes:
    """Strings that never end, over a whole manifest's length."""
    return b'a = """' + b'\\"' * (size // 2)


def many(size: int) -> bytes:
    """Names in great number."""
    return b"".join(b"k%d.a = 1\n" % number for number in range(size // 14))


WORST: list[Callable[[], bytes]] = [
    lambda: deep(22_000),
    lambda: deep(1 << 20),
    lambda: crossed(1 << 20),
    lambda: nested(1 << 20),
    lambda: quotes(8 << 20),
    lambda: many(4 << 20),
]


def message(denial: str, manifest: bytes, parts: dict[str, str] | None = None) -> bytes:
    """An explanation that shows this manifest, packed as small as it goes."""
    packed = base64.b64encode(zlib.compress(manifest, 9)).decode()
    document = {"protocol": PROTOCOL, "denial": denial, "manifest_zlib": packed, "runtime_parts": parts or PARTS}
    return json.dumps(document).encode()


def malformed(denial: str) -> list[bytes]:
    """Messages that are no explanations, each the worst of its kind that fits."""
    bomb = base64.b64encode(zlib.compress(bytes(256 << 20), 9)).decode()
    head = json.dumps({"protocol": PROTOCOL, "denial": denial})[:-1]
    return [
        b"[" * MAX_EXPLAIN_BYTES,
        b'{"a":' * (MAX_EXPLAIN_BYTES // 5),
        b'"' + b'\\"' * (MAX_EXPLAIN_BYTES // 2 - 1),
        b'{"' + b'":{"'.join([b"x"] * 100) + b'"}',
        b"[" + b"{}," * (MAX_EXPLAIN_BYTES // 3 - 1) + b"{}]",
        b'{"a": ' + b"9" * (MAX_EXPLAIN_BYTES - 10) + b"}",
        f'{head}, "manifest_zlib": "{bomb}", "runtime_parts": {{}}}}'.encode(),
        message(denial, b"", {f"part {number}": "ab" * 32 for number in range(30_000)}),
    ]


def denied(world: World, server: Running, raw: bytes) -> str:
    """The refusal of a genuine enclave that was measured with this text as its manifest."""
    workload = workload_measurement(raw, combine(RUNTIME_PARTS))
    enclave = world.platform.enclave(measurement=workload, mrsigner=bytes(32), isv_prod_id=0, isv_svn=0)
    with https(world, server.adyton) as connection:
        connection.settimeout(PATIENCE_S)
        _, challenge = post(connection, PATH_CHALLENGE, challenge_request())
        nonce = parse_challenge(json.dumps(challenge).encode()).nonce
        unsigned = ReleaseRequest(
            nonce, EnclaveKey().public_bytes, Digest(b"m" * 32), ("weights",), EvidenceBundle(), run_key=RUN_KEY
        )
        evidence = enclave.quote(unsigned.report_data(server_identity(world.home)))
        status, document = post(
            connection, PATH_RELEASE, replace(unsigned, evidence=EvidenceBundle(cpu=evidence)).to_bytes()
        )
    assert status == 403
    return str(document["denial"])


def explain(world: World, server: Running, denial: str, body: bytes) -> int:
    """Send an explanation; its status."""
    with https(world, server.adyton) as connection:
        connection.settimeout(PATIENCE_S)
        return post(connection, f"{PATH_EXPLAIN}/{denial}", body)[0]


def others_are_served(world: World, server: Running) -> None:
    """A release, its acknowledgement, somebody's acknowledgement of nothing, and /readyz."""
    with https(world, server.adyton) as connection:
        connection.settimeout(PATIENCE_S)
        assert get(connection, "/readyz") == (200, {"status": "ready"})
        before = len(entries(world, "used"))
        signed = world.program()
        assert obtain_keys(signed, world.enclave(signed), {"": server.adyton}, timeout_s=PATIENCE_S).keys
        assert len(entries(world, "used")) == before + 1
        assert post(connection, PATH_USED, used_message("g-nothing", bytes(32)))[0] == 409
        assert get(connection, "/readyz") == (200, {"status": "ready"})


def test_explanations_that_never_end_stop_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place for explanations is taken for good, three times over, and nobody else notices."""
    began, end = threading.Event(), threading.Event()

    def for_ever(denial: str, _message: bytes) -> Any:
        began.set()
        end.wait(PATIENCE_S)
        raise OutOfOrder(f"{denial}: it did not end by itself")

    monkeypatch.setattr("adyton.keyserver.refused_programs.unpacked", for_ever)
    monkeypatch.setattr("adyton.keyserver.refused_programs.MAX_OF_ONE_PLATFORM", MAX_EXPLAINING)
    with running(world, limits=LIMITS) as server:
        found = []
        for wave in range(3):
            for number in range(MAX_EXPLAINING):
                denial = denied(world, server, b"a = %d\n" % (10 * wave + number))
                found.append(explain(world, server, denial, message(denial, b"a = 1\n")))
            assert began.wait(PATIENCE_S)
            others_are_served(world, server)
        assert found == [202] * 3 * MAX_EXPLAINING  # what has no place is dropped, and the answer does not say so
        assert server.server.service.explainer.held == MAX_EXPLAINING
        end.set()
        wait_until(lambda: server.server.service.explainer.held == 0, within_s=PATIENCE_S)
        denial = denied(world, server, b"a = 100\n")
        assert explain(world, server, denial, message(denial, b"a = 100\n")) == 202


def test_who_is_turned_away_is_told_when_to_come_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 comes with Retry-After."""
    monkeypatch.setattr("adyton.keyserver.refused_programs.MAX_OF_ONE_PLATFORM", 0)
    with running(world, limits=LIMITS) as server:
        denial = denied(world, server, b"a = 1\n")
        with https(world, server.adyton) as connection:
            connection.sendall(
                f"POST {PATH_EXPLAIN}/{denial} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode()
            )
            head = connection.recv(65536)
    assert head.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 5\r\n" in head


@pytest.mark.parametrize("make", WORST, ids=["deep", "deeper", "crossed", "nested", "quotes", "many"])
def test_worst_manifests_come_to_an_end_while_others_are_served(
    world: World, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]
) -> None:
    """Genuine evidence of a hostile text as a manifest: it is compared, or its process is ended; both are the end."""
    monkeypatch.setattr(program_comparison, "BOUNDS", Bounds(cpu_s=3, wall_s=PATIENCE_S))
    raw = make()
    with running(world, limits=LIMITS) as server:
        denial = denied(world, server, raw)
        assert explain(world, server, denial, message(denial, raw)) == 202
        others_are_served(world, server)
        wait_until(lambda: server.server.service.explainer.held == 0, within_s=PATIENCE_S)
        others_are_served(world, server)
    assert all(len(json.dumps(each)) < 64 * 1024 for each in entries(world, "explanation"))


def test_worst_messages_come_to_an_end_while_others_are_served(world: World) -> None:
    """What is no explanation at all is read elsewhere, too, and kept nowhere."""
    with running(world, limits=LIMITS) as server:
        for number in range(len(malformed("d-1"))):
            denial = denied(world, server, b"a = %d\n" % number)
            assert explain(world, server, denial, malformed(denial)[number]) == 202
            others_are_served(world, server)
            wait_until(lambda: server.server.service.explainer.held == 0, within_s=PATIENCE_S)
    assert entries(world, "explanation") == []


def test_bytes_in_chunks_of_one_are_refused_before_they_are_read(world: World) -> None:
    """A chunk of one byte costs as much as one of thousands: a length stands before every message, or it is refused."""
    with running(world, limits=LIMITS) as server:
        for path in (PATH_RELEASE, PATH_CHALLENGE, PATH_USED):
            with https(world, server.adyton) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(head.encode() + b"1\r\nx\r\n" * 500)
                status, document = answer(connection)
            assert (status, document["check"]) == (400, "length of the message")
        for length in ("999999999999999", str(MAX_REQUEST_BYTES + 1), "1" * 4000):
            with https(world, server.adyton) as connection:
                connection.sendall(
                    f"POST {PATH_RELEASE} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
                )
                assert answer(connection)[0] in (0, 400)
        others_are_served(world, server)


def test_acknowledgements_that_hang_stop_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer acknowledgements takes their threads, and no others."""
    end = threading.Event()
    monkeypatch.setattr("adyton.server.protocols.MAX_ACKNOWLEDGING", 2)
    service = world.service()
    monkeypatch.setattr(service, "used", lambda _grant, _token: end.wait(PATIENCE_S))
    body = used_message("g-nothing", bytes(32))
    head = f"POST {PATH_USED} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running(world, limits=LIMITS, service=service) as server:
        held = [https(world, server.adyton) for _ in range(4)]
        for connection in held:
            connection.sendall(head + body)
        pool = server.server._acknowledging
        wait_until(lambda: pool._inside == 4)
        with https(world, server.adyton) as connection:
            connection.settimeout(PATIENCE_S)
            assert post(connection, PATH_USED, body)[0] == 503
            assert get(connection, "/readyz") == (200, {"status": "ready"})
        assert denied(world, server, b"a = 1\n")
        end.set()
        assert [answer(connection)[0] for connection in held] == [200] * 4
        for connection in held:
            connection.close()


# --- what is parsed in the server itself ---------------------------------------------------------------------------


def worst_bodies(limit: int) -> list[bytes]:
    """JSON that is hard to read, of so many bytes."""
    return [
        b"[" * limit,
        b'{"a":' * (limit // 5),
        b'"' + b'\\"' * (limit // 2 - 1),
        b'"' + b'\\"' * (limit // 2 - 1) + b"\\",
        b'{"' + b'"' * (limit - 2),
        b"[" + b"[]," * (limit // 3 - 1) + b"[]]",
        b'{"a": [' + b"1," * (limit // 2 - 5) + b"1]}",
        b'{"a": ' + b"9" * (limit - 7) + b"}",
        b'{"a": 0.' + b"9" * (limit - 9) + b"}",
        b'{"a": 1e' + b"9" * (limit - 9) + b"}",
        b"{" + b",".join(b'"%d":0' % number for number in range(limit // 9)) + b"}",
        b"\xff" * limit,
        b'{"a": "' + b"\\ud800" * (limit // 6 - 2) + b'"}',
        b" " * limit,
    ]


def worst_evidence(limit: int) -> list[bytes]:
    """Bytes that are hard to take for evidence, a certificate, or a chain."""
    pem = b"-----BEGIN CERTIFICATE-----\n"
    return [
        bytes(limit),
        b"\x30\x80" * (limit // 2),
        b"\x30\x82\xff\xff" * (limit // 4),
        b"\x03\x00\x02\x00" + b"\xff" * (limit - 4),
        (b"\x04\x00\x02\x00\x81\x00\x00\x00" + b"\x01" * limit)[:limit],
        pem * (limit // len(pem)),
        (pem + b"A" * limit)[:limit],
        b"\xa1" * limit,
        b"\xd9\xea\x60\x82\x5b" + b"\xff" * (limit - 5),
        b"\xb9\xff\xff" + b"\x61a\x41b" * (limit // 4 - 1),
    ]


PARSERS: list[tuple[Callable[[bytes], object], Callable[[int], list[bytes]], int]] = [
    (parse_release_request, worst_bodies, MAX_REQUEST_BYTES),
    (parse_used, worst_bodies, 1024),
    (parse_evidence, worst_evidence, 32 * 1024),
    (parse_certificate, worst_evidence, 40 * 1024),
    (lambda raw: parse_chain(raw, ("a", "b", "c"), "chain"), worst_evidence, 64 * 1024),
    (parse_evidence_extension, worst_evidence, 40 * 1024),
    (parse_claims, worst_evidence, 40 * 1024),
]


@pytest.mark.parametrize(
    ("parse", "make", "limit"),
    PARSERS,
    ids=["release", "used", "evidence", "ra-tls", "chain", "extension", "claims"],
)
def test_parsers_of_strangers_bytes_cost_little_at_their_longest(
    parse: Callable[[bytes], object], make: Callable[[int], list[bytes]], limit: int
) -> None:
    """Each of the worst inputs is refused with an error of Adyton's, for a second of a processor at most.

    They cost milliseconds. What is not linear in its length takes minutes for these, whatever the machine.
    """
    for raw in make(limit):
        began = time.thread_time()
        with pytest.raises(Error):
            parse(raw)
        assert time.thread_time() - began < 1, raw[:20]


def test_shape_of_a_message_is_capped_before_anything_is_built() -> None:
    """Brackets and commas in strings do not count, those outside of them do."""
    assert parse_object(b'{"a": "' + b"," * 9999 + b'"}', 10_100) == {"a": "," * 9999}
    assert parse_object(b'{"a": "' + b"[" * 100 + b'"}', 1000) == {"a": "[" * 100}
    assert parse_object(b'{"a": "\\\\", "b": [[[[[[["\\"]"]]]]]]]}', 1000)["a"] == "\\"
    for part in (b'"",', b"{},", b"1,"):
        with pytest.raises(OutOfOrder, match="too many parts"):
            parse_object(b'{"a": [' + part * 4096 + b"1]}", 1 << 20)
    with pytest.raises(OutOfOrder, match="nested too deep"):
        parse_object(b'{"a": ' + b"[" * 8 + b"]" * 8 + b"}", 1000)
