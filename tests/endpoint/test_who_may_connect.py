"""A server that asks its clients for a certificate and for evidence, reaches one server outside, and keeps its outputs.

Every step is a verb, from the template to the owner's decrypted outputs, with two servers on one machine.
"""

from __future__ import annotations

import http.server
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adyton.runtime.identity import runtime_identity
from demo.world import World
from tests.endpoint.test_served_program import WEIGHTS, Ended, Service, free_port, serving, started
from tests.support.tls_factory import CLIENT, make_ca, make_leaf, server_context

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (apt-get install curl)"),
]

SERVER = '''\
"""A web server that keeps what it is sent, and passes a question on to a server outside."""

import encodings.idna
import http.client
import http.server
import os
import sys

with open("input/model.txt", encoding="utf-8") as file:
    model = file.read().splitlines()
os.makedirs("output", exist_ok=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if not self.path.startswith("/outside/"):
            self.answer(b"ready")
            return
        outside = http.client.HTTPConnection("api.test", int(self.path.rpartition("/")[2]), timeout=20)
        try:
            outside.request("GET", "/" + model[1].replace(" ", "-"))
            self.answer(outside.getresponse().read())
        except OSError as error:
            self.answer(repr(error).encode())

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        with open("output/asked.txt", "ab") as file:
            file.write(asked + b"\\n")
        self.answer(b"kept")

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
'''


class Outside(http.server.BaseHTTPRequestHandler):
    """The server outside."""

    def do_GET(self) -> None:
        """Answer in capitals."""
        body = self.path.upper().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@dataclass
