"""Audit entries as text for people, in `adyton audit` and in the dashboard's timeline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from adyton.keystore.facts import DENIAL, POLICY, RELEASE

if TYPE_CHECKING:
    from adyton.keystore.audit import Entry

MAX_DETAIL_CHARACTERS: Final = 200
"""Longest text of an entry whose kind has no words of its own."""


class EntryWords(NamedTuple):
    """The words of one entry: its id ("" without one), what happened, and to whom."""

    tone: Literal["plain", "good", "bad"]
    subject: str
    title: str
    detail: str


def entry_words(entry: Entry) -> EntryWords:
    """Put an entry into words."""
    body: dict[str, Any] = json.loads(entry.body)
    if entry.kind == RELEASE:
        keys = ", ".join(item["key"] for item in body["keys"])
        programs = ", ".join(dict.fromkeys(f"to {item['app']} {item['app_version']}" for item in body["keys"]))
        kind = str(body["tee"]).partition(":")[0]
        platform = "simulated platform" if kind.startswith("sim") else f"{kind} platform"
        detail = f"{programs}, {platform} {body['status']}, over {body['protocol']}, from {body['peer']}"
        return EntryWords("good", body["grant"], f"Released {keys}", detail)
    if entry.kind == DENIAL:
        reason = body.get("reason", body["told"])  # an older entry has one text for both sides
        names = ", ".join(body.get("names", ())) or "a request"
        return EntryWords("bad", body["denial"], f"Refused {names}", f"{reason['message']}; from {body['peer']}")
    if entry.kind == POLICY:
        policy = body["policy"]
        title = f"{body['state'].capitalize()}: {policy['app']} {policy['version']}"
        return EntryWords("plain", body["approval"], title, f"for key {policy['key']}, by {body['actor']}")
    parts = [f"{name} {value}" for name, value in body.items() if isinstance(value, str | int) and value != ""]
    return EntryWords("plain", "", entry.kind, ", ".join(parts)[:MAX_DETAIL_CHARACTERS])
