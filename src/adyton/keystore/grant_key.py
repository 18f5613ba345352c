"""The key that signs grants. It is not the TLS server's key, so a thief of that key alone can grant nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.keystore.sealed_key import GRANT, SealedKey, make_sealed_key, open_sealed_key

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.keystore.home import Home
    from adyton.keystore.store import Store

GrantKey = SealedKey
"""The key that signs grants, and its certificate (DER)."""


def make_grant_key(home: Home, store: Store, *, actor: str, now: datetime | None = None) -> None:
    """Make a new key for grants and its certificate, in the place of any that were; raises where ca.key is not here."""
    make_sealed_key(home, store, GRANT, actor=actor, now=now)


def open_grant_key(home: Home, store: Store, *, actor: str, now: datetime | None = None) -> GrantKey:
    """Open the home's grant key. Where it is missing or incomplete, make one if the CA key is here.

    Raises StoreError with a remedy where it cannot be used.
    """
    return open_sealed_key(home, store, GRANT, actor=actor, now=now)
