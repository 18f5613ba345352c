"""A native run of a server: asked once, ended by SIGTERM, and every other end is said."""

from __future__ import annotations

import shutil
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest

from adyton.errors import ScriptFailed, UsageError
from adyton.manifest.native_differences import differences
from adyton.manifest.observe import Observation, observe
from adyton.workflow import server_watch
from adyton.workflow.server_watch import ServerWatch

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

SERVER = """
import http.server, signal, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        open("asked.txt", "w").write(self.path)
        answer = open("in.txt", "rb").read()
        self.send_response(404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
RAW = """
import os, socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        listener.accept()[0].close()
"""


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def watched(folder: Path, text: str, *, seconds: float = 20, client: str | None = None) -> Observation:
    """What is seen of a server with this text."""
    (folder / "in.txt").write_text("hello")
    (folder / "p.py").write_text(textwrap.dedent(text))
    port = free_port()
    return observe([sys.executable, "p.py", str(port)], folder, ServerWatch(port, seconds, client))


def kinds(seen: Observation) -> set[str]:
    """The kinds of the differences that are told of it."""
    return {found.kind for found in differences(seen, data=(), not_taken=(), left_out=())}


@needs_strace
def test_server_is_asked_once_and_ended(tmp_path: Path) -> None:
    """What it reads for the request is seen, and loopback is no difference."""
    seen = watched(tmp_path, SERVER)
    assert seen.server is not None
    assert seen.server.answered
    assert seen.server.stopped
    assert str(tmp_path / "in.txt") in seen.read
    assert (tmp_path / "asked.txt").read_text() == "/"
    assert not kinds(seen) & {"network", "unanswered", "ending"}


@needs_strace
def test_what_the_server_loads_for_a_client_is_seen(tmp_path: Path) -> None:
    """A file that is read for a path other than / is found by the client's command, and by nothing else."""
    (tmp_path / "late.txt").write_text("late")
    late = 'answer = open("late.txt" if self.path == "/late" else "in.txt", "rb").read()'
    text = SERVER.replace('answer = open("in.txt", "rb").read()', late).replace("(404)", "(200)")
    assert str(tmp_path / "late.txt") not in watched(tmp_path, text).read
    ask = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
    seen = watched(tmp_path, text, client=f"{sys.executable} -c '{ask}' http://{{addr}}/late")
    assert str(tmp_path / "late.txt") in seen.read
    assert seen.server is not None
    assert seen.server.answered


@needs_strace
@pytest.mark.parametrize(
    ("client", "seconds", "told"),
    [
        (f"{sys.executable} -c 'raise SystemExit(3)'", 20, "ended with status 3"),
        ("sleep 60", 2, "did not end within 2 s"),
        ("/nowhere/client", 20, "cannot be run"),
    ],
)
def test_client_that_fails_is_told(tmp_path: Path, client: str, seconds: float, told: str) -> None:
    """Else a proposal would lack what the client would have made the server load."""
    with pytest.raises(ScriptFailed, match=f"the client's command {told}"):
        watched(tmp_path, SERVER, seconds=seconds, client=client)


@pytest.mark.parametrize("client", ["", " ", "'open"])
def test_odd_client_is_refused(client: str) -> None:
    """It is no command."""
    with pytest.raises(UsageError, match="no command"):
        ServerWatch(free_port(), client=client)


@needs_strace
def test_endless_answer_is_an_answer(tmp_path: Path) -> None:
    """A stream of events at / has no end that could be waited for."""
    events = "self.end_headers()\n        while True:\n            self.wfile.write(b'data: x\\n\\n'); time.sleep(0.1)"
    text = SERVER.replace("self.end_headers()", events).replace(
        'self.send_header("Content-Length", str(len(answer)))', ""
    )
    seen = watched(tmp_path, text, seconds=15)
    assert seen.server is not None
    assert seen.server.answered
    assert seen.wall_s < 12


@needs_strace
def test_server_that_answers_no_http_is_told(tmp_path: Path) -> None:
    """It listened, so there is a proposal, with a word about what was not seen."""
    seen = watched(tmp_path, RAW, seconds=1.5)
    assert seen.server is not None
    assert not seen.server.answered
    assert "unanswered" in kinds(seen)


@needs_strace
def test_server_that_ends_by_itself_is_refused(tmp_path: Path) -> None:
    """Also where its status is 0."""
    with pytest.raises(ScriptFailed, match="ended by itself with status 0") as ended:
        watched(tmp_path, "")
    assert ended.value.status == 1
    with pytest.raises(ScriptFailed, match="ended by itself with status 7") as ended:
        watched(tmp_path, "raise SystemExit(7)")
    assert ended.value.status == 7


@needs_strace
def test_server_that_never_listens_is_refused(tmp_path: Path) -> None:
    """It is ended, and the port and the time are named."""
    began = time.monotonic()
    with pytest.raises(ScriptFailed, match=r"nothing listened on 127\.0\.0\.1:[0-9]+ within 1 s") as silent:
        watched(tmp_path, "import time; time.sleep(60)", seconds=1)
    assert time.monotonic() - began < 20
    assert "--watch" in str(silent.value.remedy)


@needs_strace
def test_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds later, and it is told."""
    monkeypatch.setattr(server_watch, "_STOP_S", 0.5)
    seen = watched(tmp_path, SERVER.replace("class", "signal.signal(15, signal.SIG_IGN)\n\nclass", 1))
    assert seen.server is not None
    assert seen.server.killed
    assert "ending" in kinds(seen)


@needs_strace
def test_process_that_outlives_its_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that nobody ended, and that has a session of its own."""
    monkeypatch.setattr(server_watch, "_STOP_S", 0.5)
    child = "import os\nif not os.fork():\n    os.setsid()\n    time.sleep(600)\n\nclass"
    seen = watched(tmp_path, SERVER.replace("class", child, 1))
    assert seen.server is not None
    assert seen.server.killed
    assert seen.wall_s < 60


@needs_strace
def test_server_that_fails_on_sigterm_is_told(tmp_path: Path) -> None:
    """Its status is named."""
    seen = watched(tmp_path, SERVER.replace("class", "signal.signal(15, lambda *_: sys.exit(3))\n\nclass", 1))
    assert seen.server is not None
    assert (seen.server.status, seen.server.stopped) == (3, False)
    (told,) = [found for found in differences(seen, data=(), not_taken=(), left_out=()) if found.kind == "ending"]
    assert "status 3" in told.what


def test_port_that_another_program_has_is_refused() -> None:
    """Otherwise the other program would answer, and the server would count as seen."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UsageError, match="another program listens"):
        ServerWatch(other.getsockname()[1])


@pytest.mark.parametrize(("port", "seconds"), [(0, 1), (65536, 1), (-1, 1), (8000, 0), (8000, float("nan"))])
def test_odd_numbers_are_refused(port: int, seconds: float) -> None:
    """Ports and times that cannot be meant."""
    with pytest.raises(UsageError):
        ServerWatch(port, seconds)
