"""The Gramine port: what uses up a run, which key is meant, and clients that abuse TLS."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.ratls import make_certificate
from adyton.keyserver.service import KeyService
from adyton.manifest.signed import SignedManifest
from adyton.release import secret_provisioning
from adyton.release.tls import MAX_CLIENT_CHAIN_BYTES, client_context, use_certificate
from adyton.server.listener import Limits
from tests.support.owner_world import Running, World, now, running
from tests.support.release_by_hand import credential, entries, https, obtain, provision, reason, wait_until

OTHER = b"o" * 16


def connect(world: World, address: str, pair: tuple[bytes, bytes]) -> ssl.SSLSocket:
    """A connection to the Gramine port whose handshake is done."""
    context = client_context(world.ca_pem)
    use_certificate(context, *pair)
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    return context.wrap_socket(plain, server_hostname="adyton-key-server")


# --- what uses up a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", secret_provisioning.REQUEST[:-1], secret_provisioning.REQUEST.replace(b"V1", b"V2"), b"G" * 35]
)
def test_ra_tls_without_the_request_uses_up_no_run(world: World, sent: bytes) -> None:
    """Who connects and asks for nothing is judged by nobody; the one run is there for who asks."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",), max_runs=1)
    with running(world, limits=Limits(request_timeout_s=2)) as server:
        with connect(world, server.ra_tls, credential(world, signed)) as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b""
        assert entries(world, "release") == []
        assert provision(world, server, *credential(world, signed)) != b""
        assert provision(world, server, *credential(world, signed)) == b""
    assert [entry["reason"]["check"] for entry in entries(world, "denial")] == ["number of runs"]


def test_ra_tls_slow_client_is_dropped_and_harms_nobody(world: World) -> None:
    """A client that sends its request byte by byte is dropped in time, and others are served meanwhile."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    with running(world, limits=Limits(request_timeout_s=1.5)) as server:
        with connect(world, server.ra_tls, credential(world, signed)) as connection:
            for byte in secret_provisioning.REQUEST[:-1]:
                connection.sendall(bytes([byte]))
            assert provision(world, server, *credential(world, signed)) != b""
            assert connection.recv(100) == b""
        wait_until(lambda: server.server.counters.open == 0)
    assert len(entries(world, "release")) == 1


def test_ra_tls_failure_inside_closes_the_connection(world: World, server: Running) -> None:
    """*Could not check* has no words in this protocol; the next client is served."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.server.service._queue, "put", lambda _job: False)
        assert provision(world, server, *credential(world, signed)) == b""
    assert provision(world, server, *credential(world, signed)) != b""
    wait_until(lambda: server.server.counters.open == 0)
    assert server.server.counters.closed == {"served": 2}


# --- which key ----------------------------------------------------------------------------------------------------


def ask(world: World, service: KeyService, signed: SignedManifest, name: str | None = None) -> bytes | str:
    """The key that a fresh run gets, or which check refused it."""
    key = ec.generate_private_key(ec.SECP384R1())
    times = {"not_before": now() - timedelta(hours=1), "not_after": now() + timedelta(hours=1)}
    answer = service.provision([make_certificate(key, world.enclave(signed).quote, **times)], name, "p").result(60)
    if answer.payload is not None:
        return next(iter(answer.payload.keys.values()))
    assert answer.refusal is not None
    assert answer.refusal.check == "approval of the program and its platform"
    return reason(world)["check"]


@pytest.mark.parametrize("limit", [{"max_runs": 1}, {"max_active": 1}])
def test_ra_tls_used_up_key_is_not_replaced_by_another(world: World, limit: dict[str, int]) -> None:
    """Two keys are two keys although the runs of one are used up: which is meant must be said."""
    signed = world.program()
    with world.store.write() as change:
        change.add_key("other", OTHER, "key", actor="test")
    world.approve(signed, protocols=("ra-tls",), **limit)
    world.approve(signed, protocols=("ra-tls",), key="other")
    service = world.service()
    try:
        assert ask(world, service, signed) == "name of the key"
        assert ask(world, service, signed, "weights.keys.adyton-key-server") == bytes(range(16))
        assert ask(world, service, signed) == "name of the key"
        assert ask(world, service, signed, "other.keys.adyton-key-server") == OTHER
    finally:
        service.close()


