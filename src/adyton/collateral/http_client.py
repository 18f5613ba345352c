"""GET (and POST, for OCSP) over HTTP and HTTPS, with limits on total time, size of the head and size of the body.

All collateral from the network comes through this module. It uses the proxy of the environment, if there is one. It
follows no redirects and accepts no compression. Its deadline covers the whole exchange, so a server that sends one byte
per second blocks nobody. Name resolution has the timeout of the operating system. The body is untrusted: the caller
verifies it.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import h11

from adyton import __version__
from adyton.errors import FetchFailed, Timeout, UsageError

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_TIMEOUT_S: Final = 20.0
MAX_HEAD_BYTES: Final = 64 << 10
MAX_RETRY_AFTER_S: Final = 86_400.0
_CHUNK_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Response:
    """A server's response. Header names are in lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


class Fetcher(Protocol):
    """The interface of an HTTP client."""

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """The server's response, with any status. Raises FetchFailed or Timeout where there is none."""
        ...


class Poster(Protocol):
    """The interface of an HTTP client that also sends a body."""

    def post(self, url: str, body: bytes, *, max_bytes: int, headers: Mapping[str, str]) -> Response:
        """The server's response, with any status. Raises FetchFailed or Timeout where there is none."""
        ...


def retry_after_s(response: Response, now: datetime | None = None) -> float | None:
    """Seconds of the Retry-After header (RFC 9110, 10.2.3: a number or a date), at most a day. None without it."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(wait, 0.0), MAX_RETRY_AFTER_S)


def told_wait(wait_s: float | None) -> str:
    """The words of a refusal for how long a service asks to be left alone."""
    return "" if wait_s is None else f", retry after {wait_s:.0f} s"


_OTHER_NAME: Final = {62, 64}
"""OpenSSL's codes for a certificate that leads to a known CA, but is for another name or another address."""


def _named_otherwise(host: str, why: str) -> FetchFailed:
    return FetchFailed(
        f"{host}: its TLS certificate is for another name (name mismatch): {why}",
        check="name in the TLS certificate of the server",
        expected=host,
        seen="other names",
        remedy="name the service by a name that its certificate has (openssl s_client shows it), or pin that"
        " certificate: --pcs-cert FILE",
    )


@dataclass(frozen=True, slots=True)
class _Target:
    host: str
    port: int
    tls: bool
    path: str
    authority: str


