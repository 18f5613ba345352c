"""A program with the host's network looks for other processes there: what they offer to users of the machine only."""

from __future__ import annotations

import ctypes
import json
import secrets
import socket
from pathlib import Path

import pytest

from tests.faults.program.inside import OUT
from tests.mount import world

pytestmark = pytest.mark.mount

LANDLOCK_CREATE_RULESET, ASK_VERSION, WITH_SCOPES = 444, 1, 6


def _landlock() -> int:
    return int(ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION))


@pytest.mark.skipif(_landlock() < WITH_SCOPES, reason="this kernel cannot keep programs from abstract sockets (6.12)")
def test_abstract_sockets_of_other_processes_are_out_of_reach(folder: Path) -> None:
    """A desktop's X server, a message bus: they have no file whose mode would decide. Its own it may use."""
    name = "adyton-test-" + secrets.token_hex(8)
    script = (
        "import errno, json, os, socket\n"
        "def tried(work, *words):\n"
        "    try: work(*words)\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "    return 'REACHED'\n"
        f"name = {name!r}\n"
        "stream, packet = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "found = [tried(stream.connect, '\\0' + name), tried(packet.sendto, b'x', f'\\0{name}-d')]\n"
        "own = socket.socket(socket.AF_UNIX); own.bind(f'\\0{name}-own'); own.listen()\n"
        "other = socket.socket(socket.AF_UNIX)\n"
        "print(json.dumps({'found': found, 'own': tried(other.connect, f'\\0{name}-own')}))"
    )
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as packet:
        stream.bind("\0" + name)
        stream.listen()
        packet.bind(f"\0{name}-d")
        with socket.socket(socket.AF_UNIX) as free:
            free.connect("\0" + name)  # as any process of the machine can
        result = world.run(folder, world.python(script, mounts=OUT, network="host"))
        assert result.status == 0, result.err
        assert json.loads(result.out) == {"found": ["EPERM", "EPERM"], "own": "REACHED"}
        packet.setblocking(False)
        with pytest.raises(BlockingIOError):
            packet.recv(10)


def test_without_the_hosts_network_there_is_nobody(folder: Path) -> None:
    """A loopback of its own, on which a server of the host's does not listen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = (
            "import socket\n"
            f"try: socket.socket().connect(('127.0.0.1', {port})); print('REACHED')\n"
            "except ConnectionRefusedError: print('nobody')\n"
            "print([name for _, name in socket.if_nameindex()])"
        )
        result = world.run(folder, world.python(script, mounts=OUT))
    assert result.out == "nobody\n['lo']\n", result.err
