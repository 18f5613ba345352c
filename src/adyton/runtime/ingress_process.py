"""The process that proves connections for the program and carries their bytes.

It has the quote source and the listening sockets. It has no key of any file. One of its threads makes the evidence and
stays on the host's network, because some machines give evidence over it. All others live in the program's network.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from adyton.address import address_text
from adyton.errors import SandboxFailed
from adyton.runtime import program_network
from adyton.runtime.network_process import Event, NetworkProcess

if TYPE_CHECKING:
    from adyton.endpoint.hello import ClientEvidence
    from adyton.endpoint.ingress import Devices, Judge, Proof
    from adyton.manifest.ingress import Ingress

_RENEW_S: Final = 30 * 24 * 3600.0
"""How long a TLS key is used. Its certificate lasts 90 days."""


@dataclass(frozen=True, slots=True)
class Doors:
    """The manifest's ports, what evidence says of the program, and who makes it."""

    ports: Sequence[Ingress]
    manifest_sha256: bytes
    evidence: Callable[[bytes], Proof]
    devices: Callable[[bytes], tuple[bytes, ...]] | None = None
    """The evidence of the program's GPUs over a nonce. None where it has none."""
    judges: Mapping[str, Callable[[ClientEvidence, bytes], timedelta]] = field(default_factory=dict)
    """For each ingress with a policy for its clients: how their evidence is judged."""


def listen(ports: Sequence[Ingress]) -> list[socket.socket]:
    """Bind the ports on the host's network. Raises SandboxFailed."""
    found: list[socket.socket] = []
    for port in ports:
        try:
            family = socket.AF_INET6 if ":" in port.listen[0] else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(port.listen)
        except OSError as error:
            for one in found:
                one.close()
            raise SandboxFailed(
                f"the ingress {port.name} cannot listen on {address_text(port.listen)}: {error.strerror}",
                check=f"port of the ingress {port.name}",
                expected="a free port of this machine",
                seen=str(error.strerror),
                remedy="end what listens there; the port is measured, so another one needs another manifest",
            ) from error
    return found


def start(doors: Doors, listeners: Sequence[socket.socket], network: int) -> NetworkProcess:
    """Fork the process. Returns once the ports listen. Raises SandboxFailed."""

    def serve(event: Event, ready: Callable[[], None]) -> None:
        with ThreadPoolExecutor(1, "adyton-evidence") as prover:
            prover.submit(os.getpid).result()  # its thread is there now, and enters no other network
            program_network.enter(network)
            asyncio.run(_serve(doors, listeners, prover, event, ready))

    started = NetworkProcess.start("ingress", serve)
    for listener in listeners:
        listener.close()
    return started


async def _serve(
    doors: Doors,
    listeners: Sequence[socket.socket],
    prover: ThreadPoolExecutor,
    event: Event,
    ready: Callable[[], None],
) -> None:
    from adyton.endpoint.channel import READ_BYTES
    from adyton.endpoint.ingress import Ingress as Server

    async def evidence(report_data: bytes) -> Proof:
        return await asyncio.get_running_loop().run_in_executor(prover, doors.evidence, report_data)

    def devices_of(make: Callable[[bytes], tuple[bytes, ...]]) -> Devices:
        async def made(nonce: bytes) -> tuple[bytes, ...]:
            return await asyncio.get_running_loop().run_in_executor(prover, make, nonce)

        return made

    def judge_of(port: Ingress) -> Judge | None:
        if port.client_policy is None:
            return None
        judge = doors.judges[port.name]

        async def judged(shown: ClientEvidence, report_data: bytes) -> timedelta:
            return await asyncio.get_running_loop().run_in_executor(judging, judge, shown, report_data)

        return judged

    async with AsyncExitStack() as stack:
        judging = stack.enter_context(ThreadPoolExecutor(1, "adyton-judge"))
        servers: list[Server] = []
        for port, listener in zip(doors.ports, listeners, strict=True):
            host_name, number = port.target

            async def dial(
                host_name: str = host_name, number: int = number
            ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                return await asyncio.open_connection(host_name, number, limit=READ_BYTES)

            server = Server(
                port.name,
                doors.manifest_sha256,
                evidence,
                dial,
                max_connections=port.max_connections,
                client_ca=port.client_ca,
                judge=judge_of(port),
                devices=None if doors.devices is None else devices_of(doors.devices),
                note=event,
            )
            await stack.enter_async_context(server.serving(listener))
            servers.append(server)
        ready()
        while True:
            await asyncio.sleep(_RENEW_S)
            for server in servers:
                server.renew()