def _target(url: str) -> _Target:
    def refuse(why: str) -> UsageError:
        return UsageError(
            f"cannot fetch from this address: {why}",
            check="address to fetch from",
            expected="https://HOST[:PORT]/… or http://HOST[:PORT]/…",
            seen=url[:200],
        )

    if any(ord(character) <= 0x20 or ord(character) >= 0x7F for character in url):
        raise refuse("it has characters that no address has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refuse("it does not parse") from None
    if parts.scheme not in ("http", "https"):
        raise refuse(f"the scheme is {parts.scheme!r}")
    if parts.hostname is None or parts.username is not None or parts.password is not None or parts.fragment:
        raise refuse("it has no host, or a user, password or fragment")
    tls = parts.scheme == "https"
    return _Target(
        host=parts.hostname,
        port=port if port is not None else (443 if tls else 80),
        tls=tls,
        path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        authority=parts.netloc,
    )


@dataclass(frozen=True, slots=True)
class _Proxy:
    host: str
    port: int
    authorization: str | None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxy_for(target: _Target) -> _Proxy | None:
    """The proxy of the environment for this address (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), or None.

    This machine's own addresses never go through a proxy.
    """
    proxies = getproxies_environment()
    url = proxies.get("https" if target.tls else "http") or proxies.get("all")
    if not url or _is_loopback(target.host) or proxy_bypass(f"{target.host}:{target.port}", proxies):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if host is None or parts.scheme != "http":
        raise UsageError(
            "the environment names a proxy that cannot be used",
            check="HTTPS_PROXY, HTTP_PROXY or ALL_PROXY",
            expected="http://HOST:PORT",
            seen=f"{parts.scheme}://{host or ''}",
        )
    authorization: str | None = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return _Proxy(host, port if port is not None else 8080, authorization)


def _tunnel(connection: socket.socket, target: _Target, proxy: _Proxy, deadline: _Deadline) -> None:
    """Open a tunnel to the target (CONNECT), so that the proxy sees only TLS."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    authority = f"{host}:{target.port}"
    headers = [("Host", authority)]
    if proxy.authorization is not None:
        headers.append(("Proxy-Authorization", proxy.authorization))
    protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    request = h11.Request(method="CONNECT", target=authority, headers=headers)
    connection.settimeout(deadline.left_s())
    connection.sendall((protocol.send(request) or b"") + (protocol.send(h11.EndOfMessage()) or b""))
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            connection.settimeout(deadline.left_s())
            protocol.receive_data(connection.recv(1))
        elif isinstance(event, h11.Response):
            break
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the proxy closed the connection")
    if not 200 <= event.status_code < 300:
        raise FetchFailed(
            f"the proxy {proxy.host}:{proxy.port} refuses to connect to {authority} (HTTP {event.status_code})",
            check="proxy of the environment",
            expected="a connection",
            seen=event.status_code,
            remedy="check HTTPS_PROXY and its user, or add the host to NO_PROXY",
        )


class _Deadline:
    """The time by which the whole exchange must be over."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left_s(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> Timeout:
        return Timeout(
            f"no complete answer within {self.timeout_s:g} seconds from {self.url}",
            check="time for one fetch",
            expected=f"at most {self.timeout_s:g} s",
            seen="more",
            remedy="try again, or name another source",
        )


@dataclass(frozen=True)
class HTTPFetcher:
    """GET with the caps of this module; `ca_file` adds certificate authorities (a PCCS has one of its own).

    `pin` is the SHA-256 (hex digits) of the one certificate (DER) that the server must show. Then its names, its dates
    and who signed it do not matter, since the handshake proves that the server has its key.
    """

    timeout_s: float = DEFAULT_TIMEOUT_S
    ca_file: Path | None = None
    pin: str | None = None
    _contexts: dict[str, ssl.SSLContext] = field(default_factory=dict, repr=False, compare=False)

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """GET this address. Raises UsageError, FetchFailed or Timeout. The status is not judged here."""
        return self._request(url, None, max_bytes, headers or {})

    def post(self, url: str, body: bytes, *, max_bytes: int, headers: Mapping[str, str]) -> Response:
        """POST this body. Raises as `get` does."""
        return self._request(url, body, max_bytes, headers)

    def _request(self, url: str, body: bytes | None, max_bytes: int, headers: Mapping[str, str]) -> Response:
        target = _target(url)
        if self.pin is not None and not target.tls:
            raise UsageError(
                f"a certificate is pinned for {target.host}, and without TLS it shows none",
                check="address to fetch from",
                expected="https://",
                seen=url[:200],
            )
        deadline = _Deadline(url, self.timeout_s)
        try:
            with self._connect(target, deadline) as connection:
                return _exchange(connection, target, url, deadline, max_bytes, headers, body)
        except TimeoutError:
            raise deadline.passed() from None
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _OTHER_NAME:
                raise _named_otherwise(target.host, error.verify_message) from error
            raise FetchFailed(
                f"{target.host}: its TLS certificate is not trusted: {error.verify_message}",
                check="TLS certificate of the server",
                expected="a certificate that leads to a known certificate authority",
                seen=error.verify_message,
                remedy="name the server's CA certificate (--pcs-ca FILE), or its own (--pcs-cert FILE), as a PCCS"
                " usually needs",
            ) from error
        except (OSError, h11.RemoteProtocolError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise FetchFailed(
                f"cannot fetch {url}: {reason}",
                check="fetch",
                expected="an answer",
                seen=reason,
                remedy="check the address and the network, name another source, or import a bundle",
            ) from error

    def _connect(self, target: _Target, deadline: _Deadline) -> socket.socket:
        proxy = _proxy_for(target)
        where = (target.host, target.port) if proxy is None else (proxy.host, proxy.port)
        plain = socket.create_connection(where, timeout=deadline.left_s())
        try:
            if proxy is not None and target.tls:
                _tunnel(plain, target, proxy, deadline)
            if not target.tls:
                return plain
            plain.settimeout(deadline.left_s())
            connection = self._context().wrap_socket(plain, server_hostname=target.host)
        except BaseException:
            plain.close()
            raise
        try:
            self._check_pin(connection, target.host)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_pin(self, connection: ssl.SSLSocket, host: str) -> None:
        """Before anything is sent: where one certificate is pinned, it must be this one."""
        if self.pin is None:
            return
        seen = hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(seen.encode(), self.pin.encode()):
            raise FetchFailed(
                f"{host} shows another TLS certificate than the one that is pinned for it",
                check="TLS certificate of the server",
                expected=f"SHA-256 {self.pin}",
                seen=f"SHA-256 {seen}",
                remedy="if the service has a new certificate, get it from whoever runs it, and name it with --pcs-cert",
            )

    def _context(self) -> ssl.SSLContext:
        context = self._contexts.get("tls")
        if context is None:
            try:
                context = ssl.create_default_context()
                if self.ca_file is not None:
                    context.load_verify_locations(cafile=self.ca_file)
            except OSError as error:
                raise UsageError(f"cannot read CA certificates from {self.ca_file}: {error}") from error
            if self.pin is not None:  # the certificate is compared instead, as a whole
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._contexts["tls"] = context
        return context


def _exchange(
    connection: socket.socket,
    target: _Target,
    url: str,
    deadline: _Deadline,
    max_bytes: int,
    headers: Mapping[str, str],
    content: bytes | None,
) -> Response:
    protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    sent = {
        "Host": target.authority,
        "User-Agent": f"adyton/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
        **({} if content is None else {"Content-Length": str(len(content))}),
        **headers,
    }
    path, proxy = target.path, None if target.tls else _proxy_for(target)
    if proxy is not None:
        path = f"http://{target.authority}{target.path}"
        if proxy.authorization is not None:
            sent["Proxy-Authorization"] = proxy.authorization
    request = h11.Request(method="GET" if content is None else "POST", target=path, headers=list(sent.items()))
    parts: list[h11.Event] = [request, *([] if content is None else [h11.Data(content)]), h11.EndOfMessage()]
    connection.settimeout(deadline.left_s())
    connection.sendall(b"".join(protocol.send(part) or b"" for part in parts))
    head: h11.Response | None = None
    body = bytearray()
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            connection.settimeout(deadline.left_s())
            protocol.receive_data(connection.recv(_CHUNK_BYTES))
        elif isinstance(event, h11.Response):
            head = event
            _check_head(event, url, max_bytes)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise _too_large(url, max_bytes, f"more than {max_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection ended before the answer did")
    if head is None:
        raise h11.RemoteProtocolError("no answer")
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    return Response(url, head.status_code, _merged(head), bytes(body))


def _merged(head: h11.Response) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _check_head(head: h11.Response, url: str, max_bytes: int) -> None:
    headers = _merged(head)
    coding = headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise FetchFailed(
            f"{url} answered with content coding {coding!r}, which was not asked for",
            check="content coding",
            expected="identity",
            seen=coding,
        )
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:19]) > max_bytes:
        raise _too_large(url, max_bytes, f"{length[:19]} bytes")


def _too_large(url: str, max_bytes: int, seen: str) -> FetchFailed:
    return FetchFailed(
        f"{url} sends more than the {max_bytes} bytes that such a document can have",
        check="size of the answer",
        expected=f"at most {max_bytes} bytes",
        seen=seen,
        remedy="check the address of the service",
    )
