"""Challenges. Each can be answered once. After that its nonce is used up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from adyton.errors import OutOfOrder
from adyton.keystore import schema
from adyton.keystore.tables.pending import NONCES

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.keystore.tables.pending import PendingRows

_FIND: Final = sa.select(schema.nonces.c.nonce).where(schema.nonces.c.nonce == sa.bindparam("nonce"))
_FORGET: Final = sa.delete(schema.nonces).where(schema.nonces.c.expires_at < sa.bindparam("before"))
KEPT_AFTER_EXPIRY_MS: Final = 60_000


class NonceWriter:
    """The nonces that one transaction uses up.

    `is_known` says whether this process used a nonce before. It does not depend on the database.
    """

    def __init__(self, connection: sa.Connection, pending: PendingRows, is_known: Callable[[bytes], bool]) -> None:
        self._connection = connection
        self._pending = pending
        self._is_known = is_known
        self.used: dict[bytes, int] = {}
        """Nonces that this transaction used up: nonce -> expiry of the challenge (ms)."""

    def use(self, nonce: bytes, expires_at_ms: int, at_ms: int) -> None:
        """Use up a nonce. Raises OutOfOrder where it was used before."""
        seen = nonce in self.used or self._is_known(nonce)
        if seen or self._connection.execute(_FIND, {"nonce": nonce}).one_or_none() is not None:
            raise OutOfOrder(
                "this challenge was answered before",
                check="challenge",
                expected="a challenge that is answered once",
                seen="its second answer",
                remedy="ask for a new challenge",
            )
        self.used[nonce] = expires_at_ms
        self._pending.add(NONCES, {"nonce": nonce, "expires_at": expires_at_ms})
        if nonce[-1] == 0:  # one in 256 cleans up
            self._connection.execute(_FORGET, {"before": at_ms - KEPT_AFTER_EXPIRY_MS})
