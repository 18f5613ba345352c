"""An ingress before a small program, and clients of it, all in one event loop; evidence is a keyed hash."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.bundle import DevicePart
from adyton.endpoint.dial import Dialler, Proved
from adyton.endpoint.ingress import Ingress, Proof
from adyton.errors import Error, Mismatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from adyton.endpoint.hello import Answer

MACHINE: Final = b"the key of the TEE's maker"
MANIFEST: Final = bytes(range(32))


def evidence_over(report_data: bytes) -> bytes:
    """Evidence that only the machine can make."""
    return report_data + hmac.digest(MACHINE, report_data, "sha256")


@dataclass
class Verifier:
    """Verifies such evidence, and counts."""

    calls: int = 0
    lifetime: timedelta = timedelta(hours=1)
    use: timedelta = timedelta(hours=24)
    answers: list[Answer] = field(default_factory=list)

    async def __call__(self, answer: Answer, report_data: bytes, gpu_nonce: bytes) -> Proved:
        self.calls += 1
        self.answers.append(answer)
        if answer.cpu != evidence_over(answer.cpu[:64]):
            raise Mismatch("false evidence", check="signature", expected="the machine's", seen="another")
        if answer.cpu[:64] != report_data:
            raise Mismatch("evidence for another connection", check="report data", expected="this", seen="another")
        if any(
            device != DevicePart(arch="HOPPER", certificate=b"c", evidence=gpu_nonce).to_bytes()
            for device in answer.devices
        ):
            raise Mismatch("false GPU", check="nonce of the GPU", expected="this connection's", seen="another")
        now = datetime.now(UTC)
        return Proved(("proved",), now + self.lifetime, now + self.use)


async def machine(report_data: bytes) -> Proof:
    """The TEE."""
    return Proof(evidence_over(report_data))


def free_socket() -> socket.socket:
    """A socket on a free port of loopback."""
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[str, int]]:
    """A small server on loopback."""
    tasks: set[asyncio.Task[None]] = set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(Error, OSError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.transport.abort()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(guarded(reader, writer)))

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def ingress_before(
    target: tuple[str, int], *, most: int = 1024, made: list[Ingress] | None = None, **more: Any
) -> AsyncIterator[tuple[str, int]]:
    """An ingress before a program's port. `made` gets the ingress."""

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*target)

    ingress = Ingress("api", MANIFEST, machine, dial, max_connections=most, **more)
    if made is not None:
        made.append(ingress)
    listener = free_socket()
    async with ingress.serving(listener):
        yield listener.getsockname()[:2]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program that answers with what it got, in capitals."""
    while data := await reader.read(1 << 16):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


def dialler(address: tuple[str, int], verify: Verifier | None = None, **more: object) -> Dialler:
    """A client's side."""
    return Dialler(address, verify or Verifier(), **more)  # type: ignore[arg-type]
