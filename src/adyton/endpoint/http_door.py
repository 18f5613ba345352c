"""The local door for HTTP/1.1 and WebSockets: each request goes over a verified connection, or is refused with 502.

A web page in a browser on this machine can reach a loopback port, and a WebSocket knows no CORS. So a request must
name this door as its host. One that a browser made must come from a page of this door (Origin, RFC 6454, and
Sec-Fetch-Site of Fetch Metadata).

Requests and responses are parsed and written anew. So two readings of one message (request smuggling) do not pass.
"""

from __future__ import annotations

import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import h11

from adyton.endpoint.dial import REFUSALS
from adyton.endpoint.http_exchange import IDLE_S, MAX_HEAD_BYTES, Exchange, is_repeatable, next_event, send_event
from adyton.endpoint.stream import PlainStream
from adyton.errors import Error, FetchFailed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from adyton.endpoint.pool import Pool

_SAME_SITE: Final = frozenset((b"same-origin", b"none"))


class _Problem(Exception):
    """What this door answers by itself, as problem+json (RFC 9457)."""

    def __init__(self, status: int, title: str, **members: str) -> None:
        super().__init__(title)
        self.status = status
        self.document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, **members}


class HTTPDoor:
    """Serves local connections. `hosts` are the values of `Host` that name this door. None: any (a Unix socket)."""

    def __init__(self, pool: Pool, hosts: frozenset[str] | None, refused: Callable[[Error], None]) -> None:
        self._pool = pool
        self._refused = refused
        self._allowed: dict[bytes, tuple[frozenset[bytes], bool]] = {}
        if hosts is not None:
            named = frozenset(host.encode("ascii") for host in hosts)
            self._allowed = {
                b"host": (named, True),
                b"origin": (frozenset(b"http://" + host for host in named), False),
                b"sec-fetch-site": (_SAME_SITE, False),
            }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one local connection to its end."""
        local = PlainStream(reader, writer)
        front = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            while await self._answered(local, front):
                front.start_next_cycle()
        except (Error, OSError, TimeoutError, h11.ProtocolError):
            local.abort()  # so that what was sent of a response is not taken for the whole of it
        finally:
            await local.close()

    async def _answered(self, local: PlainStream, front: h11.Connection) -> bool:
        """Take one request and answer it. Whether another may follow on this connection."""
        try:
            request = await next_event(local, front, IDLE_S)
            if not isinstance(request, h11.Request):
                return False
            self._check(request)
            exchange, response = await self._ask(local, front, request)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint or 400
            problem = _Problem(status, "this is no HTTP request", check="form of the request", seen=str(error)[:200])
        except _Problem as refused:
            problem = refused
        except REFUSALS as error:
            self._refused(error)
            problem = _problem_of(error, "the endpoint was refused, and nothing was sent to it")
        else:
            return await exchange.finish(response, self._pool)
        await _send_problem(local, front, problem)
        return False

    async def _ask(self, local: PlainStream, front: h11.Connection, request: h11.Request) -> tuple[Exchange, h11.Event]:
        """Ask over a verified connection. Where one that was kept has just ended, ask once more if that is safe."""
        while True:
            verified, was_kept = await self._pool.lease()
            exchange = Exchange(local, front, verified)
            try:
                return exchange, await exchange.ask(request)
            except (Error, OSError, h11.ProtocolError) as error:
                await exchange.give_up()
                if exchange.local_failure is not None:
                    raise exchange.local_failure from error
                if was_kept and is_repeatable(request):
                    continue
                failure = FetchFailed(
                    "the verified connection ended before a response came",
                    check="response of the program",
                    expected="a response",
                    seen=str(error)[:200] or type(error).__name__,
                    remedy="see whether the program is still running. Send the request again if that is safe",
                )
                self._refused(failure)
                raise _problem_of(failure, "no response came, and the program may have got the request") from error
            except BaseException:
                await exchange.give_up()
                raise

    def _check(self, request: h11.Request) -> None:
        """Refuse what no program of this machine sends by its own will. Raises _Problem."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            raise _Problem(
                400, "the request has two lengths", check="length of the body", expected="one", seen="two",
                remedy="send Content-Length or Transfer-Encoding, not both",
            )  # fmt: skip
        if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
            raise _Problem(
                400, "this is no proxy for other addresses", check="target of the request", expected="a path",
                seen=ascii(request.target[:80])[2:-1], remedy="use this address as the base URL, not as a proxy",
            )  # fmt: skip
        for name, (values, needed) in self._allowed.items():
            found = headers.get(name, [])
            if (needed and not found) or any(value.strip().lower() not in values for value in found):
                raise _Problem(
                    403,
                    "the request does not come from this machine's own program",
                    check=name.decode(),
                    expected=", ".join(sorted(value.decode() for value in values)),
                    seen=ascii(b", ".join(found)[:80])[2:-1] or "none",
                    remedy="a web page of another site asked: see which one is open. A program must use the address as"
                    " it was printed",
                )


def _problem_of(error: Error, title: str) -> _Problem:
    members = {name: str(value) for name, value in error.details().items() if isinstance(value, str)}
    members.pop("title", None)
    return _Problem(502, title, **members)


async def _send_problem(local: PlainStream, front: h11.Connection, problem: _Problem) -> None:
    body = json.dumps(problem.document).encode() + b"\n"
    if front.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        local.abort()
        return
    headers = [
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    with contextlib.suppress(OSError):
        reason = HTTPStatus(problem.status).phrase.encode("ascii")
        await send_event(local, front, h11.Response(status_code=problem.status, headers=headers, reason=reason))
        await send_event(local, front, h11.Data(data=body))
        await send_event(local, front, h11.EndOfMessage())
