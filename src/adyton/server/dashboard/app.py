"""The dashboard's pages as a Starlette application: HTML forms only, a strict Content-Security-Policy, no script."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from adyton.attest import explain
from adyton.errors import Error, UsageError
from adyton.keyserver.consent import Mine, alter, manifest_of, propose, shown
from adyton.keyserver.replay import replay
from adyton.keystore.approval import APPROVED, PENDING, REVOKED, Approval
from adyton.keystore.approval_gaps import gaps
from adyton.keystore.audit_words import entry_words
from adyton.keystore.clock import moment, now_ms
from adyton.keystore.names import check_name
from adyton.manifest.findings import not_covered, one_line, words
from adyton.server.dashboard.devices import LIFETIME_S, Devices
from adyton.server.dashboard.guesses import Guesses, source_of
from adyton.server.dashboard.requests import MAX_LOGIN_BYTES, Form, cookie, is_foreign, number, read_form
from adyton.server.dashboard.sessions import Session, Sessions
from adyton.sim.machine import simulated_guest
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.audit import Entry
    from adyton.keystore.facts import Candidate
    from adyton.keystore.reader import Reader
    from adyton.keystore.store import Store
    from adyton.manifest.findings import Finding

COOKIE: Final = "__Host-adyton"
DEVICE_COOKIE: Final = "__Host-adyton-device"
NOTES_A_MINUTE: Final = 10
"""Wrong passwords that are recorded one by one; the rest of a minute is counted, and said with the next."""

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

    def __init__(self, store: Store, collateral: CollateralStore, password: bytes, owner: str, mine: Mine) -> None:
        self._store = store
        self._collateral = collateral
        self._owner = owner
        self._mine = mine
        self._sessions = Sessions(password)
        self._devices = Devices(password)
        self._guesses = Guesses()
        self._noted: list[float] = []
        self._not_noted = 0
        self._pages = Environment(
            loader=PackageLoader("adyton.server.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        self._pages.filters["when"] = _when
        self._pages.filters["short"] = _short
        self._pages.filters["words"] = words
        self._style = PackageLoader("adyton.server.dashboard").get_source(self._pages, "style.css")[0]

    def application(self) -> Starlette:
        """The ASGI application."""
        guarded = self._guarded
        made = Starlette(
            routes=[
                Route("/style.css", self._css),
                Route("/login", self._login_page, methods=["GET"]),
                Route("/login", self._log_in, methods=["POST"]),
                Route("/logout", guarded(self._log_out, form=True), methods=["POST"]),
                Route("/", guarded(self._page("home.html", self._home))),
                Route("/programs", guarded(self._page("programs.html", self._programs))),
                Route("/approve", guarded(self._approve, form=True), methods=["POST"]),
                Route("/approvals/{id}", guarded(self._page("approval.html", self._approval))),
                Route("/revoke", guarded(self._revoke, form=True), methods=["POST"]),
                Route("/candidates/{measurement}/{key}", guarded(self._page("candidate.html", self._candidate))),
                Route("/accept", guarded(self._accept, form=True), methods=["POST"]),
                Route("/dismiss", guarded(self._dismiss, form=True), methods=["POST"]),
                Route("/timeline", guarded(self._page("timeline.html", self._timeline))),
                Route("/entries/{seq}", guarded(self._page("entry.html", self._entry))),
                Route("/platforms", guarded(self._page("platforms.html", self._platforms))),
                Route("/keys", guarded(self._page("keys.html", self._keys))),
            ],
            exception_handlers={HTTPException: self._http_error, Error: self._refused, Exception: self._failed},
        )
        made.router.redirect_slashes = False  # where to would be what the request's Host says
        return made

    # --- who may ----------------------------------------------------------------------------------------------------

    def recognises(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers show that its sender knows the password: a session, or a device."""
        request = Request({"type": "http", "headers": list(headers)})
        return self._session(request) is not None or self._device(request) is not None

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(cookie(request, COOKIE))

    def _device(self, request: Request) -> str | None:
        return self._devices.known(cookie(request, DEVICE_COOKIE), time.time())

    def _guarded(self, handler: Handler, *, form: bool = False) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return _with_headers(RedirectResponse("/login", 303))
            if form:
                sent = await read_form(request)
                if is_foreign(request) or not hmac.compare_digest(sent.get("csrf").encode(), session.csrf.encode()):
                    raise HTTPException(403, "This form is not yours.")
                request.state.form = sent
            return await handler(request, session)

        return guarded

    async def _login_page(self, _request: Request) -> Response:
        return self._render("login.html", None, wrong=False, wait_s=0)

    async def _log_in(self, request: Request) -> Response:
        sent = await read_form(request, MAX_LOGIN_BYTES)
        if is_foreign(request):
            raise HTTPException(403, "This form is not yours.")
        peer = request.client.host if request.client else ""
        device, now = self._device(request), time.monotonic()
        sources = [*(() if device is None else (f"device {device}",)), source_of(peer)]
        waits = {source: self._guesses.wait_s(source, now) for source in sources}
        source = min(waits, key=lambda name: waits[name])
        if waits[source] > 0:
            page = self._render("login.html", None, 429, wrong=False, wait_s=math.ceil(waits[source]))
            page.headers["Retry-After"] = str(math.ceil(waits[source]))
            return page
        session = self._sessions.log_in(sent.get("password"))
        if session is None:
            self._guesses.wrong(source, now)
            await self._note_refused(peer)
            return self._render("login.html", None, 403, wrong=True, wait_s=0)
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
        return _with_headers(response)

    async def _log_out(self, _request: Request, session: Session) -> Response:
        self._sessions.log_out(session.token)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return _with_headers(response)

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
        with self._store.write() as change:
            change.record("dashboard", "", body, now_ms())

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

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        detail = error.detail if isinstance(error, HTTPException) else ""
        title, text = {
            404: ("Not here", "There is no such page."),
            405: ("Not so", "This page takes no such request."),
        }.get(status, ("Refused", detail))
        return self._render("message.html", self._session(request), status, title=title, text=text)

    async def _failed(self, _request: Request, _error: Exception) -> Response:
        text = "It failed, and the key server's log says where."
        return self._render("message.html", None, 500, title="Not done", text=text)

    async def _refused(self, request: Request, error: Exception) -> Response:
        session = self._session(request)
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
        found_gaps = {item.id: gaps(item.approval) for item in found if item.state != REVOKED}
        return {"programs": programs, "candidates": view.candidates(), "usage": usage, "gaps": found_gaps}

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
        guest = _guest(view, found[0])
        tees = sorted({item.tee for item in found})
        explained = [json.loads(entry.body) for entry in view.entries(kind="explanation", subject=found[0].denial)]
        refused, draft, manifest, left_open = "", None, None, []
        try:
            draft = _draft(view, measurement, found[0].tee, found[0].key, app="x", version="x")
            left_open = _left_open(shown(view, draft, self._mine), tees)
            manifest = manifest_of(view, draft)
        except UsageError as error:  # it can be dismissed all the same
            refused, draft = error.message, None
        return {
            "refused": refused,
            "item": found[0],
            "tees": tees,
            "guest": guest,
            "argv": () if manifest is None else tuple(map(one_line, manifest.argv or ())),
            "left_open": left_open,
            "uncovered": () if draft is None else draft.not_covered,
            "explained": explained,
            "apps": sorted({item.approval.app for item in view.approvals()}),
        }

    def _approval(self, request: Request, view: Reader) -> dict[str, Any]:
        item = view.approval(check_name(request.path_params["id"], "approval id"))
        manifest = manifest_of(view, item.approval)
        return {
            "item": item,
            "argv": () if manifest is None else tuple(map(one_line, manifest.argv or ())),
            "left_open": _left_open(shown(view, item.approval, self._mine), item.approval.tees),
            "uncovered": item.approval.not_covered if manifest is None else not_covered(manifest),
        }

    def _timeline(self, request: Request, view: Reader) -> dict[str, Any]:
        kind = request.query_params.get("kind", "")
        kinds = (kind,) if kind in ("release", "denial", "policy", "used", "explanation") else ()
        before = number(request.query_params.get("before", ""))
        found = view.newest_entries(PAGE + 1, kinds=kinds, before=before)
        older = found[PAGE - 1].seq if len(found) > PAGE else None
        return {"events": [event(entry) for entry in found[:PAGE]], "kind": kind, "before": before, "older": older}

    def _entry(self, request: Request, view: Reader) -> dict[str, Any]:
        seq = number(request.path_params["seq"])
        entry = None if seq is None else view.entry(seq)
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
        sent: Form = request.state.form

        def work() -> None:
            with self._store.write() as change:
                chosen = check_name(sent.get("id"), "approval id")
                alter(change, chosen, owner=self._mine, named=sent.allow, actor=ACTOR, state=state)

        await run_in_threadpool(work)
        return _with_headers(RedirectResponse("/programs", 303))

    async def _dismiss(self, request: Request, _session: Session) -> Response:
        sent: Form = request.state.form

        def work() -> None:
            measurement = Measurement.from_hex(sent.get("measurement"))
            with self._store.write() as change:
                if not change.dismiss_candidate(measurement, sent.get("key"), actor=ACTOR):
                    raise UsageError("this program is not waiting (any more)", remedy="look at Programs")

        await run_in_threadpool(work)
        return _with_headers(RedirectResponse("/programs", 303))

    async def _accept(self, request: Request, _session: Session) -> Response:
        sent: Form = request.state.form

        def work() -> None:
            measurement = Measurement.from_hex(sent.get("measurement"))
            with self._store.write() as change:
                waiting = {(item.measurement, item.tee, item.key): item for item in change.candidates()}
                wanted = (measurement, sent.get("tee"), sent.get("key"))
                if wanted not in waiting:
                    raise UsageError("this program is not waiting (any more)", remedy="look at Programs")
                guest = _guest(change, waiting[wanted])
                if sent.get("guest") != ("" if guest is None else guest.hex()):
                    raise UsageError(
                        "this program has asked again from another guest image",
                        check="guest image",
                        expected=sent.get("guest"),
                        seen="none" if guest is None else guest.hex(),
                        remedy="look at it again",
                    )
                approval = _draft(change, *wanted, app=sent.get("app"), version=sent.get("version"))
                propose(change, approval, owner=self._mine, named=sent.allow, actor=ACTOR)

        await run_in_threadpool(work)
        return _with_headers(RedirectResponse("/programs", 303))


