"""A program that may reach one server looks for others: other ports, other names, the host, and families without names.

It also tries to take the server's place inside, and to exhaust the way out.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.canary import draw, search
from tests.endpoint.wire import wire
from tests.faults.program.inside import OUT
from tests.mount import world
from tests.support.tls_factory import make_ca, make_leaf, server_context

pytestmark = pytest.mark.mount

HEAD = """
import errno, json, os, socket
def asked(host, port, text=b"hello", family=socket.AF_INET):
    with socket.socket(family) as one:
        one.settimeout(20)
        try:
            one.connect((host, port))
            one.sendall(text)
            return one.recv(1 << 16).decode() or "END"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
def named(name, port):
    try:
        return socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error:
        return "unknown"
"""


@contextlib.contextmanager
def answering(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A server on the host's loopback that answers in capitals. Gives its port, and what it got."""
    got: list[bytes] = []

    def serve(one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            stream = one if context is None else context.wrap_socket(one, server_side=True)
            with stream:
                data = stream.recv(1 << 16)
                got.append(data)
                stream.sendall(data.upper())

    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = server.accept()
                    threading.Thread(target=serve, args=(one,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], got
        server.shutdown(socket.SHUT_RDWR)


def entry(port: int, ca: str | None = None, name: str = "api.test", **more: Any) -> dict[str, Any]:
    """An entry of `adyton.egress` for a server on the host's loopback."""
    return {"name": name, "host": "localhost", "port": port, "ca": ca, **more}


def run(folder: Path, script: str, *egress: dict[str, Any], **more: Any) -> Any:
    """What the script prints, as JSON."""
    result = world.run(folder, world.python(HEAD + script, mounts=OUT, egress=list(egress), **more))
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_program_reaches_the_named_server_and_nothing_else(folder: Path) -> None:
    """By its name and port. Not another port, another address inside, the host's loopback, a neighbour, or DNS.

    A hosts file that is listed as a trusted file gives way to Adyton's own.
    """
    (folder / "root" / "etc").mkdir(parents=True)
    (folder / "root" / "etc" / "hosts").write_text("127.0.0.1 api.test other.test\n")
    with answering() as (port, got), answering() as (other, others_got):
        script = f"""
found = {{
    "address": named(b"api.test", {port}),
    "named": asked(socket.gethostbyname(b"api.test"), {port}),
    "other port": asked("127.1.0.1", {other}),
    "other address": asked("127.1.0.2", {port}),
    "own loopback": asked("127.0.0.1", {port}),
    "host's loopback": asked("127.0.0.1", {other}),
    "IPv6": asked("::1", {port}, family=socket.AF_INET6),
    "outside": asked("192.0.2.1", 443),
    "metadata": asked("169.254.169.254", 80),
    "other name": named(b"other.test", {port}),
    "the host's own name": named(b"example.com", {port}),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "hosts": open("/etc/hosts").read(),
}}
for name, family, kind in (("vsock", 40, 1), ("packet", 17, 3), ("can", 29, 3), ("bluetooth", 31, 1), ("xdp", 44, 3)):
    try:
        socket.socket(family, kind)
        found[name] = "REACHED"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect(("127.0.0.53", 53))
    one.send(b"x")
    try:
        one.settimeout(5)
        found["dns"] = repr(one.recv(10))
    except OSError as error:
        found["dns"] = errno.errorcode.get(error.errno, "silence")
print(json.dumps(found))
"""
        found = run(folder, script, entry(port), trusted=["root/etc/hosts"])
        assert others_got == []
        assert got == [b"hello"]
    assert found.pop("hosts").splitlines()[-1] == "127.1.0.1 api.test"
    assert found == {
        "address": "127.1.0.1",
        "named": "HELLO",
        "other port": "ECONNREFUSED",
        "other address": "ECONNREFUSED",
        "own loopback": "ECONNREFUSED",
        "host's loopback": "ECONNREFUSED",
        "IPv6": "ECONNREFUSED",
        "outside": "ENETUNREACH",
        "metadata": "ENETUNREACH",
        "other name": "unknown",
        "the host's own name": "unknown",
        "interfaces": ["lo"],
        "vsock": "EAFNOSUPPORT",
        "packet": "EAFNOSUPPORT",
        "can": "EAFNOSUPPORT",
        "bluetooth": "EAFNOSUPPORT",
        "xdp": "EAFNOSUPPORT",
        "dns": "ECONNREFUSED",
    }


def test_one_server_cannot_be_reached_as_another(folder: Path) -> None:
    """Two servers on one port inside: each name leads to its own, and its own certificate."""
    ca, other = make_ca("theirs"), make_ca("other")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with (
        answering(server_context(folder / "a", make_leaf(ca, "localhost"))) as (port, got),
        answering(server_context(folder / "b", make_leaf(other, "localhost"))) as (second, others_got),
    ):
        script = f"""
print(json.dumps([
    asked(socket.gethostbyname(b"right.test"), {port}),
    asked(socket.gethostbyname(b"wrong.test"), {port}),
    asked(socket.gethostbyname(b"other.test"), {second}),
]))
"""
        servers = (
            entry(port, ca.pem, "right.test"),
            entry(port, other.pem, "wrong.test"),
            entry(second, other.pem, "other.test"),
        )
        assert run(folder, script, *servers) == ["HELLO", "ECONNRESET", "HELLO"]
        assert got == [b"hello"]
        assert others_got == [b"hello"]


def test_wire_shows_nothing_where_a_ca_is_pinned(folder: Path) -> None:
    """The program speaks in clear inside. The host sees TLS, and with `plain` it sees everything."""
    text = os.urandom(600).hex().encode()
    canaries = [*draw("question", text, count=20), *draw("answer", text.upper(), count=20)]
    ca = make_ca("theirs")
    for pinned in (True, False):
        context = server_context(folder, make_leaf(ca, "localhost")) if pinned else None
        with answering(context) as (port, got), wire(("127.0.0.1", port)) as net:
            script = f"""
print(json.dumps(asked(socket.gethostbyname(b"api.test"), {net.address[1]}, {text!r})))
"""
            found = run(folder, script, entry(net.address[1], ca.pem if pinned else None))
            assert found == text.upper().decode()
            assert got == [text]
        recorded = bytes(net.recorded)
        assert len(recorded) > len(text)
        assert {sighting.secret for sighting in search(recorded, canaries)} == (
            set() if pinned else {"question", "answer"}
        )


def test_program_cannot_take_the_place_of_the_way_out(folder: Path) -> None:
    """Its address is in use, with and without SO_REUSEPORT. What the program binds elsewhere is its own."""
    with answering() as (port, _):
        script = f"""
found = []
for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    for address in ("127.1.0.1", "0.0.0.0"):
        one = socket.socket()
        if option is not None:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            one.bind((address, {port}))
            one.listen()
            found.append("BOUND " + address)
        except OSError as error:
            found.append(errno.errorcode[error.errno])
        one.close()
one = socket.socket()
one.bind(("127.0.0.1", {port}))
found.append("own")
print(json.dumps(found))
"""
        assert run(folder, script, entry(port)) == ["EADDRINUSE"] * 6 + ["own"]


def test_flood_is_bounded_and_the_run_goes_on(folder: Path) -> None:
    """A thousand connections meet the limit. The server outside sees no more than the manifest says."""
    with answering() as (port, got):
        script = f"""
import time
held = []
for _ in range(600):
    one = socket.socket()
    one.setblocking(False)
    try:
        one.connect(("127.1.0.1", {port}))
    except BlockingIOError:
        pass
    held.append(one)
time.sleep(1.5)
for one in held:
    one.close()
deadline = time.monotonic() + 20
while (answer := asked("127.1.0.1", {port})) != "HELLO" and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps(answer))
"""
        result = world.run(
            folder, world.python(HEAD + script, mounts=OUT, egress=[entry(port, max_connections=8)], fds_limit=900)
        )
    assert result.status == 0, result.err
    assert json.loads(result.out) == "HELLO"
    assert any("over the limit of 8" in event for event in result.ended["events"])
    assert sum(bool(data) for data in got) == 1


def test_server_that_is_down_is_said_to_the_starter(folder: Path) -> None:
    """The program sees a reset, and the run's notes have the reason."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        script = f'print(json.dumps(asked("127.1.0.1", {port})))'
        result = world.run(folder, world.python(HEAD + script, mounts=OUT, egress=[entry(port)]))
    assert json.loads(result.out) == "ECONNRESET"
    assert any(event.startswith(f"egress localhost:{port}: ") for event in result.ended["events"])


def test_end_of_the_process_ends_the_program(folder: Path) -> None:
    """Killed from outside, it takes the program with it: the run says why."""
    with answering() as (port, _):
        process = world.start(
            folder,
            world.python("import time; print('up', flush=True); time.sleep(60)", mounts=OUT, egress=[entry(port)]),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        pids = [pid for pid in below(process.pid) if name_of(pid) == "adyton-egress"]
        assert len(pids) == 1
        os.kill(pids[0], 9)
        result = world.finish(process)
    assert result.status == 122, result.err
    assert result.ended["check"] == "egress"


def below(pid: int) -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *below(int(child))]
    return found


def name_of(pid: int) -> str:
    """A process's name, as process lists show it."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize(
    "more",
    [
        {"mounts": [*OUT, ("tmpfs", "/etc", None)]},
        {"mounts": [*OUT, ("encrypted", "/etc", "file:out")]},
        {"allowed": ["file:root/etc/hosts"]},
        {"secrets": [{"name": "s", "env": None, "file": "/etc/hosts", "owner": None}]},
    ],
)
def test_hosts_file_is_nobody_elses(folder: Path, more: dict[str, Any]) -> None:
    """A mount, an allowed file or a secret where Adyton writes the names is refused before the start."""
    result = world.run(folder, {**world.python("pass", mounts=OUT, egress=[entry(1)]), **more})
    assert result.ended["check"] == "adyton.egress", result.err
    assert result.status == 71
