"""Keys and secrets, and for which programs each opens; never a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adyton.keystore.approval import APPROVED

if TYPE_CHECKING:
    from adyton.keystore.reader import Reader


def keys(reader: Reader) -> dict[str, Any]:
    """What the page shows."""
    standing: dict[str, list[Any]] = {}
    for item in reader.approvals():
        if item.state == APPROVED:
            standing.setdefault(item.approval.key, []).append(item)
    return {"keys": reader.keys(), "standing": standing}
