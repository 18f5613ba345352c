"""Fetching is capped in time and size, follows nothing, and says what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adyton.collateral.http_client import HTTPFetcher, Response, retry_after_s
from adyton.errors import FetchFailed, Timeout, UsageError
from tests.support.servers import Handler, dripping, raw_server, saying, self_signed

OK = b"HTTP/1.1 200 OK\r\n"


def get(handler: Handler, *, timeout_s: float = 5.0, max_bytes: int = 1000) -> Response:
    """GET / from a server that behaves like this."""
    with raw_server(handler) as url:
        return HTTPFetcher(timeout_s).get(f"{url}/", max_bytes=max_bytes)


def test_get_returns_status_headers_and_body() -> None:
    """Whatever the status, the answer comes back, header names in lower case."""
    answer = get(saying(b"HTTP/1.1 404 Not Found\r\nRequest-ID: a1\r\nContent-Length: 3\r\n\r\nabc"))
    assert (answer.status, answer.headers["request-id"], answer.body) == (404, "a1", b"abc")


def test_get_reads_a_chunked_body() -> None:
    """Chunked transfer coding is undone."""
    answer = get(saying(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    assert answer.body == b"abcde"


def test_get_does_not_follow_a_redirect() -> None:
    """A redirect is a status like any other: nobody is led elsewhere."""
    answer = get(saying(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"))
    assert answer.status == 302


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (OK + b"Content-Length: 500\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK, b"X-Header: y\r\n"),
        (b"", b"H"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    ],
    ids=["body", "chunks", "headers", "status-line", "informational"],
)
def test_get_from_a_server_that_drips_ends_in_time(head: bytes, drop: bytes) -> None:
    """A server that sends a little all the time is given up after the time for the whole exchange."""
    start = time.monotonic()
    with pytest.raises((Timeout, FetchFailed)):
        get(dripping(head, drop, 0.05), timeout_s=0.6)
    assert time.monotonic() - start < 3.0


def test_get_from_a_server_that_drips_its_body_is_a_timeout() -> None:
    """The refusal says that time ran out, and after how long."""
    with pytest.raises(Timeout, match=r"within 0\.5 seconds"):
        get(dripping(OK + b"Content-Length: 500\r\n\r\n", b"x", 0.05), timeout_s=0.5)


def test_get_from_a_server_that_says_nothing_is_a_timeout() -> None:
    """Silence ends at the deadline."""
    with pytest.raises(Timeout):
        get(dripping(b"", b"", 0.05), timeout_s=0.4)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
        OK + b"Content-Length: 99999999999999999999999999\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"3ea\r\n" + b"x" * 1002 + b"\r\n0\r\n\r\n",
        OK + b"Connection: close\r\n\r\n" + b"x" * 5000,
    ],
    ids=["announced", "announced-absurd", "chunked", "until-close"],
)
def test_get_of_too_much_is_refused(answer: bytes) -> None:
    """More than the cap is refused, announced or not."""
    with pytest.raises(FetchFailed, match=r"more than the 1000 bytes|number of digits|cannot fetch"):
        get(saying(answer))


def test_get_of_exactly_the_cap_is_accepted() -> None:
    """The cap itself is allowed."""
    assert len(get(saying(OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)).body) == 1000


def test_get_with_a_huge_head_is_refused() -> None:
    """Headers are capped as well."""
    with pytest.raises(FetchFailed):
        get(saying(OK + b"X: " + b"y" * 200_000 + b"\r\n\r\n"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        OK + b"Content-Length: 10\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    ],
    ids=["nothing", "no-http", "cut", "cut-chunk", "two-lengths"],
)
def test_get_of_a_broken_answer_is_refused(answer: bytes) -> None:
    """What is no complete HTTP answer is never taken for one."""
    with pytest.raises(FetchFailed):
        get(saying(answer))


def test_get_of_a_compressed_answer_is_refused() -> None:
    """Nothing is decompressed: a small answer cannot become a large one."""
    with pytest.raises(FetchFailed, match="gzip"):
        get(saying(OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"))


def test_get_where_nobody_listens_says_so() -> None:
    """A refused connection is `could not check`, with what to do."""
    with raw_server(saying(b"")) as url:
        pass
    with pytest.raises(FetchFailed) as caught:
        HTTPFetcher(2).get(url, max_bytes=10)
    assert "import a bundle" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@host/",
        "http://host:99999/",
        "http://host/\r\nX: y",
        "http://ho st/",
        "http://host/#part",
        "host/path",
    ],
)
def test_get_of_something_that_is_no_address_is_refused(url: str) -> None:
    """Only plain http and https addresses are fetched."""
    with pytest.raises(UsageError):
        HTTPFetcher(1).get(url, max_bytes=10)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context with a certificate of its own for localhost, and that certificate's file."""
    crt, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    return context, crt