def test_ra_tls_only_key_that_is_used_up_says_so(world: World) -> None:
    """With one key, and its runs used up, that is the refusal."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",), max_runs=1)
    service = world.service()
    try:
        assert ask(world, service, signed) == bytes(range(16))
        assert ask(world, service, signed) == "number of runs"
    finally:
        service.close()


# --- TLS ----------------------------------------------------------------------------------------------------------


def with_public_half_of(thief: ec.EllipticCurvePrivateKey, victim: ec.EllipticCurvePrivateKey) -> bytes:
    """An EC key as OpenSSL loads it unchecked: this one's scalar beside that one's point."""

    def wrapped(tag: int, content: bytes) -> bytes:
        size = len(content)
        return bytes([tag]) + (bytes([size]) if size < 128 else bytes([0x81, size])) + content

    scalar = thief.private_numbers().private_value.to_bytes(48, "big")
    point = victim.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    curve = wrapped(0xA0, bytes.fromhex("06052b81040022"))
    der = wrapped(0x30, b"\x02\x01\x01" + wrapped(4, scalar) + curve + wrapped(0xA1, wrapped(3, b"\0" + point)))
    return b"-----BEGIN EC PRIVATE KEY-----\n" + base64.encodebytes(der) + b"-----END EC PRIVATE KEY-----\n"


def test_ra_tls_replayed_certificate_without_its_key_fails_the_handshake(world: World, server: Running) -> None:
    """A certificate seen on the wire is of no use without its private key, whatever stands beside it."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    victim, thief = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    times = {"not_before": now() - timedelta(hours=1), "not_after": now() + timedelta(hours=1)}
    certificate = ssl.DER_cert_to_PEM_cert(make_certificate(victim, world.enclave(signed).quote, **times)).encode()
    assert provision(world, server, certificate, with_public_half_of(victim, victim)) != b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert provision(world, server, certificate, with_public_half_of(thief, victim)) == b""
    wait_until(lambda: server.server.counters.closed["handshake"] == 1)
    assert server.server.counters.requests["ra-tls"] == 1
    assert len(entries(world, "release")) == 1


def test_ra_tls_oversized_chain_fails_the_handshake(world: World, server: Running) -> None:
    """More certificates than one program has are not even read to the end."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    certificate, key = credential(world, signed)
    count = 1 + MAX_CLIENT_CHAIN_BYTES // len(ssl.PEM_cert_to_DER_cert(certificate.decode()))
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert provision(world, server, certificate * (count - 1), key) == b""
    wait_until(lambda: len(entries(world, "denial")) == 1)
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert provision(world, server, certificate * (count + 1), key) == b""
    wait_until(lambda: server.server.counters.closed["handshake"] == 1)
    assert len(entries(world, "denial")) == 1
    assert provision(world, server, certificate, key) != b""


def test_server_more_connections_than_allowed_in_all_are_turned_away(world: World) -> None:
    """The bound on all connections holds, whoever's they are, and who comes when one has left is served."""
    signed = world.program()
    world.approve(signed)
    with running(world, limits=Limits(max_connections=4, max_per_address=100)) as server:
        host, _, port = server.adyton.rpartition(":")
        held = []
        for number in range(6):
            plain = socket.socket()
            plain.bind((f"127.0.0.{2 + number}", 0))
            plain.connect((host, int(port)))
            held.append(plain)
        wait_until(lambda: server.server.counters.rejected["connections"] == 2)
        assert server.server.counters.open == 4
        for plain in held:
            plain.close()
        wait_until(lambda: server.server.counters.open == 0)
        assert obtain(world, server, signed).keys


def test_tls_session_is_not_resumed(world: World, server: Running) -> None:
    """A session offered again is not taken up: every connection shows its evidence."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    pair = credential(world, signed)
    with connect(world, server.ra_tls, pair) as first:
        first.sendall(secret_provisioning.REQUEST)
        assert first.recv(1000)
        session = first.session
    context = client_context(world.ca_pem)
    use_certificate(context, *pair)
    host, _, port = server.ra_tls.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(plain, server_hostname="adyton-key-server") as second:
        assert not second.session_reused
    assert session is None or not session.has_ticket


def test_tls_connection_closed_at_every_stage_frees_its_place(world: World, server: Running) -> None:
    """Whenever a client leaves, nothing of it stays."""
    host, _, port = server.ra_tls.rpartition(":")
    for sent in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\x02\x00\x01"):
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(sent)
    https(world, server.adyton).close()
    wait_until(lambda: server.server.counters.open == 0)
    assert server.server.counters.active == 0
