"""Hostile requests to the dashboard, before and after a login: a clean 4xx, no traceback, and the owner goes on."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from adyton.server.dashboard import accepting, http_timeouts, login
from adyton.server.dashboard.requests import MAX_FIELDS, MAX_FORM_BYTES, MAX_LOGIN_BYTES, parse_form
from tests.faults.client.dashboard.conftest import Connect

Browser = Callable[[str], httpx.Client]
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a stranger sends, no line of the log is an error or holds a traceback."""
    caplog.set_level(logging.INFO)
    yield
    wrong = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not wrong, [record.getMessage() for record in wrong]


@pytest.fixture
def session(browser: Browser, password: str) -> tuple[str, str]:
    """Cookie and form token of a login."""
    client = browser("127.0.0.1")
    assert client.post("/login", data={"password": password}).status_code == 303
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/").text)
    assert found is not None
    return client.cookies["__Host-adyton"], found[1]


def answer(connection: ssl.SSLSocket, said: bytes) -> bytes:
    """Say this, and return all that is answered."""
    connection.settimeout(20)
    got = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(said)
        while piece := connection.recv(65536):
            got += piece
    return got


def request(line: str, headers: str = "", body: bytes = b"") -> bytes:
    """A request that ends its connection."""
    return f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode("latin-1") + body


def post(path: str, body: bytes, headers: str = FORM) -> bytes:
    """A form."""
    return request(f"POST {path}", f"{headers}Content-Length: {len(body)}\r\n", body)


