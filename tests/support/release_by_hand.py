"""Both release protocols by hand, so that a test can change one part of them."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.bundle import EvidenceBundle
from adyton.attest.ratls import make_certificate
from adyton.manifest.signed import SignedManifest
from adyton.release import secret_provisioning
from adyton.release.client import Released, obtain_keys
from adyton.release.messages import (
    PATH_CHALLENGE,
    PATH_RELEASE,
    EnclaveKey,
    ReleaseRequest,
    challenge_request,
    parse_challenge,
)
from adyton.release.tls import client_context, use_certificate
from adyton.server.process import server_identity
from adyton.values import Nonce
from tests.support.owner_world import Running, World, now
from tests.support.run_keys import RUN_KEY


def obtain(world: World, where: Running | str, signed: SignedManifest, **changes: Any) -> Released:
    """Get keys, as `adyton run` does."""
    protocol = changes.pop("protocol", "adyton")
    source = changes.pop("source", None) or world.enclave(signed)
    address = where if isinstance(where, str) else where.adyton if protocol == "adyton" else where.ra_tls
    return obtain_keys(signed, source, {"alice": address}, protocol=protocol, timeout_s=10, **changes)


def wait_until(holds: Callable[[], bool], *, within_s: float = 20) -> None:
    """Wait until something holds, for a bounded time."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def entries(world: World, kind: str) -> list[dict[str, Any]]:
    """The bodies of the audit entries of one kind."""
    with world.store.read() as view:
        return [json.loads(entry.body) for entry in view.entries(kind=kind)]


def reason(world: World) -> dict[str, str]:
    """The reason of the last refusal in the owner's record."""
    found: dict[str, str] = entries(world, "denial")[-1]["reason"]
    return found


def explanation(world: World) -> dict[str, Any]:
    """The one explanation in the record. Waits for it."""
    wait_until(lambda: bool(entries(world, "explanation")), within_s=120)
    (found,) = entries(world, "explanation")
    return found


def https(world: World, address: str) -> ssl.SSLSocket:
    """A TLS connection to the key server."""
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    return client_context(world.ca_pem).wrap_socket(plain, server_hostname="adyton-key-server")


def post(connection: ssl.SSLSocket, path: str, body: bytes, *, headers: str = "") -> tuple[int, dict[str, Any]]:
    """One HTTP request by hand."""
    head = f"POST {path} HTTP/1.1\r\nHost: adyton-key-server\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    connection.sendall(head.encode() + body)
    return answer(connection)


def answer(connection: ssl.SSLSocket) -> tuple[int, dict[str, Any]]:
    """One HTTP response by hand."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        more = connection.recv(65536)
        if not more:
            return 0, {}
        raw += more
    head, _, body = raw.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), json.loads(body)


def release(
    world: World,
    server: Running,
    signed: SignedManifest,
    *,
    key: EnclaveKey | None = None,
    identity: Any = None,
    nonce: Nonce | None = None,
    names: tuple[str, ...] = ("weights",),
) -> tuple[int, dict[str, Any]]:
    """A whole release by hand, with one changed part."""
    key = key or EnclaveKey()
    with https(world, server.adyton) as connection:
        _, challenge = post(connection, PATH_CHALLENGE, challenge_request())
        nonce = nonce or parse_challenge(json.dumps(challenge).encode()).nonce
        unsigned = ReleaseRequest(
            nonce, key.public_bytes, signed.manifest_sha256, names, EvidenceBundle(), run_key=RUN_KEY
        )
        binding = unsigned.report_data(identity or server_identity(world.home))
        request = replace(unsigned, evidence=EvidenceBundle(cpu=world.enclave(signed).quote(binding)))
        return post(connection, PATH_RELEASE, request.to_bytes())


def credential(world: World, signed: SignedManifest, **changes: Any) -> tuple[bytes, bytes]:
    """An RA-TLS certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP384R1())
    times = {"not_before": now() - timedelta(hours=1), "not_after": now() + timedelta(hours=1), **changes}
    der = make_certificate(key, world.enclave(signed).quote, **times)
    return ssl.DER_cert_to_PEM_cert(der).encode(), key_pem(key)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def provision(
    world: World,
    server: Running,
    certificate: bytes | None,
    key: bytes = b"",
    *,
    send: bytes = secret_provisioning.REQUEST,
) -> bytes:
    """Gramine's protocol by hand. Returns all that the server says after the request."""
    context = client_context(world.ca_pem)
    if certificate is not None:
        use_certificate(context, certificate, key)
    host, _, port = server.ra_tls.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(plain, server_hostname="adyton-key-server") as connection:
        connection.sendall(send)
        found = b""
        while more := connection.recv(65536):
            found += more
            if len(found) >= 57:
                break
        return found


def get(connection: ssl.SSLSocket, path: str) -> tuple[int, dict[str, Any]]:
    """One question by hand."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: adyton-key-server\r\n\r\n".encode())
    return answer(connection)


def release_message(
    world: World, connection: ssl.SSLSocket, signed: SignedManifest, *, key: EnclaveKey | None = None
) -> bytes:
    """A request for `weights`, as it should be, over a fresh challenge."""
    _, challenge = post(connection, PATH_CHALLENGE, challenge_request())
    nonce = parse_challenge(json.dumps(challenge).encode()).nonce
    unsigned = ReleaseRequest(
        nonce,
        (key or EnclaveKey()).public_bytes,
        signed.manifest_sha256,
        ("weights",),
        EvidenceBundle(),
        run_key=RUN_KEY,
    )
    binding = unsigned.report_data(server_identity(world.home))
    return replace(unsigned, evidence=EvidenceBundle(cpu=world.enclave(signed).quote(binding))).to_bytes()


class Logged(logging.Handler):
    """The key server's log during the block."""

    def __init__(self, *names: str) -> None:
        super().__init__(logging.INFO)
        self._loggers = [logging.getLogger(name) for name in names or ("adyton.keyserver",)]
        self._levels = [logger.level for logger in self._loggers]
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.records.append({**vars(record), "event": record.getMessage()})

    def __enter__(self) -> Logged:
        """Listen."""
        for logger in self._loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        """Listen no longer."""
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The logged errors."""
        return [record for record in self.records if record["levelno"] >= logging.ERROR]
