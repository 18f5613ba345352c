"""The login of the dashboard: logging in and out, limits on wrong passwords, and the guard before every other page."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from adyton.keystore.clock import now_ms
from adyton.server.dashboard.devices import LIFETIME_S, Devices
from adyton.server.dashboard.guesses import Guesses, source_of
from adyton.server.dashboard.rendering import with_headers
from adyton.server.dashboard.requests import MAX_LOGIN_BYTES, cookie, is_foreign, read_form
from adyton.server.dashboard.sessions import Session, Sessions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adyton.keystore.store import Store
    from adyton.server.dashboard.rendering import Renderer

COOKIE: Final = "__Host-adyton"
DEVICE_COOKIE: Final = "__Host-adyton-device"
NOTES_A_MINUTE: Final = 10
"""Wrong passwords that are recorded one by one; the rest of a minute is counted, and said with the next."""

Handler = Callable[[Request, Session], Awaitable[Response]]


class Login:
    """The dashboard's password, and the sessions and devices that have given it."""

    def __init__(self, store: Store, renderer: Renderer, password: bytes) -> None:
        self._store = store
        self._renderer = renderer
        self._sessions = Sessions(password)
        self._devices = Devices(password)
        self._guesses = Guesses()
        self._noted: list[float] = []
        self._not_noted = 0

    def recognises(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers show that its sender knows the password: a session, or a device."""
        request = Request({"type": "http", "headers": list(headers)})
        return self.session(request) is not None or self._device(request) is not None

    def session(self, request: Request) -> Session | None:
        """The session that a request belongs to; None where it has none."""
        return self._sessions.find(cookie(request, COOKIE))

    def _device(self, request: Request) -> str | None:
        return self._devices.known(cookie(request, DEVICE_COOKIE), time.time())

    def guarded(self, handler: Handler, *, form: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """The same page for who is logged in. With `form` its fields are read, and must be of this session."""

        async def guarded(request: Request) -> Response:
            session = self.session(request)
            if session is None:
                return with_headers(RedirectResponse("/login", 303))
            if form:
                sent = await read_form(request)
                if is_foreign(request) or not hmac.compare_digest(sent.get("csrf").encode(), session.csrf.encode()):
                    raise HTTPException(403, "This form is not yours.")
                request.state.form = sent
            return await handler(request, session)

        return guarded

    async def page(self, _request: Request) -> Response:
        """The page that asks for the password."""
        return self._renderer.page("login.html", None, wrong=False, wait_s=0)

    async def log_in(self, request: Request) -> Response:
        """Take a password; too many wrong ones make their sender wait."""
        sent = await read_form(request, MAX_LOGIN_BYTES)
        if is_foreign(request):
            raise HTTPException(403, "This form is not yours.")
        peer = request.client.host if request.client else ""
        device, now = self._device(request), time.monotonic()
        sources = [*(() if device is None else (f"device {device}",)), source_of(peer)]
        waits = {source: self._guesses.wait_s(source, now) for source in sources}
        source = min(waits, key=lambda name: waits[name])
        if waits[source] > 0:
            page = self._renderer.page("login.html", None, 429, wrong=False, wait_s=math.ceil(waits[source]))
            page.headers["Retry-After"] = str(math.ceil(waits[source]))
            return page
        session = self._sessions.log_in(sent.get("password"))
        if session is None:
            self._guesses.wrong(source, now)
            await self._note_refused(peer)
            return self._renderer.page("login.html", None, 403, wrong=True, wait_s=0)
        self._guesses.right(source)
        self._sessions.log_out(cookie(request, COOKIE) or "")
        await run_in_threadpool(self._note, {"what": "login", "peer": peer})
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, session.token, httponly=True, secure=True, samesite="strict", path="/")
        response.set_cookie(
            DEVICE_COOKIE,
            self._devices.new(time.time()),
            max_age=LIFETIME_S,
            httponly=True,
            secure=True,
            samesite="strict",
            path="/",
        )
        return with_headers(response)

    async def log_out(self, _request: Request, session: Session) -> Response:
        """End a session."""
        self._sessions.log_out(session.token)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return with_headers(response)

    async def _note_refused(self, peer: str) -> None:
        """Record a wrong password, up to so many a minute: a flood of them fills no disk."""
        now = time.monotonic()
        self._noted = [when for when in self._noted if when > now - 60]
        if len(self._noted) >= NOTES_A_MINUTE:
            self._not_noted += 1
            return
        self._noted.append(now)
        more, self._not_noted = self._not_noted, 0
        body = {"what": "login refused", "peer": peer}
        await run_in_threadpool(self._note, {**body, "not_recorded_before": more} if more else body)

    def _note(self, body: Mapping[str, object]) -> None:
        with self._store.write() as transaction:
            transaction.record("dashboard", "", body, now_ms())
