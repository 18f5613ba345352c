"""The audit record: its newest entries, and one entry with its decision taken again from what was kept for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from adyton.attest import explain
from adyton.errors import UsageError
from adyton.keyserver.replay import replay
from adyton.keystore.audit_words import entry_words
from adyton.server.dashboard.requests import number

if TYPE_CHECKING:
    from starlette.requests import Request

    from adyton.keystore.audit import Entry
    from adyton.keystore.reader import Reader

PAGE: Final = 50
"""Entries on a page."""


def timeline(request: Request, reader: Reader) -> dict[str, Any]:
    """What the list shows."""
    kind = request.query_params.get("kind", "")
    kinds = (kind,) if kind in ("release", "denial", "policy", "used", "explanation") else ()
    before = number(request.query_params.get("before", ""))
    found = reader.newest_entries(PAGE + 1, kinds=kinds, before=before)
    older = found[PAGE - 1].seq if len(found) > PAGE else None
    return {"events": [event(entry) for entry in found[:PAGE]], "kind": kind, "before": before, "older": older}


def one_entry(request: Request, reader: Reader) -> dict[str, Any]:
    """What the page of one entry shows; raises UsageError where there is none."""
    seq = number(request.path_params["seq"])
    entry = None if seq is None else reader.entry(seq)
    if entry is None:
        raise UsageError("there is no such entry")
    body = json.loads(entry.body)
    assessment = replay(reader, entry) if entry.kind in ("release", "denial") else None
    subject = body.get("denial")
    explained = (
        [json.loads(item.body) for item in reader.entries(kind="explanation", subject=subject)] if subject else []
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
