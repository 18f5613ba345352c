"""What an attested endpoint costs a request, beside the bare server and a plain TLS reverse proxy, in one run.

python -m bench endpoint [--small]

The client asks a small server over loopback: directly, through `adyton connect` and an ingress, and through nginx with
TLS where it is installed. The ways alternate. What stands between client and server has one core, client and server
another. Connections are kept, so no evidence is in the figures: a new connection costs its making and verification.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from adyton.endpoint.ingress import Ingress
from adyton.endpoint.local_door import LocalDoor
from adyton.endpoint.pool import Pool
from tests.unit.endpoint.world import MANIFEST, dialler, free_socket, machine

ANSWER: Final = b"x" * 128
CHUNK: Final = b"x" * (256 << 10)
EVENT_PAUSE_S: Final = 0.01
MAX_EVENTS: Final = 200
REQUESTS_EACH: Final = 5

Serve = Callable[[Connection], None]


def say(text: str = "") -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class Way:
    """One way to the server: a port of loopback, with TLS or without."""

    name: str
    port: int
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is kept."""
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port)


async def _program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server: /small, /big/BYTES and /events/COUNT."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            what, _, number = head.split(b" ", 2)[1].strip(b"/").partition(b"/")
            if what == b"events":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n"
                )
                for _ in range(int(number)):
                    await asyncio.sleep(EVENT_PAUSE_S)
                    event = b"data: %d\n" % time.monotonic_ns()
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                writer.write(b"0\r\n\r\n")
            elif what == b"big":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % number)
                for _ in range(int(number) // len(CHUNK)):
                    writer.write(CHUNK)
                    await writer.drain()
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))
            await writer.drain()
    writer.close()


