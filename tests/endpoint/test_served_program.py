"""An ordinary HTTP server runs protected, and ordinary clients reach it through `adyton connect`, proved each time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import adyton
from adyton.errors import Mismatch
from demo.canary import draw, search
from demo.world import Actor, World
from tests.endpoint.wire import wire

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (apt-get install curl)"),
]

KEY = "weights"
WEIGHTS = "".join(f"layer {one}: {one * 7919 % 100_003}\n" for one in range(200))

SERVER = '''\
"""A web server with a private model: it answers with the model's lines, in capitals."""

import http.server
import sys

with open("input/model.txt", encoding="utf-8") as file:
    model = file.read().splitlines()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body = (model[int(asked)].upper() + "\\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
'''


@dataclass
class Service:
    """The running server, its ingress's address on the wire, and what a client needs."""

    world: World
    client: Actor
    address: tuple[str, int]
    policy: Path
    server: str
    process: subprocess.Popen[str]
    collateral: Path

    def stop(self) -> str:
        """End the run by SIGTERM. What it said."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        assert "Traceback" not in out + err, err
        return out + err

    def start(self) -> None:
        """Run it again."""
        self.process = started(self.world.cloud, self.server)

    def connect(self, *words: str | Path, **more: str) -> list[str]:
        """The words that start `adyton connect`."""
        host, port = self.address
        return [
            *(sys.executable, "-m", "adyton", "connect", f"{host}:{port}", "--policy", str(self.policy)),
            *("--collateral", str(self.collateral), *map(str, words)),
        ]

    def once(
        self,
        *command: str,
        policy: Path | None = None,
        address: tuple[str, int] | None = None,
        options: Sequence[str | Path] = (),
    ) -> Ended:
        """Run a command beside a door."""
        host, port = address or self.address
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "adyton", "connect", f"{host}:{port}", "--policy", str(policy or self.policy)),
                *("--collateral", str(self.collateral), *map(str, options)),
                *("--once", "--", *command),
            ],
            cwd=self.client.folder,
            env=self.client.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Everything from the script to a running, proved server."""
    with serving(tmp_path_factory.mktemp("service"), SERVER) as found:
        _await_answer(found)
        yield found


@contextmanager
def serving(
    folder: Path, script: str, change: Callable[[World, str], str] | None = None, *allow: str
) -> Iterator[Service]:
    """A server from its script to its run. `change` edits the template, and may put files beside it."""
    with World(folder) as world:
        owner, cloud = world.owner, world.cloud
        (owner.folder / "input").mkdir()
        (owner.folder / "input" / "model.txt").write_text(WEIGHTS)
        (owner.folder / "serve.py").write_text(script)
        inside = str(free_port())
        owner.adyton("new", "--key", KEY, "--name", "api", "--serve", inside, "serve.py", inside)
        template = owner.folder / "api.manifest.template"
        port = free_port()
        text = template.read_text()
        assert 'listen = "0.0.0.0:8443"' in text
        text = text.replace('"0.0.0.0:8443"', f'"127.0.0.1:{port}"')
        template.write_text(text if change is None else change(world, text))
        root = cloud.adyton("platform", "new", world.platform, "--json").document["root_fingerprint"]
        owner.adyton("init")
        owner.adyton("key", "new", KEY)
        owner.adyton("encrypt", "input", "-o", "encrypted/input", "--key", KEY)
        built = owner.adyton("build", template.name, "--json").document
        approval = ("approve", "api.manifest", "--key", KEY, "--tee", f"sim:{root}", "--json")
        approved = owner.adyton(*approval, *(word for name in allow for word in ("--allow", name))).document
        assert "what clients send through the ingress api" in approved["not_covered"]
        collateral = folder / "collateral.json"
        cloud.adyton("platform", "export", world.platform, "-o", collateral)
        owner.adyton("collateral", "import", "--root", root, collateral)
        ready = owner.folder / "ready.json"
        server = owner.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready)["adyton"]
        for path in (*owner.folder.glob("api.*"), owner.folder / "serve.py"):
            shutil.copy(path, cloud.folder)
        policy = folder / "api.toml"
        printed = owner.adyton("connect", "--print-policy", "api.manifest", "--tee", f"sim:{root}").out
        assert built["measurement"] in printed
        policy.write_text(printed)
        client = world.actor("client")
        found = Service(world, client, ("127.0.0.1", port), policy, server, started(cloud, server), collateral)
        try:
            yield found
        finally:
            found.stop()


def started(
    cloud: Actor, server: str, manifest: str = "api.manifest", folder: Path | None = None
) -> subprocess.Popen[str]:
    """A run of the server that asks this key server for its keys."""
    return subprocess.Popen(
        [sys.executable, "-m", "adyton", "run", manifest, "--tee", "sim", "--key-server", server],
        cwd=folder or cloud.folder,
        env=cloud.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _await_answer(service: Service) -> None:
    deadline = time.monotonic() + 60
    while True:
        ended = service.once("curl", "-sS", "--fail", "-d", "0", "http://{addr}/")
        if ended.status == 0:
            return
        assert service.process.poll() is None, service.process.communicate()
        assert time.monotonic() < deadline, ended
        time.sleep(0.2)


@contextmanager
def door(service: Service, *words: str) -> Iterator[tuple[str, dict[str, object]]]:
    """A door that stays open. Gives its address and the ready file's document."""
    ready = service.client.folder / f"ready-{threading.get_ident()}-{time.monotonic_ns()}.json"
    process = subprocess.Popen(
        service.connect("--listen", "127.0.0.1:0", "--ready-file", ready, *words),
        cwd=service.client.folder,
        env=service.client.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        document = json.loads(ready.read_text())
        yield document["address"], document
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err


def test_curl_gets_an_answer_and_the_wire_shows_nothing(service: Service) -> None:
    """curl talks to the door. The network between saw ciphertext only: neither question nor answer nor model."""
    with wire(service.address) as net:
        ended = service.once("curl", "-sS", "--fail", "-d", "7", "http://{addr}/ask", address=net.address)
    assert ended.status == 0, ended.err
    assert ended.out == WEIGHTS.splitlines()[7].upper() + "\n"
    recorded = bytes(net.recorded)
    assert len(recorded) > 1000
    canaries = draw("model", WEIGHTS.encode(), count=40) + draw("answers", WEIGHTS.upper().encode(), count=40)
    assert not search(recorded, canaries)
    assert search(WEIGHTS.upper().encode(), canaries), "the search finds nothing at all"


def test_many_requests_over_one_door(service: Service) -> None:
    """httpx keeps its connection, as an SDK does, and each of many threads gets its own answers."""
    with door(service) as (address, document):
        assert document["ingress"] == "api"
        wrong: list[str] = []

        def ask(first: int) -> None:
            with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
                for number in range(first, first + 20):
                    answer = client.post("/ask", content=str(number))
                    if answer.text != WEIGHTS.splitlines()[number].upper() + "\n":
                        wrong.append(answer.text)

        threads = [threading.Thread(target=ask, args=(20 * one,)) for one in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_python_program_connects_by_itself(service: Service) -> None:
    """The library's address is for any client, closes with its block, and says what it verified."""
    given: dict[str, Any] = {
        "policy": service.policy,
        "collateral": [service.world.folder / "collateral.json"],
        "home": service.client.folder,
    }
    host, port = service.address
    with adyton.connecting(f"{host}:{port}", **given) as door:
        assert door.ingress == "api"
        assert any("ACCEPTED" in line for line in door.verdict)
        answer = httpx.post(f"http://{door.address}/ask", content="3", timeout=60)
        assert answer.text == WEIGHTS.splitlines()[3].upper() + "\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{door.address}/")
    with (
        pytest.raises(Mismatch, match="manifest"),
        adyton.connecting(f"{host}:{port}", manifest_sha256="00" * 32, **given),
    ):
        pytest.fail("it was accepted")


def test_other_program_is_refused(service: Service) -> None:
    """A client whose policy names another program gets the reason and exit code 95, and nothing is sent."""
    policy = service.client.folder / "other.toml"
    policy.write_text(re.sub(r'(workloads = \[\s*)"..', r'\1"00', service.policy.read_text()))
    ended = service.once("curl", "-sS", "http://{addr}/", policy=policy)
    assert ended.status == 95, ended
    assert "workload" in ended.err


def test_bytes_altered_on_the_way_are_refused(service: Service) -> None:
    """Whichever byte an attacker on the network flips, the client gets no altered answer."""
    for position in (10, 200, 700, 1500, 4000):
        with wire(service.address, flip=position) as net:
            ended = service.once("curl", "-sS", "--fail", "-d", "9", "http://{addr}/", address=net.address)
            assert (ended.status == 0 and ended.out == WEIGHTS.splitlines()[9].upper() + "\n") or ended.status != 0
            if ended.status == 0:
                continue
            assert WEIGHTS.splitlines()[9].upper() not in ended.out


def test_program_cannot_reach_the_host(service: Service) -> None:
    """The program's network has loopback and nothing else: what it was given before stays as it was."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    networks = {os.readlink(f"/proc/{pid}/ns/net") for pid in _below(children)}
    own = os.readlink("/proc/self/ns/net")
    assert own in networks, "the keeper's own processes"
    assert len(networks) == 2, networks


def _below(pids: list[str]) -> list[str]:
    found = list(pids)
    for pid in pids:
        try:
            found += _below(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def test_end_of_the_server_is_said(service: Service) -> None:
    """Without an endpoint the command says so, with the exit code of what could not be checked."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ended = service.once("curl", "-sS", "http://{addr}/", address=taken.getsockname()[:2])
    assert ended.status == 111, ended
    assert "connection to the ingress" in ended.err
