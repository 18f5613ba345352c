"""The dashboard as a Starlette application: HTML forms only, a strict Content-Security-Policy, no script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from adyton.errors import Error
from adyton.keystore.approval import APPROVED, REVOKED
from adyton.server.dashboard.login import Login
from adyton.server.dashboard.pages.home import home
from adyton.server.dashboard.pages.keys import keys
from adyton.server.dashboard.pages.platforms import platforms
from adyton.server.dashboard.pages.programs import accept, approval, candidate, change_state, dismiss, programs
from adyton.server.dashboard.pages.timeline import one_entry, timeline
from adyton.server.dashboard.rendering import Renderer, with_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.requests import Request

    from adyton.collateral.store import CollateralStore
    from adyton.keyserver.consent import Mine
    from adyton.keystore.reader import Reader
    from adyton.keystore.store import Store
    from adyton.keystore.transaction import Transaction
    from adyton.server.dashboard.requests import Form
    from adyton.server.dashboard.sessions import Session


class Dashboard:
    """The owner's pages over her store and collateral."""

    def __init__(self, store: Store, collateral: CollateralStore, password: bytes, owner: str, mine: Mine) -> None:
        self._store = store
        self._collateral = collateral
        self._mine = mine
        self._renderer = Renderer(owner)
        self._login = Login(store, self._renderer, password)

    def application(self) -> Starlette:
        """The ASGI application."""
        login, mine, collateral = self._login, self._mine, self._collateral
        show, change = self._show, self._change
        made = Starlette(
            routes=[
                Route("/style.css", self._css),
                Route("/login", login.page, methods=["GET"]),
                Route("/login", login.log_in, methods=["POST"]),
                Route("/logout", login.guarded(login.log_out, form=True), methods=["POST"]),
                Route("/", show("home.html", lambda _, reader: home(reader, collateral))),
                Route("/programs", show("programs.html", lambda _, reader: programs(reader))),
                Route("/approve", change(lambda to, sent: change_state(to, sent, mine, APPROVED)), methods=["POST"]),
                Route("/approvals/{id}", show("approval.html", lambda asked, reader: approval(asked, reader, mine))),
                Route("/revoke", change(lambda to, sent: change_state(to, sent, mine, REVOKED)), methods=["POST"]),
                Route(
                    "/candidates/{measurement}/{key}",
                    show("candidate.html", lambda asked, reader: candidate(asked, reader, mine)),
                ),
                Route("/accept", change(lambda to, sent: accept(to, sent, mine)), methods=["POST"]),
                Route("/dismiss", change(dismiss), methods=["POST"]),
                Route("/timeline", show("timeline.html", timeline)),
                Route("/entries/{seq}", show("entry.html", one_entry)),
                Route("/platforms", show("platforms.html", lambda _, reader: platforms(reader, collateral))),
                Route("/keys", show("keys.html", lambda _, reader: keys(reader))),
            ],
            exception_handlers={HTTPException: self._http_error, Error: self._refused, Exception: self._failed},
        )
        made.router.redirect_slashes = False  # where to would be what the request's Host says
        return made

    def recognises(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers show that its sender knows the password: a session, or a device."""
        return self._login.recognises(headers)

    def _show(
        self, template: str, content: Callable[[Request, Reader], dict[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A page for who is logged in: `content` reads what the template shows."""

        async def page(request: Request, session: Session) -> Response:
            def work() -> dict[str, Any]:
                with self._store.read() as reader:
                    return content(request, reader)

            return self._renderer.page(template, session, **await run_in_threadpool(work))

        return self._login.guarded(page)

    def _change(self, work: Callable[[Transaction, Form], None]) -> Callable[[Request], Awaitable[Response]]:
        """A form for who is logged in: `work` changes what it says, all of it or nothing; then the programs again."""

        async def changed(request: Request, _session: Session) -> Response:
            sent: Form = request.state.form

            def run() -> None:
                with self._store.write() as transaction:
                    work(transaction, sent)

            await run_in_threadpool(run)
            return with_headers(RedirectResponse("/programs", 303))

        return self._login.guarded(changed, form=True)

    async def _css(self, _request: Request) -> Response:
        return self._renderer.style()

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        detail = error.detail if isinstance(error, HTTPException) else ""
        title, text = {
            404: ("Not here", "There is no such page."),
            405: ("Not so", "This page takes no such request."),
        }.get(status, ("Refused", detail))
        return self._renderer.page("message.html", self._login.session(request), status, title=title, text=text)

    async def _failed(self, _request: Request, _error: Exception) -> Response:
        text = "It failed, and the key server's log says where."
        return self._renderer.page("message.html", None, 500, title="Not done", text=text)

    async def _refused(self, request: Request, error: Exception) -> Response:
        session = self._login.session(request)
        details = error.details() if isinstance(error, Error) else {}
        parts = [f"{name}: {details[name]}" for name in ("expected", "seen", "remedy") if name in details]
        text = ". ".join([details.get("message", "It failed."), *parts])
        return self._renderer.page("message.html", session, 400, title="Not done", text=text)