class Closed:
    """A server for few clients, and what those clients have."""

    service: Service
    certificate: Path
    key: Path
    platform: Path
    outside: int
    """The port of the server outside, with TLS under the pinned CA."""
    false: int
    """One whose certificate is of another CA."""

    def ask(
        self, *curl: str, certificate: bool = True, prove: bool = True, address: tuple[str, int] | None = None
    ) -> Ended:
        """What a client gets that has this of what is asked for."""
        options: list[str | Path] = []
        if certificate:
            options += ["--certificate", self.certificate, "--key", self.key]
        if prove:
            options += ["--prove", "sim", "--sim-platform", self.platform]
        return self.service.once("curl", "-sS", "--fail", *curl, options=options, address=address)

    def await_answer(self, address: tuple[str, int] | None = None) -> None:
        """Until the server answers."""
        deadline = time.monotonic() + 60
        while (ended := self.ask("http://{addr}/", address=address)).status != 0:
            assert self.service.process.poll() is None, self.service.process.communicate()
            assert time.monotonic() < deadline, ended
            time.sleep(0.2)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    """From two CAs, a client's platform and a template to a running server."""
    folder = tmp_path_factory.mktemp("closed")
    clients, theirs = make_ca("clients"), make_ca("theirs")
    (folder / "client").mkdir()
    certificate, key = make_leaf(clients, "alice", usage=CLIENT).write(folder / "client")
    platform = folder / "client" / "platform"
    ports = []
    for signer in (theirs, make_ca("theirs")):
        (folder / "outside").mkdir(exist_ok=True)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Outside)
        context = server_context(folder / "outside", make_leaf(signer, "localhost"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ports.append(server.server_address[1])

    def change(world: World, text: str) -> str:
        root = world.actor("client").adyton("platform", "new", platform, "--json").document["root_fingerprint"]
        (world.owner.folder / "clients.pem").write_text(clients.pem)
        (world.owner.folder / "theirs.pem").write_text(theirs.pem)
        (world.owner.folder / "clients.toml").write_text(
            f'tees = ["sim:{root}"]\nmeasurements = ["{runtime_identity().digest.hex()}"]\n'
        )
        closing = 'client_ca_file = "file:clients.pem"\nclient_policy_file = "file:clients.toml"\n'
        text = re.sub(r"(?m)^target = .*\n", lambda found: found[0] + closing, text, count=1)
        for port in ports:
            text += f'\n[[adyton.egress]]\nname = "api.test"\nhost = "localhost"\nport = {port}\n'
            text += 'ca_file = "file:theirs.pem"\n'
        return text

    with serving(folder / "world", SERVER, change) as service:
        exported = folder / "client.json"
        service.client.adyton("platform", "export", platform, "-o", exported)
        both = folder / "collateral"
        both.mkdir()
        shutil.copy(exported, both / "client.json")
        shutil.copy(service.world.folder / "collateral.json", both / "server.json")
        service.collateral = both
        found = Closed(service, certificate, key, platform, *ports)
        found.await_answer()
        yield found


def test_client_with_both_is_served(closed: Closed) -> None:
    """curl, through a door that shows a certificate and evidence."""
    ended = closed.ask("http://{addr}/")
    assert (ended.status, ended.out) == (0, "ready"), ended.err


def test_client_that_lacks_one_is_refused_by_name(closed: Closed, tmp_path: Path) -> None:
    """Without a certificate, with one of another CA, without evidence, and with evidence of another machine."""
    ended = closed.ask("http://{addr}/", certificate=False)
    assert ended.status == 111
    assert "certificate of the client" in ended.err
    other = make_leaf(make_ca("clients"), "alice", usage=CLIENT).write(tmp_path)
    ended = replace(closed, certificate=other[0], key=other[1]).ask("http://{addr}/")
    assert ended.status == 111
    assert "unknown ca" in ended.err
    ended = closed.ask("http://{addr}/", prove=False)
    assert ended.status == 111
    assert "wants evidence of its clients" in ended.err
    ended = replace(closed, platform=closed.service.world.platform).ask("http://{addr}/")
    assert ended.status == 111
    assert "evidence of the client" in ended.err


def test_program_reaches_the_server_outside_and_no_false_one(closed: Closed) -> None:
    """Over TLS under the pinned CA. One with a certificate of another CA resets the program's connection."""
    ended = closed.ask(f"http://{{addr}}/outside/{closed.outside}")
    assert ended.out == "/" + WEIGHTS.splitlines()[1].replace(" ", "-").upper(), ended
    ended = closed.ask(f"http://{{addr}}/outside/{closed.false}")
    assert "ConnectionResetError" in ended.out, ended


def test_second_server_on_the_machine_and_a_restart_keep_all_outputs(closed: Closed) -> None:
    """The same program under another port beside it; then the first is ended, run again, and its outputs are whole."""
    service = closed.service
    cloud, owner = service.world.cloud, service.world.owner
    port = free_port()
    template = (owner.folder / "api.manifest.template").read_text()
    (owner.folder / "second.manifest.template").write_text(
        template.replace(f"127.0.0.1:{service.address[1]}", f"127.0.0.1:{port}").replace(
            "encrypted/output", "encrypted/second"
        )
    )
    taken = started(cloud, service.server)
    _, err = taken.communicate(timeout=60)
    assert taken.returncode == 122, err
    assert "port of the ingress api" in err
    owner.adyton("build", "second.manifest.template")
    owner.adyton("approve", "second.manifest", "--key", "weights", "--tee", _tee(service), "--json")
    elsewhere = service.world.folder / "elsewhere"
    shutil.copytree(cloud.folder, elsewhere, ignore=shutil.ignore_patterns("tmp", "*.lock", "asked.txt"))
    for path in owner.folder.glob("second.*"):
        shutil.copy(path, elsewhere)
    second = started(cloud, service.server, "second.manifest", elsewhere)
    try:
        policy = service.world.folder / "second.toml"
        policy.write_text(owner.adyton("connect", "--print-policy", "second.manifest", "--tee", _tee(service)).out)
        beside = replace(closed, service=replace(service, policy=policy, process=second, address=("127.0.0.1", port)))
        beside.await_answer()
        assert closed.ask("-d", "one", "http://{addr}/").out == "kept"
        assert beside.ask("-d", "beside", "http://{addr}/").out == "kept"
        service.stop()
        assert beside.ask("-d", "alone", "http://{addr}/").out == "kept"
        service.start()
        closed.await_answer()
        assert closed.ask("-d", "two", "http://{addr}/").out == "kept"
        service.stop()
    finally:
        second.terminate()
        second.communicate(timeout=60)
    service.start()
    closed.await_answer()
    assert _decrypted(service, "output") == "one\ntwo\n"


def _tee(service: Service) -> str:
    found = re.search(r"sim:[0-9a-f]{64}", service.policy.read_text())
    assert found is not None
    return found[0]


def _decrypted(service: Service, name: str) -> str:
    owner = service.world.owner
    owner.adyton("decrypt", f"encrypted/{name}", "-o", f"plain-{name}", "--key", "weights")
    return (owner.folder / f"plain-{name}" / "asked.txt").read_text()
