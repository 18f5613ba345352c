"""Pages out of templates, and the headers that every answer carries: no script, no frame, nothing of another site."""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from adyton.keystore.clock import moment
from adyton.manifest.findings import words

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.server.dashboard.sessions import Session

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


SECTIONS: Final = {
    "home.html": "/",
    "programs.html": "/programs",
    "approval.html": "/programs",
    "candidate.html": "/programs",
    "timeline.html": "/timeline",
    "entry.html": "/timeline",
    "platforms.html": "/platforms",
    "keys.html": "/keys",
}
"""Template -> the part of the dashboard that it belongs to, by the address of that part's first page."""

FIRST_PAGES: Final = {"home.html", "programs.html", "timeline.html", "platforms.html", "keys.html"}

_LONG_HASH: Final = re.compile(r"([a-z-]+:)?[0-9a-f]{25,}")


class Renderer:
    """The dashboard's templates and its style sheet, for one owner."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._pages = Environment(
            loader=PackageLoader("adyton.server.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        self._pages.filters["when"] = _when
        self._pages.filters["utc"] = _utc
        self._pages.tests["long_hash"] = _is_long_hash
        self._pages.filters["short"] = _short
        self._pages.filters["words"] = words
        self._style = PackageLoader("adyton.server.dashboard").get_source(self._pages, "style.css")[0]

    def page(self, template: str, session: Session | None, status: int = 200, /, **values: Any) -> Response:
        """A page for whoever is logged in with this session; None: for anybody."""
        page = self._pages.get_template(template)
        csrf = session.csrf if session else ""
        html = page.render(
            owner=self._owner,
            csrf=csrf,
            logged_in=session is not None,
            section=SECTIONS.get(template, ""),
            current="page" if template in FIRST_PAGES else "true",
            **values,
        )
        return with_headers(HTMLResponse(html, status))

    def style(self) -> Response:
        """The style sheet."""
        return with_headers(Response(self._style, media_type="text/css"))


def with_headers(response: Response) -> Response:
    """The same answer with the headers that all have."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response


def _when(at_ms: int) -> str:
    return _utc(moment(at_ms))


def _utc(when: datetime) -> str:
    """A time for a person, with its zone: the owner's own zone is not known here."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _is_long_hash(text: object) -> bool:
    """Whether a text is a hash that is shown by its beginning, with the whole of it behind a click."""
    return _LONG_HASH.fullmatch(str(text)) is not None


def _short(text: object, size: int = 16) -> str:
    shown = str(text)
    return shown if len(shown) <= size else shown[:size] + "…"
