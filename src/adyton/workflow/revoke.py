"""Revoke approvals. The next request is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.errors import UsageError
from adyton.keystore.approval import REVOKED
from adyton.keystore.home import actor
from adyton.workflow.owner import owner_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from adyton.keystore.approval import StoredApproval


@dataclass(frozen=True, slots=True)
class RevokedApprovals:
    """The revoked approvals. Empty where no valid approval matches."""

    approvals: tuple[StoredApproval, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton revoke --json`."""
        return {"revoked": [item.id for item in self.approvals]}


def revoke(
    approvals: str | Iterable[str] = (),
    *,
    key: str | None = None,
    app: str | None = None,
    version: str | None = None,
    home: Path | None = None,
) -> RevokedApprovals:
    """Revoke approvals: the one with this id or those with these, of this key, or of this program.

    A running program keeps the key that it has. Raises UsageError where nothing is named.
    """
    ids = (approvals,) if isinstance(approvals, str) else tuple(approvals)  # once: an iterator is empty thereafter
    if not ids and key is None and app is None:
        raise UsageError(
            "say what to revoke", check="revoke", expected="approval ids, --key or --app", remedy="adyton policy show"
        )
    with owner_store(home) as (_, store), store.write() as change:
        for wanted in ids:
            change.approval(wanted)
        chosen = [
            item
            for item in change.approvals()
            if item.state != REVOKED
            and (not ids or item.id in ids)
            and (key is None or item.approval.key == key)
            and (app is None or item.approval.app == app)
            and (version is None or item.approval.version == version)
        ]
        done = [change.change_approval(item.id, actor=actor(), state=REVOKED) for item in chosen]
    return RevokedApprovals(tuple(done))
