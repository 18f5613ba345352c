"""Cache between the transactions of one process, which saves reads of the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from adyton.keystore.tables.nonces import KEPT_AFTER_EXPIRY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adyton.keystore.approval import StoredApproval

KNOWN_NONCES: Final = 20_000
"""Above this number, expired challenges are removed."""
MAX_KNOWN_ARTIFACTS: Final = 1000


class Approvals:
    """All approvals, newest change first, and the same by key. Its size depends on approvals, not on requests."""

    def __init__(self, every: list[StoredApproval]) -> None:
        self.every = every
        self._by_key: dict[str, list[StoredApproval]] = {}
        for stored in every:
            self._by_key.setdefault(stored.approval.key, []).append(stored)

    def of(self, key: str | None) -> list[StoredApproval]:
        """The approvals of one key, or all of them (None)."""
        return self.every if key is None else self._by_key.get(key, [])


class Cache:
    """Values that earlier transactions read.

    It is valid for the last entry of the verified record that changed a key or an approval. So no number in the
    database can bring back values from before that entry. The caller holds the write lock.
    """

    def __init__(self) -> None:
        self._approvals: tuple[int, Approvals] | None = None
        self._keys: tuple[int, dict[str, Any]] = (-1, {})
        self._artifacts: tuple[int, set[bytes]] = (-1, set())
        self._nonces: dict[bytes, int] = {}
        self._forget_above = KNOWN_NONCES

    def approvals(self, changed_at: int, load: Callable[[], list[StoredApproval]]) -> Approvals:
        """All approvals since this entry."""
        if self._approvals is None or self._approvals[0] != changed_at:
            self._approvals = (changed_at, Approvals(load()))
        return self._approvals[1]

    def keys(self, changed_at: int) -> dict[str, Any]:
        """Wrapped keys read since this entry: name -> row."""
        if self._keys[0] != changed_at:
            self._keys = (changed_at, {})
        return self._keys[1]

    def artifacts(self, changed_at: int) -> set[bytes]:
        """SHA-256 of artifacts known to be stored since this entry."""
        if self._artifacts[0] != changed_at or len(self._artifacts[1]) > MAX_KNOWN_ARTIFACTS:
            self._artifacts = (changed_at, set())
        return self._artifacts[1]

    def knows_nonce(self, nonce: bytes) -> bool:
        """Whether this process used up this challenge. It does not depend on the database."""
        return nonce in self._nonces

    def note_nonces(self, nonces: Mapping[bytes, int], at_ms: int) -> None:
        """Note used challenges with their expiry."""
        self._nonces.update(nonces)
        if len(self._nonces) > self._forget_above:
            known = self._nonces.items()
            self._nonces = {nonce: expires for nonce, expires in known if expires >= at_ms - KEPT_AFTER_EXPIRY_MS}
            self._forget_above = KNOWN_NONCES + 2 * len(self._nonces)
