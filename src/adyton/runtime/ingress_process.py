"""The process that proves connections for the program and carries their bytes, and the keeper's side of it.

It has the quote source and the listening sockets. It has no key of any file. One of its threads makes the evidence and
stays on the host's network, because some machines give evidence over it. All others live in the program's network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.address import address_text
from adyton.errors import Error, SandboxFailed
from adyton.runtime import host, program_network
from adyton.runtime.signals import PASSED_ON
from adyton.vfs import syscalls

if TYPE_CHECKING:
    from adyton.endpoint.ingress import Proof
    from adyton.manifest.ingress import Ingress

_MAX_EVENT_CHARS: Final = 1000
_RENEW_S: Final = 30 * 24 * 3600.0
"""How long a TLS key is used. Its certificate lasts 90 days."""


@dataclass(frozen=True, slots=True)
class Doors:
    """The manifest's ports, what evidence says of the program, and who makes it."""

    ports: Sequence[Ingress]
    manifest_sha256: bytes
    evidence: Callable[[bytes], Proof]


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


class IngressProcess:
    """The keeper's side. The process writes one line of JSON for each event, and the first with its network."""

    def __init__(self, pid: int, events: socket.socket) -> None:
        self._pid = pid
        self._events = events
        self._rest = b""
        self.network = -1
        """A descriptor of the program's network."""

    @classmethod
    def start(cls, doors: Doors, listeners: Sequence[socket.socket]) -> IngressProcess:
        """Fork it. Returns once the program's network is there and the ports listen. Raises SandboxFailed."""
        near, far = socket.socketpair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                near.close()
                status = _live(parent, far, doors, listeners)
            finally:
                os._exit(status)
        far.close()
        for listener in listeners:
            listener.close()
        started = cls(pid, near)
        try:
            started._await_network()
        except BaseException:
            started.end()
            raise
        return started

    @property
    def events_fd(self) -> int:
        """Readable where events came in, and at the end of the process."""
        return self._events.fileno()

    def _await_network(self) -> None:
        told: list[str] = []
        while self.network < 0:
            data, fds, _, _ = socket.recv_fds(self._events, 65_536, 1)
            if fds:
                self.network = fds[0]
                os.set_inheritable(self.network, False)
            if not data:
                raise SandboxFailed(
                    "the process for the program's connections did not start",
                    check="ingress",
                    expected="a listening process",
                    seen="; ".join(told)[:300] or "its end, without a word",
                )
            told += self._lines(data)

    def _lines(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [str(json.loads(line)) for line in lines]

    def read_events(self) -> list[str] | None:
        """The events that came in. None once the process has ended."""
        data = self._events.recv(65_536)
        return self._lines(data) if data else None

    def enter_network(self) -> None:
        """Move the caller's process into the program's network, and what it starts from now on."""
        program_network.enter(self.network)

    def end(self) -> None:
        """End the process, and with it every connection."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._events.close()
        if self.network >= 0:
            os.close(self.network)
            self.network = -1


def _live(parent: int, events: socket.socket, doors: Doors, listeners: Sequence[socket.socket]) -> int:
    """In the process: serve until killed. Signals of the terminal are not for it."""
    syscalls.die_with_parent(parent)
    syscalls.name_process("adyton-ingress")
    host.lock_memory()  # the TLS key, and what clients send
    for number in (*PASSED_ON, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    host.allow_many_files()

    def event(text: str) -> None:
        with contextlib.suppress(OSError):
            events.sendall(_line(text))

    try:
        with ThreadPoolExecutor(1, "adyton-evidence") as prover:
            prover.submit(os.getpid).result()  # its thread is there now, and enters no other network
            program_network.enter_new()
            asyncio.run(_serve(doors, listeners, prover, events, event))
    except Error as error:
        event(error.message)
        return error.exit_code
    except OSError as error:
        event(f"ingress: {error.strerror}")
        return 1
    return 0


def _line(text: str) -> bytes:
    return json.dumps(text.replace("\n", " ")[:_MAX_EVENT_CHARS]).encode() + b"\n"


async def _serve(
    doors: Doors,
    listeners: Sequence[socket.socket],
    prover: ThreadPoolExecutor,
    events: socket.socket,
    event: Callable[[str], None],
) -> None:
    from adyton.endpoint.channel import READ_BYTES
    from adyton.endpoint.ingress import Ingress as Server

    async def evidence(report_data: bytes) -> Proof:
        return await asyncio.get_running_loop().run_in_executor(prover, doors.evidence, report_data)

    async with AsyncExitStack() as stack:
        servers: list[Server] = []
        for port, listener in zip(doors.ports, listeners, strict=True):
            host_name, number = port.target

            async def dial(
                host_name: str = host_name, number: int = number
            ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                return await asyncio.open_connection(host_name, number, limit=READ_BYTES)

            server = Server(
                port.name, doors.manifest_sha256, evidence, dial, max_connections=port.max_connections, note=event
            )
            await stack.enter_async_context(server.serving(listener))
            servers.append(server)
        network = program_network.own()
        socket.send_fds(events, [_line("the ports of the program listen")], [network])
        os.close(network)
        while True:
            await asyncio.sleep(_RENEW_S)
            for server in servers:
                server.renew()
