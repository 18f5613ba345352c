"""Pages out of templates, and the headers that every answer carries: no script, no frame, nothing of another site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from adyton.keystore.clock import moment
from adyton.manifest.findings import words

if TYPE_CHECKING:
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
        self._pages.filters["short"] = _short
        self._pages.filters["words"] = words
        self._style = PackageLoader("adyton.server.dashboard").get_source(self._pages, "style.css")[0]

    def page(self, template: str, session: Session | None, status: int = 200, /, **values: Any) -> Response:
        """A page for whoever is logged in with this session; None: for anybody."""
        page = self._pages.get_template(template)
        csrf = session.csrf if session else ""
        html = page.render(owner=self._owner, csrf=csrf, logged_in=session is not None, **values)
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
    return f"{moment(at_ms):%Y-%m-%d %H:%M:%S}"


def _short(text: object, size: int = 16) -> str:
    shown = str(text)
    return shown if len(shown) <= size else shown[:size] + "…"