def test_get_over_tls_with_an_unknown_certificate_is_refused(tls: tuple[ssl.SSLContext, Path]) -> None:
    """A self-signed certificate, as a PCCS has, is refused and the option named that accepts it."""
    answer = saying(OK + b"Content-Length: 0\r\n\r\n")
    with raw_server(answer, tls[0]) as url, pytest.raises(FetchFailed, match="not trusted") as caught:
        HTTPFetcher(5).get(url, max_bytes=10)
    assert "--pcs-ca" in str(caught.value.remedy)


def test_get_over_tls_with_its_ca_named_is_accepted(tls: tuple[ssl.SSLContext, Path]) -> None:
    """With the service's CA the same server is accepted."""
    with raw_server(saying(OK + b"Content-Length: 2\r\n\r\nok"), tls[0]) as url:
        assert HTTPFetcher(5, tls[1]).get(url, max_bytes=10).body == b"ok"


def test_get_over_tls_for_another_name_is_refused(tls: tuple[ssl.SSLContext, Path]) -> None:
    """A trusted certificate of another host is refused, and that is what is said: the CA is not what is missing."""
    answer = saying(OK + b"Content-Length: 0\r\n\r\n")
    with raw_server(answer, tls[0]) as url, pytest.raises(FetchFailed, match="name mismatch") as caught:
        HTTPFetcher(5, tls[1]).get(url.replace("localhost", "127.0.0.1"), max_bytes=10)
    (check,) = caught.value.checks
    assert (check.name, check.expected) == ("name in the TLS certificate of the server", "127.0.0.1")
    assert "--pcs-cert" in str(check.remedy)
    assert "--pcs-ca" not in str(check.remedy)


def pin_of(crt: Path) -> str:
    """The SHA-256 of a certificate file (PEM)."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(crt.read_text())).hexdigest()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_get_over_tls_with_its_certificate_pinned_is_accepted(tls: tuple[ssl.SSLContext, Path], host: str) -> None:
    """The one certificate that is pinned is enough, whatever name it has and whoever signed it."""
    with raw_server(saying(OK + b"Content-Length: 2\r\n\r\nok"), tls[0]) as url:
        fetcher = HTTPFetcher(5, pin=pin_of(tls[1]))
        assert fetcher.get(url.replace("localhost", host), max_bytes=10).body == b"ok"


def test_get_over_tls_with_another_certificate_pinned_sends_nothing(
    tls: tuple[ssl.SSLContext, Path], tmp_path: Path
) -> None:
    """A certificate of the same name, from the same CA even, is not the pinned one; the request never leaves."""
    asked = []

    def note(connection: socket.socket, _stop: threading.Event) -> None:
        with contextlib.suppress(OSError):
            asked.append(connection.recv(1000))

    (tmp_path / "other").mkdir()
    other, _ = self_signed(tmp_path / "other")
    with raw_server(note, tls[0]) as url, pytest.raises(FetchFailed, match="another TLS certificate") as caught:
        HTTPFetcher(5, tls[1], pin_of(other)).get(url, max_bytes=10)
    (check,) = caught.value.checks
    assert (check.expected, check.seen) == (f"SHA-256 {pin_of(other)}", f"SHA-256 {pin_of(tls[1])}")
    assert [each for each in asked if each] == []


def test_get_without_tls_where_a_certificate_is_pinned_is_refused() -> None:
    """Nothing can be compared there, so nothing is fetched."""
    with pytest.raises(UsageError, match="pinned"):
        HTTPFetcher(5, pin="ab" * 32).get("http://127.0.0.1:1/", max_bytes=10)


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("30", 30.0),
        ("0", 0.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("999999999999", 86_400.0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 86_400.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_reads_seconds_and_dates(text: str, wait_s: float | None) -> None:
    """Both forms of RFC 9110 are read, capped at a day; nonsense is nothing."""
    assert retry_after_s(Response("", 429, {"retry-after": text}, b""), NOW) == wait_s


# --- proxies ----------------------------------------------------------------------------------------------------------


def proxying(seen: list[bytes], answer: bytes | None = None) -> Handler:
    """A proxy: remembers the head of the request; says `answer`, or passes everything on to the address in CONNECT."""

    def handle(connection: socket.socket, _stop: threading.Event) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        seen.append(head)
        if answer is not None:
            connection.sendall(answer)
            return
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=pump, args=(upstream, connection))
            back.start()
            pump(connection, upstream)
            back.join()

    return handle


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until there are no more."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_get_through_a_proxy_tunnels_tls(
    no_proxies: pytest.MonkeyPatch, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An https address goes through CONNECT, with the user's name for the proxy and nothing of the request."""
    seen: list[bytes] = []
    monkeypatch.setattr("adyton.collateral.http_client._is_loopback", lambda _host: False)
    with raw_server(saying(OK + b"Content-Length: 2\r\n\r\nok"), tls[0]) as url, raw_server(proxying(seen)) as proxy:
        no_proxies.setenv("HTTPS_PROXY", proxy.replace("http://", "http://user:p%40ss@"))
        assert HTTPFetcher(5, tls[1]).get(f"{url}/secret-path", max_bytes=10).body == b"ok"
    assert seen[0].startswith(b"CONNECT localhost:")
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz" in seen[0]
    assert b"secret-path" not in seen[0]