MANY = b"&".join(b"f%d=1" % number for number in range(MAX_FIELDS + 1))
HOSTILE = {
    "many fields": post("/login", MANY),
    "bytes that are no ASCII": post("/login", b"password=\xff\xfe"),
    "escapes that are no UTF-8": post("/login", b"password=%ff%fe"),
    "a surrogate": post("/login", b"password=%ed%a0%80"),
    "a NUL": post("/login", b"password=%00"),
    "a field twice": post("/login", b"password=a&password=b"),
    "too long": post("/login", b"password=" + b"x" * MAX_LOGIN_BYTES),
    "multipart": post("/login", b"--b\r\n", "Content-Type: multipart/form-data; boundary=b\r\n"),
    "JSON": post("/login", b"[]" * 100, "Content-Type: application/json\r\n"),
    "no kind of content": post("/login", b"password=a", ""),
    "chunks": request(
        "POST /login", FORM + "Transfer-Encoding: chunked\r\n", b"ffff\r\n" + b"x" * 65535 + b"\r\n0\r\n\r\n"
    ),
    "bad chunks": request("POST /login", FORM + "Transfer-Encoding: chunked\r\n", b"zz\r\nx\r\n"),
    "a negative length": request("POST /login", FORM + "Content-Length: -1\r\n"),
    "two lengths": request("POST /login", FORM + "Content-Length: 1\r\nContent-Length: 2\r\n", b"xx"),
    "length and chunks": request("POST /login", FORM + "Content-Length: 3\r\nTransfer-Encoding: gzip\r\n", b"x=1"),
    "a long path": request("GET /" + "a" * 12_000),
    "a path of escapes": request("GET /%00%ff%fe%2e%2e%2f"),
    "a path upwards": request("GET /../../etc/passwd"),
    "another site": request("GET http://evil.example/login%00"),
    "another method": request("BREW /login"),
    "a method in vain": request("DELETE /login"),
    "a tunnel": request("CONNECT evil.example:443"),
    "a star": request("OPTIONS *"),
    "a long header": request("GET /login", "X: " + "a" * 60_000 + "\r\n"),
    "many headers": request("GET /login", "".join(f"X{n}: 1\r\n" for n in range(20_000))),
    "a bare header": request("GET /login", "X\r\n"),
    "no HTTP": b"\x16\x03\x01" * 50 + b"\r\n\r\n",
    "a later protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a missing style": request("GET /style.css/x"),
    "a slash too many": request("GET /login/"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_before_login_is_a_clean_refusal(connect: Connect, name: str) -> None:
    """Nothing that a stranger says is answered with more than a refusal."""
    said = answer(connect(), HOSTILE[name])
    assert re.match(rb"HTTP/1\.1 4[0-9][0-9] ", said), said[:200]
    assert b"Traceback" not in said


def test_refusal_reaches_who_still_sends(connect: Connect) -> None:
    """The sender is slow, and has its answer all the same: the connection is not reset under it."""
    connection = connect()
    connection.settimeout(20)
    connection.sendall(b"GET /login HTTP/1.1\r\nX: " + b"a" * 60_000)
    for _ in range(8):
        time.sleep(0.05)
        connection.sendall(b"a" * 20_000)
    got = b""
    while piece := connection.recv(65536):
        got += piece
    assert got.startswith(b"HTTP/1.1 400 ")


def test_refusal_behind_an_answer_ends_the_connection(connect: Connect) -> None:
    """What follows a good request in one piece, and is none, is refused after its answer."""
    began = time.monotonic()
    said = answer(connect(), b"GET /login HTTP/1.1\r\nHost: x\r\n\r\n" + b"\xff" * 100 + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in said
    assert time.monotonic() - began < 10


def test_sender_without_end_is_closed_after_its_refusal(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on sending keeps no connection for ever."""
    monkeypatch.setattr(http_timeouts, "REQUEST_S", 1.0)
    connection = connect()
    connection.settimeout(20)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while time.monotonic() - began < 20:
            connection.sendall(b"\xff" * 1000)
            time.sleep(0.05)
    assert time.monotonic() - began < 10


HARMLESS = {
    "a bad Host": b"GET /login HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
    "an old protocol": b"GET /login HTTP/0.9\r\n\r\n",
    "no Host": b"GET /login HTTP/1.0\r\n\r\n",
    "cookies that are none": request("GET /login", 'Cookie: "\\"\\\\; =; ;;; __Host-adyton; __Host-adyton="\xff\r\n'),
    "a cookie of backslashes": request("GET /login", 'Cookie: __Host-adyton="' + "\\" * 12_000 + '"\r\n'),
    "an upgrade": request("GET /login", "Upgrade: websocket\r\n").replace(
        b"Connection: close", b"Connection: Upgrade, close"
    ),
    "an answer that is awaited": request("GET /login", "Expect: 100-continue\r\n"),
    "a query of bytes": request("GET /login?" + "%ff&" * 3000),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_request_before_login_gets_the_login_page(connect: Connect, name: str) -> None:
    """What only looks odd is answered as any other, and quickly."""
    began = time.monotonic()
    said = answer(connect(), HARMLESS[name])
    assert said.startswith(b"HTTP/1.1 200 "), said[:200]
    assert time.monotonic() - began < 5


def test_redirect_never_leads_elsewhere(connect: Connect) -> None:
    """Where a stranger's Host would be believed, a redirect would send the owner to it."""
    for path in ("/login/", "//evil.example/", "/programs/", "/%2f%2fevil.example"):
        said = answer(connect(), f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
        assert b"evil.example" not in said
        assert b" 307 " not in said


AFTER = {
    "a long number": ("GET /entries/" + "9" * 9000, b""),
    "a number beyond the database": ("GET /entries/" + "9" * 18, b""),
    "a number of another script": ("GET /entries/%D9%A3", b""),
    "no number": ("GET /entries/-1", b""),
    "a candidate that is none": ("GET /candidates/zz/weights", b""),
    "a candidate of bytes": ("GET /candidates/%ff%00/%00", b""),
    "an approval of bytes": ("GET /approvals/%00%ff", b""),
    "an approval that is none": ("GET /approvals/a-0", b""),
    "no measurement": ("POST /accept", b"measurement=zz&tee=&key="),
    "a NUL in an id": ("POST /revoke", b"id=a%00b"),
    "bytes in an id": ("POST /revoke", b"id=%ff"),
    "no id": ("POST /approve", b""),
    "many boxes": ("POST /approve", b"id=a-1&" + b"&".join([b"allow=x"] * (MAX_FIELDS + 1))),
    "an id twice": ("POST /approve", b"id=a-1&id=a-2"),
    "too long": ("POST /accept", b"app=" + b"x" * MAX_FORM_BYTES),
    "nothing to dismiss": ("POST /dismiss", b"measurement=" + b"ab" * 32 + b"&key=%F0%9F%92%A9"),
    "what only posts": ("GET /revoke", b""),
}


@pytest.mark.parametrize("name", AFTER)
def test_hostile_request_after_login_is_a_clean_refusal(connect: Connect, session: tuple[str, str], name: str) -> None:
    """Also who is logged in (or rides on somebody's browser) finds no way to an error."""
    cookie, csrf = session
    line, body = AFTER[name]
    headers = f"Cookie: __Host-adyton={cookie}\r\n"
    if line.startswith("POST"):
        body += f"{'&' if body else ''}csrf={csrf}".encode()
        headers += f"{FORM}Content-Length: {len(body)}\r\n"
    said = answer(connect(), request(line, headers, body))
    assert re.match(rb"HTTP/1\.1 4[0-9][0-9] ", said), said[:200]
    assert b"frame-ancestors 'none'" in said


def test_every_page_of_odd_queries_is_answered(connect: Connect, session: tuple[str, str]) -> None:
    """What stands behind the question mark is read strictly, or not at all."""
    for query in ("kind=%00", "before=%ff", "before=" + "9" * 5000, "kind=a&kind=b", "%ff=%ff"):
        said = answer(connect(), request(f"GET /timeline?{query}", f"Cookie: __Host-adyton={session[0]}\r\n"))
        assert said.startswith(b"HTTP/1.1 200 ")


def test_form_that_another_site_sent_is_refused(connect: Connect, session: tuple[str, str]) -> None:
    """Also with the right token: a browser says where a form came from."""
    cookie, csrf = session
    body = f"id=a-1&csrf={csrf}".encode()
    for sent in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: same-site"):
        headers = f"{FORM}Cookie: __Host-adyton={cookie}\r\n{sent}\r\n"
        assert answer(connect(), post("/revoke", body, headers)).startswith(b"HTTP/1.1 403 ")


def test_refusals_have_the_headers_of_every_page(connect: Connect) -> None:
    """No answer may be framed, cached or sniffed, also not one to what no page takes."""
    for said in (
        request("BREW /login"),
        request("GET /nosuch"),
        post("/login", b"a=%ff"),
        post("/login", b"password=x"),
    ):
        got = answer(connect(), said)
        for header in (b"x-frame-options: DENY", b"cache-control: no-store", b"x-content-type-options: nosniff"):
            assert header.lower() in got.lower()


def test_sender_who_leaves_in_the_middle_of_a_form_is_no_error(connect: Connect) -> None:
    """The rest that never comes is waited for no longer, and nothing is logged of it."""
    for _ in range(5):
        connection = connect()
        connection.sendall(request("POST /login", FORM + "Content-Length: 1000\r\n", b"password=12"))
        time.sleep(0.05)
        connection.close()
    assert answer(connect(), request("GET /login")).startswith(b"HTTP/1.1 200 ")


def test_what_fails_unforeseen_is_logged_without_a_value(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A password in an exception's text reaches neither the log nor the page; which exception and where does."""

    def fail(_page: object, _peer: str) -> None:
        raise RuntimeError("the password was hunter2")

    monkeypatch.setattr(login.Login, "_note_refused", fail)
    said = answer(connect(), post("/login", b"password=hunter2"))
    assert said.startswith(b"HTTP/1.1 500 ")
    (found,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    written = str(vars(found))
    assert "hunter2" not in written + said.decode("latin-1")
    assert found.error == "RuntimeError"  # type: ignore[attr-defined]
    assert "test_requests.py" in found.where  # type: ignore[attr-defined]
    assert not found.exc_info
    caplog.clear()


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_old_tls_is_refused(connect: Connect) -> None:
    """TLS 1.2, and whatever is older, gets no connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        connect(context=context)


def test_no_ticket_is_given_and_no_session_resumed(connect: Connect) -> None:
    """A ticket's key would open recorded connections later; there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connection = connect(context=context)
    assert connection.version() == "TLSv1.3"
    assert answer(connection, request("GET /login")).startswith(b"HTTP/1.1 200 ")
    held = connection.session
    assert held is None or not held.has_ticket
    assert not connection.session_reused


# --- connections ----------------------------------------------------------------------------------------------------


def test_silent_connections_before_their_handshake_are_bounded(
    page: str, browser: Browser, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that say nothing take a bounded number of descriptors, and the owner's page comes meanwhile."""
    monkeypatch.setattr(accepting, "HANDSHAKE_S", 600.0)
    port = int(page.rpartition(":")[2])
    silent = [
        socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(f"127.0.1.{number % 9 + 1}", 0))
        for number in range(3 * accepting.MAX_HANDSHAKES)
    ]
    client = browser("127.0.0.1")
    assert client.post("/login", data={"password": password}).status_code == 303
    assert client.get("/programs").status_code == 200
    deadline, dropped = time.monotonic() + 20, 0
    while dropped < 2 * accepting.MAX_HANDSHAKES and time.monotonic() < deadline:
        dropped = sum(_is_closed(connection) for connection in silent)
        time.sleep(0.05)
    assert dropped >= 2 * accepting.MAX_HANDSHAKES
    for connection in silent:
        connection.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_held_connections_of_many_addresses_keep_nobody_out(
    connect: Connect, browser: Browser, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes for the newest, so that who holds them all must always begin again."""
    monkeypatch.setattr(http_timeouts, "REQUEST_S", 600.0)
    for number in range(http_timeouts.MAX_CONNECTIONS + 10):
        connect(f"127.0.2.{number // 10 + 1}").sendall(b"GET / HTT")
    client = browser("127.0.0.1")
    assert client.post("/login", data={"password": password}).status_code == 303
    assert client.get("/").status_code == 200


def whole_answer(connection: ssl.SSLSocket, said: bytes) -> bytes:
    """One answer on a connection that goes on."""
    connection.sendall(said)
    got = b""
    while not got.endswith(b"</html>"):
        piece = connection.recv(65536)
        if not piece:
            break
        got += piece
    return got


def test_connection_of_who_knows_the_password_is_not_the_one_to_go(connect: Connect, session: tuple[str, str]) -> None:
    """A stranger at the same address who opens connection after connection does not break off the owner's."""
    owner = connect()
    headers = f"GET /keys HTTP/1.1\r\nHost: x\r\nCookie: __Host-adyton={session[0]}\r\n\r\n".encode()
    assert whole_answer(owner, headers).startswith(b"HTTP/1.1 200 ")
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connect()

    worker = threading.Thread(target=flood, daemon=True)
    worker.start()
    try:
        for _ in range(10):
            time.sleep(0.1)
            assert whole_answer(owner, headers).startswith(b"HTTP/1.1 200 ")
    finally:
        stop.set()
        worker.join(20)


def test_form_reads_back_what_a_browser_writes() -> None:
    """Fields once, boxes as often as they are ticked, in UTF-8."""
    form = parse_form(b"app=%C3%A9t%C3%A9&allow=a&allow=b%3Dc&empty=")
    assert (form.get("app"), form.allow, form.get("empty"), form.get("nosuch")) == ("été", ("a", "b=c"), "", "")
