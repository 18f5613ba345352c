"""The process that proves connections: where its evidence is made, and where the program's port is dialled."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from adyton.endpoint.dial import Dialler, Proved
from adyton.endpoint.hello import Answer
from adyton.endpoint.ingress import Proof
from adyton.manifest.ingress import Ingress
from adyton.runtime import namespace, program_network
from adyton.runtime.ingress_process import Doors, listen, start

pytestmark = pytest.mark.mount


def _evidence(_report_data: bytes) -> Proof:
    """What a machine would say that gives evidence over the network: which one it was asked in, and what is locked."""
    locked = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck:"))
    return Proof(f"{os.readlink('/proc/thread-self/ns/net')} {locked.split()[1]}".encode())


def _devices(nonce: bytes) -> tuple[bytes, ...]:
    """What a machine with two GPUs would say: the second one which network it was asked in."""
    return nonce, os.readlink("/proc/thread-self/ns/net").encode()


def _keep(ports: tuple[Ingress, ...], ready: multiprocessing.Queue[str], stop: Event) -> None:
    """A keeper without anything else: it starts the process, enters the program's network, and serves there."""
    open_doors = listen(ports)
    namespace.enter()
    network = program_network.make()
    started = start(Doors(ports, bytes(32), _evidence, _devices), open_doors, network)
    program_network.enter(network)
    with socket.create_server(ports[0].target) as program:
        ready.put(os.readlink("/proc/self/ns/net"))
        one, _ = program.accept()
        with one:
            one.sendall(one.recv(100).upper())
    stop.wait(60)
    started.end()


def test_evidence_is_made_on_the_hosts_network_and_the_program_is_in_its_own() -> None:
    """A source that asks a service of the machine's network gets through. The program's port is on another network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    answers: list[Answer] = []
    nonces: list[bytes] = []

    async def verify(answer: Answer, _report_data: bytes, gpu_nonce: bytes) -> Proved:
        answers.append(answer)
        nonces.append(gpu_nonce)
        return Proved((), datetime.now(UTC) + timedelta(hours=1))

    async def ask() -> bytes:
        verified = await Dialler(address, verify).dial()
        await verified.stream.write(b"hello")
        answer = await verified.stream.read()
        await verified.stream.close()
        return answer

    ready: multiprocessing.Queue[str] = multiprocessing.Queue()
    stop = multiprocessing.Event()
    ports = (Ingress("api", address, ("127.0.0.1", 8000), 10),)
    keeper = multiprocessing.Process(target=_keep, args=(ports, ready, stop))
    keeper.start()
    try:
        network = ready.get(timeout=60)
        assert asyncio.run(ask()) == b"HELLO"
        own = os.readlink("/proc/self/ns/net")
        assert network != own
        seen, locked_kib = answers[0].cpu.decode().split()
        assert seen == own
        assert int(locked_kib) > 0
        assert answers[0].devices == (nonces[0], own.encode())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(ports[0].target, timeout=5)
    finally:
        stop.set()
        keeper.join(10)
        keeper.kill()
        keeper.join()