def _serve_program(told: Connection) -> None:
    async def work() -> None:
        server = await asyncio.start_server(_program, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(work())


def _serve_ingress(target: int) -> Serve:
    def serve(told: Connection) -> None:
        async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", target)

        async def work() -> None:
            listener = free_socket()
            async with Ingress("api", MANIFEST, machine, dial).serving(listener):
                told.send(listener.getsockname()[1])
                await asyncio.Event().wait()

        asyncio.run(work())

    return serve


def _serve_door(ingress: int) -> Serve:
    def serve(told: Connection) -> None:
        async def work() -> None:
            to_ingress = dialler(("127.0.0.1", ingress))
            async with LocalDoor("127.0.0.1:0", tcp=False).open(to_ingress, Pool(to_ingress), lambda _e: None) as where:
                told.send(int(where.rpartition(":")[2]))
                await asyncio.Event().wait()

        asyncio.run(work())

    return serve


@contextmanager
def process(serve: Serve, core: int | None) -> Iterator[int]:
    """A process on one core. Gives its port."""

    def work(told: Connection) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _pin(core)
        serve(told)

    near, far = multiprocessing.Pipe()
    started = multiprocessing.get_context("fork").Process(target=work, args=(far,), daemon=True)
    started.start()
    try:
        if not near.poll(30):
            raise TimeoutError("a process of the measurement did not start")
        yield near.recv()
    finally:
        started.terminate()
        started.join()


def _pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def _certificate(folder: Path) -> ssl.SSLContext:
    """A key and a certificate in files, and the context of a client that accepts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    return context


@contextmanager
def nginx(program: str, target: int, core: int | None) -> Iterator[Way]:
    """nginx with TLS 1.3 and one worker before the server, with kept connections and no buffering."""
    with tempfile.TemporaryDirectory() as name, free_socket() as taken:
        folder, port = Path(name), taken.getsockname()[1]
        taken.close()
        context = _certificate(folder)
        (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream program {{ server 127.0.0.1:{target}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; keepalive_requests 1000000;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location / {{
      proxy_pass http://program; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
""")
        command = [program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        started = subprocess.Popen(command, preexec_fn=lambda: _pin(core))
        try:
            _await_port(port)
            yield Way("nginx, TLS 1.3", port, context)
        finally:
            started.terminate()
            started.wait()


def _await_port(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


def latency(way: Way, count: int) -> float:
    """Median time of one small request on a kept connection, in milliseconds."""
    with contextlib.closing(way.connect()) as asked:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            asked.request("GET", "/small")
            if asked.getresponse().read() != ANSWER:
                raise ValueError(f"{way.name}: another answer")
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def throughput(way: Way, size: int) -> float:
    """MB per second of one large response."""
    with contextlib.closing(way.connect()) as asked:
        began = time.perf_counter()
        asked.request("GET", f"/big/{size}")
        answer, seen = asked.getresponse(), 0
        while data := answer.read(1 << 18):
            seen += len(data)
        if seen != size:
            raise ValueError(f"{way.name}: {seen} bytes")
        return size / (time.perf_counter() - began) / 1e6


def event_delay(way: Way, count: int) -> float:
    """Median time from the server's sending of an event to its arrival, in milliseconds."""
    with contextlib.closing(way.connect()) as asked:
        asked.request("GET", f"/events/{count}")
        answer, delays = asked.getresponse(), []
        while line := answer.readline():
            delays.append(time.monotonic_ns() - int(line.removeprefix(b"data: ")))
        if len(delays) != count:
            raise ValueError(f"{way.name}: {len(delays)} events")
    return statistics.median(delays) / 1e6


def concurrent(way: Way, count: int) -> float:
    """Requests per second over so many connections that are all open before the first request, five on each."""
    return asyncio.run(_concurrent(way, count))


async def _concurrent(way: Way, count: int) -> float:
    opened = [await asyncio.open_connection("127.0.0.1", way.port, ssl=way.tls) for _ in range(count)]
    ask = b"GET /small HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % way.port

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(REQUESTS_EACH):
            writer.write(ask)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200") or await reader.readexactly(len(ANSWER)) != ANSWER:
                raise ValueError(f"{way.name}: {head!r}")

    try:
        began = time.perf_counter()
        await asyncio.gather(*(use(*one) for one in opened))
        return REQUESTS_EACH * count / (time.perf_counter() - began)
    finally:
        for _, writer in opened:
            writer.transport.abort()


def measure(ways: list[Way], rounds: int, *, small: bool) -> None:
    """All measurements, the ways one after the other in each round. The median of the rounds counts."""
    requests, size, events = (300, 16 << 20, 30) if small else (2000, 256 << 20, MAX_EVENTS)
    connections = 100 if small else 1000
    parts: list[tuple[str, str, Callable[[Way], float]]] = [
        ("small request, kept connection", "ms", lambda way: latency(way, requests)),
        ("one large response", "MB/s", lambda way: throughput(way, size)),
        ("server-sent event, until it arrives", "ms", lambda way: event_delay(way, events)),
        (f"requests over {connections} connections", "1/s", lambda way: concurrent(way, connections)),
    ]
    for what, unit, part in parts:
        found: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                found[way.name].append(part(way))
        told = ", ".join(f"{name} {statistics.median(values):.3g} {unit}" for name, values in found.items())
        say(f"{what}: {told}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench endpoint", description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer requests")
    chosen = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    between = cores[1] if len(cores) > 1 else None
    ends = cores[0] if len(cores) > 1 else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    say(f"load before: {', '.join(f'{one:.1f}' for one in os.getloadavg())}, {len(cores)} cores")
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(process(_serve_program, ends))
        ingress = stack.enter_context(process(_serve_ingress(target), between))
        door = stack.enter_context(process(_serve_door(ingress), between))
        ways = [Way("direct", target), Way("adyton connect", door)]
        peer = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        if peer is None:
            say("nginx: skipped, not installed")
        else:
            ways.append(stack.enter_context(nginx(peer, target, between)))
        _pin(ends)
        measure(ways, 3 if chosen.small else 5, small=chosen.small)
