"""Platforms that asked for keys, and the collateral that their evidence is verified against."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adyton.collateral.store import expires_soon

if TYPE_CHECKING:
    from adyton.collateral.store import CollateralStore, Held
    from adyton.keystore.reader import Reader


def platforms(reader: Reader, collateral: CollateralStore) -> dict[str, Any]:
    """What the page shows."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in reader.newest_entries(2000, kinds=("release", "denial")):
        body = json.loads(entry.body)
        if "tee" in body:
            platform = body.get("platform", {})
            key = (body["tee"], platform.get("ppid", platform.get("chip_id", "")))
            found = seen.setdefault(key, {**body, "last": entry.at_ms, "releases": 0, "denials": 0})
            found["releases" if entry.kind == "release" else "denials"] += 1
    return {"platforms": list(seen.values()), "documents": documents(collateral)}


def documents(collateral: CollateralStore) -> list[dict[str, Any]]:
    """The documents that are held, with when they expire and how good they are (bad, soon, good)."""
    now = datetime.now(UTC)
    found = []
    for held in collateral.held():
        verified = held.verified
        found.append(
            {
                "name": held.name,
                "root": str(held.root),
                "expires": "" if verified is None else f"{verified.expires_at:%Y-%m-%d %H:%M} UTC",
                "state": _state(held, now),
                "error": "" if held.error is None else held.error.message,
            }
        )
    return found


def _state(held: Held, now: datetime) -> str:
    if held.verified is None or held.verified.expires_at < now:
        return "bad"
    return "soon" if expires_soon(held.verified, now) else "good"
