"""Small servers on 127.0.0.1 for tests: one that sends exactly given bytes, and one that runs an application."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette

from adyton.sim.pcs_server import bind, url_of

Handler = Callable[[socket.socket, threading.Event], None]


@contextmanager
def raw_server(handler: Handler, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that gives each connection to `handler`, with an event for its end. Yields its address."""
    listening = bind("127.0.0.1", 0)
    stop = threading.Event()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            served = context.wrap_socket(connection, server_side=True) if context else connection
            with served:
                handler(served, stop)

    def work() -> None:
        workers: list[threading.Thread] = []
        while not stop.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                break
            workers.append(threading.Thread(target=one, args=(connection,)))
            workers[-1].start()
        for worker in workers:
            worker.join(10)

    thread = threading.Thread(target=work)
    thread.start()
    url = url_of(listening)
    try:
        yield url.replace("http:", "https:").replace("127.0.0.1", "localhost") if context else url
    finally:
        stop.set()
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def saying(answer: bytes) -> Handler:
    """A handler that reads the request and sends these bytes."""

    def handle(connection: socket.socket, _stop: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return handle


def dripping(head: bytes, drop: bytes, every_s: float) -> Handler:
    """A handler that sends the head at once and then one drop at a time, without end."""

    def handle(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(head)
        while not stop.wait(every_s):
            connection.sendall(drop)

    return handle


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and key files (PEM) of a server that calls itself localhost and is its own CA, as a PCCS is."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    crt, pem_key = folder / "server.crt", folder / "server.key"
    crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem_key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return crt, pem_key


@contextmanager
def serving(application: Starlette, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """An application behind uvicorn, over TLS where certificate and key are given. Yields its address."""
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(application, log_level="error", lifespan="off", ws="none", http="h11")
    if tls is not None:
        config.ssl_certfile, config.ssl_keyfile = str(tls[0]), str(tls[1])
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        url = url_of(listening)
        yield url.replace("http:", "https:").replace("127.0.0.1", "localhost") if tls else url
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