def test_get_of_a_plain_address_through_a_proxy_names_it_whole(no_proxies: pytest.MonkeyPatch) -> None:
    """A proxy gets the whole address of a plain http request."""
    seen: list[bytes] = []
    with raw_server(proxying(seen, OK + b"Content-Length: 2\r\n\r\nok")) as proxy:
        no_proxies.setenv("http_proxy", proxy.removeprefix("http://"))
        assert HTTPFetcher(5).get("http://service.invalid/path?x=1", max_bytes=10).body == b"ok"
    assert seen[0].startswith(b"GET http://service.invalid/path?x=1 HTTP/1.1")


def test_proxy_that_refuses_is_named(no_proxies: pytest.MonkeyPatch) -> None:
    """A refused CONNECT says which proxy, and which variables to look at."""
    with raw_server(proxying([], b"HTTP/1.1 407 Authentication Required\r\nContent-Length: 0\r\n\r\n")) as proxy:
        no_proxies.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(FetchFailed, match="407") as caught:
            HTTPFetcher(5).get("https://service.invalid/", max_bytes=10)
    assert "NO_PROXY" in str(caught.value.remedy)


def test_proxy_that_drips_ends_in_time(no_proxies: pytest.MonkeyPatch) -> None:
    """The deadline holds for the proxy as well."""
    with raw_server(dripping(b"", b"H", 0.05)) as proxy:
        no_proxies.setenv("ALL_PROXY", proxy)
        start = time.monotonic()
        with pytest.raises((Timeout, FetchFailed)):
            HTTPFetcher(0.5).get("https://service.invalid/", max_bytes=10)
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_this_machine_is_never_asked_for_through_a_proxy(no_proxies: pytest.MonkeyPatch, name: str) -> None:
    """A simulated platform on this machine is reached directly, whatever the environment says."""
    no_proxies.setenv("http_proxy", "http://127.0.0.1:1")
    with raw_server(saying(OK + b"Content-Length: 2\r\n\r\nok")) as url:
        assert HTTPFetcher(5).get(url.replace("127.0.0.1", name), max_bytes=10).body == b"ok"


def test_host_in_no_proxy_is_asked_directly(no_proxies: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is obeyed."""
    monkeypatch.setattr("adyton.collateral.http_client._is_loopback", lambda _host: False)
    no_proxies.setenv("http_proxy", "http://127.0.0.1:1")
    no_proxies.setenv("no_proxy", "127.0.0.1")
    with raw_server(saying(OK + b"Content-Length: 2\r\n\r\nok")) as url:
        assert HTTPFetcher(5).get(url, max_bytes=10).body == b"ok"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://", "http://host:99999", "https://127.0.0.1:1"])
def test_proxy_that_cannot_be_used_is_refused(no_proxies: pytest.MonkeyPatch, proxy: str) -> None:
    """Another kind of proxy is refused by name, never silently gone around."""
    no_proxies.setenv("https_proxy", proxy)
    with pytest.raises(UsageError, match="proxy"):
        HTTPFetcher(1).get("https://service.invalid/", max_bytes=10)
