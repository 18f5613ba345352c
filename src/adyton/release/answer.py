"""The answer to a request for keys: a grant, or a refusal."""

from __future__ import annotations

from adyton.release.grants import Granted, parse_granted
from adyton.release.messages import MAX_RESPONSE_BYTES, NOT_KEPT, Refusal
from adyton.release.wire import check_protocol, identifier, malformed, parse_object, printable


def parse_answer(raw: bytes) -> Granted | Refusal:
    """Parse the answer to a request for keys; a grant in it is not verified (`adyton.release.grants`)."""
    document = parse_object(raw, MAX_RESPONSE_BYTES)
    check_protocol(document)
    status = document.get("status")
    if status == "granted":
        return parse_granted(document)
    if status != "denied":
        raise malformed("status", "granted or denied", str(status))
    fields = ("denial", "message", "check", "expected", "seen", "remedy")
    document.only({"protocol", "status", *fields})
    denial = NOT_KEPT if document["denial"] == NOT_KEPT else identifier(document, "denial")
    return Refusal(denial, *(printable(document.text(name, 2000)) for name in fields[1:]))
