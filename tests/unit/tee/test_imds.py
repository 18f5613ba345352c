"""Azure's services at a machine's link-local address, against a server that gives every kind of answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from adyton.errors import NoDevice, Timeout
from adyton.tee import imds


class Service(BaseHTTPRequestHandler):
    """Answers by path, and remembers what it was asked."""

    asked: ClassVar[list[tuple[str, str, str | None, bytes]]] = []

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, self.headers.get("Metadata"), body))
        if self.path == "/close":
            return
        status = {"/moved": 302, "/none": 404}.get(self.path, 200)
        found = bytes(imds.MAX_ANSWER_BYTES + 1) if self.path == "/big" else b'{"a": 1}'
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The server's port."""
    Service.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_answer_is_its_body(port: int) -> None:
    """With the header that keeps others from asking by accident; a POST carries its body."""
    assert imds.ask("GET", "/ok", address="127.0.0.1", port=port) == b'{"a": 1}'
    assert imds.ask("POST", "/ok", b"{}", address="127.0.0.1", port=port) == b'{"a": 1}'
    assert Service.asked == [("GET", "/ok", "true", b""), ("POST", "/ok", "true", b"{}")]


@pytest.mark.parametrize("path", ["/moved", "/none", "/big", "/close"])
def test_answer_that_is_none_is_refused(port: int, path: str) -> None:
    """A redirect is not followed, and nothing is read beyond the limit."""
    with pytest.raises(NoDevice) as caught:
        imds.ask("GET", path, address="127.0.0.1", port=port)
    assert caught.value.check == f"Azure's service {path}"
    assert len(Service.asked) == 1


def test_machine_without_the_service_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens; or what listens says nothing."""
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        with pytest.raises(NoDevice):
            imds.ask("GET", "/", address="127.0.0.1", port=port)
        listening.listen()
        monkeypatch.setattr(imds, "TIMEOUT_S", 0.05)
        with pytest.raises(Timeout):
            imds.ask("GET", "/", address="127.0.0.1", port=port)
