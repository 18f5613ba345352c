"""What a browser sent, read strictly: forms, cookies, numbers, and from which site; or refused with a clean 4xx."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_FORM_BYTES: Final = 64 * 1024
MAX_LOGIN_BYTES: Final = 4 * 1024
MAX_FIELDS: Final = 320
REPEATED: Final = "allow"
"""The one field that may come several times."""

_COOKIE: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)
_FORM: Final = re.compile(r"application/x-www-form-urlencoded\s*(;.*)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields, each once, and the boxes that were ticked."""

    fields: dict[str, str]
    allow: tuple[str, ...]

    def get(self, name: str) -> str:
        """One field; empty where it was not sent."""
        return self.fields.get(name, "")


async def read_form(request: Request, limit_bytes: int = MAX_FORM_BYTES) -> Form:
    """Read a form; raises HTTPException (4xx) for what is too long, of another kind, or ambiguous."""
    if not _FORM.fullmatch(request.headers.get("content-type", "")):
        raise HTTPException(415, "A form comes as application/x-www-form-urlencoded.")
    raw = bytearray()
    try:
        async for piece in request.stream():
            raw += piece
            if len(raw) > limit_bytes:
                raise HTTPException(413, "The form is too long.")
    except ClientDisconnect:
        raise HTTPException(400, "The form is not whole.") from None
    return parse_form(bytes(raw))


def parse_form(raw: bytes) -> Form:
    """The fields of a form's body; raises HTTPException (400) for what does not parse or comes twice."""
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, encoding="utf-8", errors="strict"
        )
    except ValueError:
        raise HTTPException(400, "The form does not parse.") from None
    fields: dict[str, str] = {}
    allow: list[str] = []
    for name, value in pairs:
        if any(char < " " or char == "\x7f" for char in value):
            raise HTTPException(400, "The form holds control characters.")
        if name == REPEATED:
            allow.append(value)
        elif name in fields:
            raise HTTPException(400, "The form has a field twice.")
        else:
            fields[name] = value
    return Form(fields, tuple(allow))


def cookie(request: Request, name: str) -> str | None:
    """The value of a cookie that this server set; None where there is none, or where several claim its name."""
    found = [
        value.strip()
        for header in request.headers.getlist("cookie")
        for key, equals, value in (part.partition("=") for part in header.split(";"))
        if equals and key.strip() == name
    ]
    return found[0] if len(found) == 1 and _COOKIE.fullmatch(found[0]) else None


def is_foreign(request: Request) -> bool:
    """Whether a browser says that another site sent this form; programs that are no browsers say nothing."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origins = request.headers.getlist("origin")
    return bool(origins) and origins != [f"{request.scope['scheme']}://{request.headers.get('host', '')}"]


def number(text: str) -> int | None:
    """A number of an entry as an address writes it; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
