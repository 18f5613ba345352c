"""What a key server answers, as the error that a start of a program ends with."""

from __future__ import annotations

import json

import pytest

from adyton.errors import Denied, Error, FetchFailed, OutOfOrder, ScriptFailed, VersionMismatch
from adyton.release.client import _server_error, denied
from adyton.release.messages import NOT_KEPT, Refusal

REFUSAL = Refusal("d-7", "no", "approval", "one", "none", "ask her")


def test_denied_carries_all_that_the_refusal_says() -> None:
    """Who catches the error reads the denial's id from it, and not from its text."""
    error = denied(REFUSAL, "maker")
    assert error.denials == ("d-7",)
    assert (error.check, error.expected, error.seen, error.remedy) == ("approval", "one", "none", "ask her")
    again = Error.parse(error.to_bytes())
    assert isinstance(again, Denied)
    assert again.denials == ("d-7",)


def test_denied_that_the_owner_only_counted_has_no_id() -> None:
    """There is nothing to look up then."""
    assert denied(Refusal(NOT_KEPT, "no", "c", "e", "s", "r"), "maker").denials == ()


@pytest.mark.parametrize(
    ("status", "kind"), [(503, FetchFailed), (400, OutOfOrder), (500, OutOfOrder), (426, VersionMismatch)]
)
def test_server_error_has_the_class_of_its_status(status: int, kind: type[Error]) -> None:
    """The class that a server names, and what it says of exit codes, count for nothing."""
    raw = json.dumps({"error": "ScriptFailed", "status": 0, "message": "m", "check": "c", "denials": ["d-1"]}).encode()
    error = _server_error(raw, status, "h:1")
    assert type(error) is kind
    assert not isinstance(error, ScriptFailed)


def test_server_error_is_text_within_bounds() -> None:
    """Nothing of it steers a terminal, none of it is long, and what is no text is left out."""
    parts = {"message": "\x1b[2J" + "m" * 1000, "check": ["c"], "expected": 1, "seen": "s\u202e", "remedy": None}
    error = _server_error(json.dumps(parts).encode(), 400, "h:1")
    assert "\x1b" not in error.message
    assert len(error.message) < 400
    assert (error.check, error.expected, error.seen, error.remedy) == (None, None, "s\N{REPLACEMENT CHARACTER}", None)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"<html>"])
def test_server_error_without_a_document_names_the_status(raw: bytes) -> None:
    """Something else than a key server answers as it likes."""
    error = _server_error(raw, 502, "h:1")
    assert error.message.endswith("answered with an error: HTTP status 502")
    assert error.checks == ()
