"""The dashboard's pages as a Starlette application: HTML forms only, a strict Content-Security-Policy, no script."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from adyton.attest import explain
from adyton.errors import Error, UsageError
from adyton.keyserver.clock import moment, now_ms
from adyton.keyserver.policy import APPROVED, PENDING, REVOKED, Approval
from adyton.keyserver.replay import replay
from adyton.manifest.model import parse_manifest
from adyton.manifest.review import not_covered
from adyton.net.dashboard.sessions import Session, Sessions
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from adyton.keyserver.audit import Entry
    from adyton.keyserver.store import Store
    from adyton.keyserver.view import Candidate, Reader
    from adyton.net.collateral_store import CollateralStore

COOKIE: Final = "__Host-adyton"
MAX_FORM_BYTES: Final = 16 * 1024
PAGE: Final = 50
SOON_DAYS: Final = 7
ACTOR: Final = "dashboard"
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Strict-Transport-Security": "max-age=31536000",
}

Handler = Callable[[Request, Session], Awaitable[Response]]


def _when(at_ms: int) -> str:
    return f"{moment(at_ms):%Y-%m-%d %H:%M:%S}"


def _short(text: object, size: int = 16) -> str:
    shown = str(text)
    return shown if len(shown) <= size else shown[:size] + "…"


class Dashboard:
    """The owner's pages over her store and collateral."""

    def __init__(self, store: Store, collateral: CollateralStore, password: bytes, owner: str) -> None:
        self._store = store
        self._collateral = collateral
        self._owner = owner
        self._sessions = Sessions(password)
        self._pages = Environment(
            loader=PackageLoader("adyton.net.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._pages.filters["when"] = _when
        self._pages.filters["short"] = _short
        self._style = PackageLoader("adyton.net.dashboard").get_source(self._pages, "style.css")[0]

    def application(self) -> Starlette:
        """The ASGI application."""
        guarded = self._guarded
        return Starlette(
            routes=[
                Route("/style.css", self._css),
                Route("/login", self._login_page, methods=["GET"]),
                Route("/login", self._log_in, methods=["POST"]),
                Route("/logout", guarded(self._log_out, form=True), methods=["POST"]),
                Route("/", guarded(self._page("home.html", self._home))),
                Route("/programs", guarded(self._page("programs.html", self._programs))),
                Route("/approve", guarded(self._approve, form=True), methods=["POST"]),
                Route("/revoke", guarded(self._revoke, form=True), methods=["POST"]),
                Route("/candidates/{measurement}/{key}", guarded(self._page("candidate.html", self._candidate))),
                Route("/accept", guarded(self._accept, form=True), methods=["POST"]),
                Route("/dismiss", guarded(self._dismiss, form=True), methods=["POST"]),
                Route("/timeline", guarded(self._page("timeline.html", self._timeline))),
                Route("/entries/{seq:int}", guarded(self._page("entry.html", self._entry))),
                Route("/platforms", guarded(self._page("platforms.html", self._platforms))),
                Route("/keys", guarded(self._page("keys.html", self._keys))),
            ],
            exception_handlers={404: self._missing, Error: self._refused},
        )

    # --- who may ----------------------------------------------------------------------------------------------------

    def _guarded(self, handler: Handler, *, form: bool = False) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            session = self._sessions.find(request.cookies.get(COOKIE))
            if session is None:
                return _with_headers(RedirectResponse("/login", 303))
            if form:
                fields = await _form(request)
                given = fields.get("csrf", "")
                origin = request.headers.get("origin")
                same_origin = origin is None or origin == f"{request.url.scheme}://{request.headers.get('host', '')}"
                if not hmac.compare_digest(given.encode(), session.csrf.encode()) or not same_origin:
                    return self._render("message.html", session, 403, title="Refused", text="This form is not yours.")
                request.state.form = fields
            return await handler(request, session)

        return guarded

    async def _login_page(self, _request: Request) -> Response:
        return self._render("login.html", None, wrong=False, blocked=self._sessions.blocked())

    async def _log_in(self, request: Request) -> Response:
        fields = await _form(request)
        blocked = self._sessions.blocked()
        session = self._sessions.log_in(fields.get("password", ""))
        peer = request.client.host if request.client else ""
        if session is None:
            if not blocked:
                await run_in_threadpool(self._note, "login refused", peer)
            return self._render("login.html", None, 429 if blocked else 403, wrong=not blocked, blocked=blocked)
        await run_in_threadpool(self._note, "login", peer)
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, session.token, httponly=True, secure=True, samesite="strict", path="/")
        return _with_headers(response)

    async def _log_out(self, _request: Request, session: Session) -> Response:
        self._sessions.log_out(session.token)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return _with_headers(response)

    def _note(self, what: str, peer: str) -> None:
        with self._store.write() as change:
            change.record("dashboard", "", {"what": what, "peer": peer}, now_ms())

    # --- pages ------------------------------------------------------------------------------------------------------

    def _page(self, template: str, content: Callable[[Request, Reader], dict[str, Any]]) -> Handler:
        async def page(request: Request, session: Session) -> Response:
            def work() -> dict[str, Any]:
                with self._store.read() as view:
                    return content(request, view)

            return self._render(template, session, **await run_in_threadpool(work))

        return page

    def _render(self, template: str, session: Session | None, status: int = 200, /, **values: Any) -> Response:
        page = self._pages.get_template(template)
        csrf = session.csrf if session else ""
        html = page.render(owner=self._owner, csrf=csrf, logged_in=session is not None, **values)
        return _with_headers(HTMLResponse(html, status))

    async def _css(self, _request: Request) -> Response:
        return _with_headers(Response(self._style, media_type="text/css"))

    async def _missing(self, _request: Request, _error: Exception) -> Response:
        return self._render("message.html", None, 404, title="Not here", text="There is no such page.")

    async def _refused(self, request: Request, error: Exception) -> Response:
        session = self._sessions.find(request.cookies.get(COOKIE))
        details = error.details() if isinstance(error, Error) else {}
        parts = [f"{name}: {details[name]}" for name in ("expected", "seen", "remedy") if name in details]
        text = ". ".join([details.get("message", "It failed."), *parts])
        return self._render("message.html", session, 400, title="Not done", text=text)

    def _home(self, _request: Request, view: Reader) -> dict[str, Any]:
        entries = view.newest_entries(12, kinds=("release", "denial", "policy"))
        approvals = view.approvals()
        return {
            "events": [event(entry) for entry in entries],
            "candidates": view.candidates()[:5],
            "pending": [item for item in approvals if item.state == PENDING],
            "standing": sum(item.state == APPROVED for item in approvals),
            "keys": len(view.keys()),
            "entries": view.head().seq,
            "warnings": self._warnings(),
        }

    def _programs(self, _request: Request, view: Reader) -> dict[str, Any]:
        order = {PENDING: 0, APPROVED: 1, REVOKED: 2}
        found = sorted(
            view.approvals(), key=lambda item: (item.approval.app, order[item.state], -item.changed_at.timestamp())
        )
        programs: dict[str, list[Any]] = {}
        for item in found:
            programs.setdefault(item.approval.app, []).append(item)
        at_ms = now_ms()
        usage = {item.id: view.usage(item.id, "", at_ms) for item in found if item.state != PENDING}
        return {"programs": programs, "candidates": view.candidates(), "usage": usage}

    def _candidate(self, request: Request, view: Reader) -> dict[str, Any]:
        try:
            measurement = Measurement.from_hex(request.path_params["measurement"])
        except UsageError:
            raise UsageError("this is no measurement") from None
        found = [
            item
            for item in view.candidates()
            if item.measurement == measurement and item.key == request.path_params["key"]
        ]
        if not found:
            raise UsageError("this program is not waiting (any more)", remedy="look at Programs")
        behind = view.behind(measurement)
        uncovered: tuple[str, ...] = ()
        argv: tuple[str, ...] = ()
        if behind is not None:
            manifest = parse_manifest(behind[0].decode("utf-8"))
            uncovered, argv = not_covered(manifest), manifest.argv or ()
        explained = [json.loads(entry.body) for entry in view.entries(kind="explanation", subject=found[0].denial)]
        return {
            "item": found[0],
            "tees": sorted({item.tee for item in found}),
            "known": behind is not None,
            "guest": _guest(view, found[0]),
            "argv": argv,
            "uncovered": uncovered,
            "explained": explained,
            "apps": sorted({item.approval.app for item in view.approvals()}),
        }

    def _timeline(self, request: Request, view: Reader) -> dict[str, Any]:
        kind = request.query_params.get("kind", "")
        kinds = (kind,) if kind in ("release", "denial", "policy", "used", "explanation") else ()
        written = request.query_params.get("before", "")
        before = int(written) if written.isascii() and written.isdigit() and len(written) < 19 else None
        found = view.newest_entries(PAGE + 1, kinds=kinds, before=before)
        older = found[PAGE - 1].seq if len(found) > PAGE else None
        return {"events": [event(entry) for entry in found[:PAGE]], "kind": kind, "before": before, "older": older}

    def _entry(self, request: Request, view: Reader) -> dict[str, Any]:
        entry = view.entry(request.path_params["seq"])
        if entry is None:
            raise UsageError("there is no such entry")
        body = json.loads(entry.body)
        assessment = replay(view, entry) if entry.kind in ("release", "denial") else None
        subject = body.get("denial")
        explained = (
            [json.loads(item.body) for item in view.entries(kind="explanation", subject=subject)] if subject else []
        )
        return {
            "entry": entry,
            "event": event(entry),
            "body": body,
            "lines": explain.lines(assessment) if assessment else [],
            "failed": [line.to_dict() for line in assessment.failed] if assessment else [],
            "explained": explained,
            "raw": json.dumps(body, indent=2, sort_keys=True),
        }

    def _platforms(self, _request: Request, view: Reader) -> dict[str, Any]:
        seen: dict[tuple[str, str], dict[str, Any]] = {}
        for entry in view.newest_entries(2000, kinds=("release", "denial")):
            body = json.loads(entry.body)
            if "tee" in body:
                platform = body.get("platform", {})
                key = (body["tee"], platform.get("ppid", platform.get("chip_id", "")))
                found = seen.setdefault(key, {**body, "last": entry.at_ms, "releases": 0, "denials": 0})
                found["releases" if entry.kind == "release" else "denials"] += 1
        return {"platforms": list(seen.values()), "documents": self._documents()}

    def _documents(self) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        found = []
        for held in self._collateral.held():
            verified = held.verified
            days = None if verified is None else (verified.expires_at - now).total_seconds() / 86400
            found.append(
                {
                    "name": held.name,
                    "root": str(held.root),
                    "expires": "" if verified is None else f"{verified.expires_at:%Y-%m-%d %H:%M}",
                    "state": "bad" if days is None or days < 0 else "soon" if days < SOON_DAYS else "good",
                    "error": "" if held.error is None else held.error.message,
                }
            )
        return found

    def _keys(self, _request: Request, view: Reader) -> dict[str, Any]:
        standing: dict[str, list[Any]] = {}
        for item in view.approvals():
            if item.state == APPROVED:
                standing.setdefault(item.approval.key, []).append(item)
        return {"keys": view.keys(), "standing": standing}

    def _warnings(self) -> list[str]:
        documents = self._documents()
        found = [
            f"{item['name']} {'has expired' if item['state'] == 'bad' else 'expires soon'} ({item['expires']})"
            for item in documents
            if item["state"] != "good"
        ]
        if not documents:
            found.append("there is no collateral, so no evidence can be verified: adyton collateral fetch")
        return found

    # --- changes ----------------------------------------------------------------------------------------------------

    async def _approve(self, request: Request, _session: Session) -> Response:
        return await self._change_state(request, APPROVED)

    async def _revoke(self, request: Request, _session: Session) -> Response:
        return await self._change_state(request, REVOKED)

    async def _change_state(self, request: Request, state: str) -> Response:
        def work() -> None:
            with self._store.write() as change:
                change.change_approval(request.state.form.get("id", ""), actor=ACTOR, state=state)

        await run_in_threadpool(work)
        return _with_headers(RedirectResponse("/programs", 303))

    async def _dismiss(self, request: Request, _session: Session) -> Response:
        fields: Mapping[str, str] = request.state.form

        def work() -> None:
            measurement = Measurement.from_hex(fields.get("measurement", ""))
            with self._store.write() as change:
                if not change.dismiss_candidate(measurement, fields.get("key", ""), actor=ACTOR):
                    raise UsageError("this program is not waiting (any more)", remedy="look at Programs")

        await run_in_threadpool(work)
        return _with_headers(RedirectResponse("/programs", 303))

    async def _accept(self, request: Request, _session: Session) -> Response:
        fields: Mapping[str, str] = request.state.form

        def work() -> None:
            measurement = Measurement.from_hex(fields.get("measurement", ""))
            with self._store.write() as change:
                waiting = {(item.measurement, item.tee, item.key): item for item in change.candidates()}
                wanted = (measurement, fields.get("tee", ""), fields.get("key", ""))
                if wanted not in waiting:
                    raise UsageError("this program is not waiting (any more)", remedy="look at Programs")
                guest = _guest(change, waiting[wanted])
                if fields.get("guest", "") != ("" if guest is None else guest.hex()):
                    raise UsageError(
                        "this program has asked again from another guest image",
                        check="guest image",
                        expected=fields.get("guest", ""),
                        seen="none" if guest is None else guest.hex(),
                        remedy="look at it again",
                    )
                behind = change.behind(measurement)
                uncovered = not_covered(parse_manifest(behind[0].decode("utf-8"))) if behind else ()
                approval = Approval(
                    key=wanted[2],
                    app=fields.get("app", ""),
                    version=fields.get("version", ""),
                    tees=(wanted[1],),
                    measurement=measurement,
                    guests=() if guest is None else (guest,),
                    manifest_sha256=Digest(hashlib.sha256(behind[0]).digest()) if behind else None,
                    not_covered=uncovered,
                    note="approved on the dashboard",
                )
                change.add_approval(approval, actor=ACTOR)

        await run_in_threadpool(work)
        return _with_headers(RedirectResponse("/programs", 303))


def _guest(view: Reader, item: Candidate) -> Measurement | None:
    """The guest image from which a program in a confidential machine last asked; None for an enclave."""
    if not item.tee.startswith(("tdx", "sim-tdx")):
        return None
    for entry in view.entries(kind="denial", subject=item.denial):
        return Measurement.from_hex(json.loads(entry.body)["measurement"])
    raise UsageError("the refusal of this program is not in the record", remedy="let it ask again")


def event(entry: Entry) -> dict[str, Any]:
    """An audit entry as a line of the timeline."""
    body = json.loads(entry.body)
    tone, title, detail = "plain", entry.kind, ""
    if entry.kind == "release":
        tone = "good"
        title = "Released " + ", ".join(item["key"] for item in body["keys"])
        detail = ", ".join(dict.fromkeys(f"to {item['app']} {item['app_version']}" for item in body["keys"]))
        simulated = "simulated " if str(body["tee"]).startswith("sim") else ""
        detail += f", {simulated}platform {body['status']}, over {body['protocol']}, from {body['peer']}"
    elif entry.kind == "denial":
        tone = "bad"
        title = "Refused " + (", ".join(body["names"]) or "a request")
        detail = f"{body.get('reason', body['told'])['message']}; from {body['peer']}"
    elif entry.kind == "policy":
        policy = body["policy"]
        title = f"{body['state'].capitalize()}: {policy['app']} {policy['version']}"
        detail = f"for key {policy['key']}, by {body['actor']}"
    else:
        parts = [f"{name} {value}" for name, value in body.items() if isinstance(value, str | int) and value != ""]
        detail = ", ".join(parts)[:200]
    return {"seq": entry.seq, "at_ms": entry.at_ms, "kind": entry.kind, "tone": tone, "title": title, "detail": detail}


async def _form(request: Request) -> dict[str, str]:
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_FORM_BYTES:
            raise UsageError("the form is too long")
    pairs = parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=32)
    return dict(pairs)


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response
