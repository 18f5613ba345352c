"""Audit entries in words: one text for the command line and for the dashboard."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adyton.cli.audit import summary
from adyton.keystore.audit import Entry
from adyton.keystore.audit_words import EntryWords, entry_words
from adyton.server.dashboard.pages.timeline import event

KEY = {"key": "weights", "app": "classify", "app_version": "v1"}
RELEASED = {"grant": "g-1", "keys": [KEY], "tee": "sim:ab", "status": "UpToDate", "protocol": "adyton", "peer": "::1"}
DENIED = {"denial": "d-1", "names": ["weights"], "reason": {"message": "no"}, "told": {"message": "?"}, "peer": "::1"}
POLICY = {
    "approval": "a-1",
    "state": "revoked",
    "policy": {"app": "classify", "version": "v1", "key": "weights"},
    "actor": "alice",
}
WORDS: dict[str, tuple[dict[str, Any], EntryWords]] = {
    "release": (
        RELEASED,
        EntryWords(
            "good", "g-1", "Released weights", "to classify v1, simulated platform UpToDate, over adyton, from ::1"
        ),
    ),
    "denial": (DENIED, EntryWords("bad", "d-1", "Refused weights", "no; from ::1")),
    "policy": (POLICY, EntryWords("plain", "a-1", "Revoked: classify v1", "for key weights, by alice")),
    "key-added": (
        {"key": "weights", "version": 2, "note": ""},
        EntryWords("plain", "", "New key, or new version of one", "key weights, version 2"),
    ),
    "server": (
        {"what": "started", "version": "1.2.3", "listening": {"adyton": "::1:1"}},
        EntryWords("plain", "", "Key server started", "version 1.2.3"),
    ),
    "explanation": (
        {"denial": "d-1", "against": "classify v1", "changed": ["file a: approved x, seen y"], "more": 0},
        EntryWords("plain", "", "What a refused program changed", "against classify v1: file a: approved x, seen y"),
    ),
    "candidate-dismissed": (
        {"measurement": "ab" * 32, "key": "weights", "actor": "dashboard"},
        EntryWords(
            "plain",
            "",
            "Dismissed a program that waited",
            "measurement abababababababab…, key weights, actor dashboard",
        ),
    ),
    "evidence-pruned": (
        {"before_ms": 86_400_000, "count": 3, "size_bytes": 5, "actor": "alice"},
        EntryWords(
            "plain",
            "",
            "Removed old evidence",
            "before 1970-01-02 00:00:00 UTC, count 3, size bytes 5, actor alice",
        ),
    ),
    "of-the-future": ({"what": "x"}, EntryWords("plain", "", "of-the-future", "what x")),
}


def entry(kind: str, body: dict[str, Any]) -> Entry:
    """An entry of this kind."""
    return Entry(7, 0, kind, json.dumps(body), bytes(32))


@pytest.mark.parametrize("kind", WORDS)
def test_entry_is_said_alike_on_both_sides(kind: str) -> None:
    """Title and detail stand in the line of `adyton audit list` and in the dashboard's row."""
    body, said = WORDS[kind]
    found = entry(kind, body)
    assert entry_words(found) == said
    row = event(found)
    assert (row["tone"], row["title"], row["detail"]) == (said.tone, said.title, said.detail)
    line = summary(found)
    assert line.startswith("     7  1970-01-01 00:00:00  ")
    assert all(text in line for text in (said.subject, said.title, said.detail))


def test_real_platform_is_named() -> None:
    """Which kind of TEE had the key."""
    assert "sgx platform UpToDate" in entry_words(entry("release", {**RELEASED, "tee": "sgx"})).detail


def test_denial_of_an_older_version_is_said() -> None:
    """It has one text for both sides, and perhaps no names."""
    older = {"denial": "d-1", "told": {"message": "no"}, "peer": "::1"}
    assert entry_words(entry("denial", older)) == EntryWords("bad", "d-1", "Refused a request", "no; from ::1")
