"""Audit entries as text for people, in `adyton audit` and in the dashboard's timeline."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from adyton.keystore.audit_facts import (
    AGREEMENT,
    AGREEMENT_COMPLETE,
    AGREEMENT_REVOKED,
    AGREEMENT_SIGNED,
    DATA_KEY_ROTATED,
    DENIAL,
    DISMISSED,
    EXPLANATION,
    FOLDER_ROOT,
    KEY_ADDED,
    MASTER_KEY_ROTATED,
    POLICY,
    PRIVACY_SETTLED,
    PRUNED,
    RECEIPT,
    RECORD_SIGNED,
    RELEASE,
    USED,
)
from adyton.keystore.clock import moment

if TYPE_CHECKING:
    from adyton.keystore.audit import Entry

MAX_DETAIL_CHARACTERS: Final = 200
"""Longest text of an entry whose kind has no words of its own."""


TITLES: Final = {
    KEY_ADDED: "New key, or new version of one",
    "key-exported": "Exported a key",
    DATA_KEY_ROTATED: "Wrapped all keys under a new data key",
    MASTER_KEY_ROTATED: "New master key",
    EXPLANATION: "What a refused program changed",
    DISMISSED: "Dismissed a program that waited",
    PRUNED: "Removed old evidence",
    USED: "A program confirmed that it has its keys",
    RECEIPT: "Counter-signed the receipt of a run",
    "dashboard": "Somebody failed to log in",
    "noise": "Refusals that were only counted",
    "grant-key-made": "New key that signs grants",
    "agreement-key-made": "New key that signs agreements",
    PRIVACY_SETTLED: "A run said what it used of a privacy budget",
    "in-force-key-made": "New key that says that agreements are in force",
    "backup": "Made a backup",
    "store-created": "Made this key store",
    RECORD_SIGNED: "Signed the record",
}
"""Kind of an entry that has no facts in its title -> what happened."""

_AGREEMENT_WORDS: Final = {
    AGREEMENT_SIGNED: "Signed an agreement",
    AGREEMENT_COMPLETE: "All parties signed an agreement",
    AGREEMENT_REVOKED: "Ended an agreement",
}

_HASH: Final = re.compile(r"\b[0-9a-f]{32,}\b")


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
    if entry.kind == FOLDER_ROOT:
        root = body["root"]
        title = f"Root of {body['folder']}: {body['event']}"
        detail = f"commit {root['sequence']}, {root['entries']} files and folders, by {root['writer']}"
        return EntryWords("plain", body["holder"], title, detail)
    if entry.kind == AGREEMENT:
        agreement = body["document"]
        title = f"{_AGREEMENT_WORDS[body['state']]}: {agreement['name']}"
        detail = f"parties {', '.join(sorted(agreement['parties']))}, by {body['actor']}"
        return EntryWords("plain", body["agreement"], title, detail[:MAX_DETAIL_CHARACTERS])
    title = TITLES.get(entry.kind, entry.kind)
    if entry.kind == "server":
        title = f"Key server {body['what']}"
        body = {"version": body["version"]}
    if entry.kind == EXPLANATION and body["against"]:
        changed = "; ".join(body["changed"]) or "nothing differs"
        return EntryWords("plain", "", title, f"against {body['against']}: {changed}"[:MAX_DETAIL_CHARACTERS])
    parts = [_fact(name, value) for name, value in body.items() if isinstance(value, str | int) and value != ""]
    return EntryWords("plain", "", title, ", ".join(parts)[:MAX_DETAIL_CHARACTERS])


def _fact(name: str, value: str | int) -> str:
    """A member of an entry: a time as a date, a long hash by its beginning."""
    if name.endswith("_ms") and isinstance(value, int):
        return f"{name.removesuffix('_ms').replace('_', ' ')} {moment(value):%Y-%m-%d %H:%M:%S} UTC"
    return f"{name.replace('_', ' ')} {_HASH.sub(_beginning, str(value))}"


def _beginning(found: re.Match[str]) -> str:
    return f"{found[0][:16]}…"