def _draft(view: Reader, measurement: Measurement, tee: str, key: str, *, app: str, version: str) -> Approval:
    """The approval of a program that waits, as it is shown and as it is made."""
    behind = view.behind(measurement)
    made = Approval(
        key=key,
        app=app,
        version=version,
        tees=(tee,),
        measurement=measurement,
        guest_images=(simulated_guest(),) if tee.startswith("sim-tdx") else (),
        manifest_sha256=Digest(hashlib.sha256(behind[0]).digest()) if behind else None,
        note="approved on the dashboard",
    )
    manifest = manifest_of(view, made)
    return made if manifest is None else made.changed(not_covered=not_covered(manifest))


def _left_open(found: Iterable[Finding], tees: Collection[str]) -> list[dict[str, Any]]:
    """Findings as a page shows them: those that have to be named first, each with its box."""
    lines = [{"name": item.name, "what": item.what, "exposes": item.exposes_on(tees)} for item in found]
    return sorted(lines, key=lambda line: not line["exposes"])


def _guest(view: Reader, item: Candidate) -> Measurement | None:
    """The guest image from which a program in a confidential machine last asked; None for an enclave."""
    if not item.tee.startswith(("tdx", "sim-tdx")):
        return None
    for entry in view.entries(kind="denial", subject=item.denial):
        return Measurement.from_hex(json.loads(entry.body)["measurement"])
    raise UsageError("the refusal of this program is not in the record", remedy="let it ask again")


def event(entry: Entry) -> dict[str, Any]:
    """An audit entry as a line of the timeline."""
    said = entry_words(entry)
    return {
        "seq": entry.seq,
        "at_ms": entry.at_ms,
        "kind": entry.kind,
        "tone": said.tone,
        "title": said.title,
        "detail": said.detail,
    }


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response
