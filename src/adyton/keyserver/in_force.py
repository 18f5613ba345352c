"""Say to runs that an agreement is in force on this owner's side, as far as it is.

Whoever asks must know the agreement's id, which follows from its whole text. For everything else there is one answer:
unknown, not signed, over, or revoked.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adyton.agreement.in_force import make_statement
from adyton.dates import is_over
from adyton.errors import Error
from adyton.keystore.audit_facts import AGREEMENT_REVOKED

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from adyton.keystore.sealed_key import SealedKey
    from adyton.keystore.store import Store
    from adyton.values import Nonce

log = logging.getLogger("adyton.keyserver")


@dataclass(frozen=True, slots=True, repr=False)
class StatementSigner:
    """The key that signs statements, and the owner's CA (DER)."""

    key: SealedKey
    ca_der: bytes


class Statements:
    """The statements of one key server. Thread-safe.

    `signer` opens the key when it is needed: it is made when the owner signs her first agreement, also while the
    server runs.
    """

    def __init__(self, store: Store, signer: Callable[[], StatementSigner | None]) -> None:
        self._store = store
        self._signer = signer

    def make(self, agreement: str, challenge: Nonce, now: datetime) -> bytes | None:
        """A statement over a challenge of another key server. None where this owner does not say so."""
        with self._store.read() as view:
            stored = view.agreement(agreement)
        if stored is None or stored.state == AGREEMENT_REVOKED or is_over(stored.agreement.until, now):
            return None
        try:
            signer = self._signer()
        except Error as error:
            log.warning("cannot say that an agreement is in force", extra={"agreement": agreement, **error.details()})
            return None
        if signer is None:
            return None
        key = signer.key
        return make_statement(agreement, challenge, key.private, key.certificate_der, signer.ca_der).to_bytes()
