"""The first page: what happened last, what waits for the owner, and what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adyton.keystore.approval import APPROVED, PENDING
from adyton.keystore.clock import now_ms
from adyton.server.dashboard.pages.activity import activity
from adyton.server.dashboard.pages.platforms import documents
from adyton.server.dashboard.pages.programs import SHOWN_WAITING, waiting_programs
from adyton.server.dashboard.pages.timeline import event

if TYPE_CHECKING:
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.reader import Reader


def home(reader: Reader, collateral: CollateralStore) -> dict[str, Any]:
    """What the page shows."""
    entries = reader.newest_entries(12, kinds=("release", "denial", "policy"))
    approvals = reader.approvals()
    return {
        "events": [event(entry) for entry in entries],
        "activity": activity(reader, now_ms()),
        "candidates": waiting_programs(reader.candidates()[:SHOWN_WAITING], reader),
        "pending": [item for item in approvals if item.state == PENDING],
        "standing": sum(item.state == APPROVED for item in approvals),
        "keys": len(reader.keys()),
        "entries": reader.head().seq,
        "warnings": _warnings(collateral),
    }


def _warnings(collateral: CollateralStore) -> list[str]:
    held = documents(collateral)
    found = [
        f"{item['name']} {'has expired' if item['state'] == 'bad' else 'expires soon'} ({item['expires']})"
        for item in held
        if item["state"] != "good"
    ]
    if not held:
        found.append("there is no collateral, so no evidence can be verified: adyton collateral fetch")
    return found
