"""The keys of one open store: what is derived from which, and what each wrapped value is bound to."""

from __future__ import annotations

import hmac
import struct
from copy import copy
from typing import TYPE_CHECKING, Final

from adyton.errors import StoreError
from adyton.keystore.wrapping import WrappingKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from adyton.keystore.audit import Head

    Masters = Callable[[], Iterable[WrappingKey]]

_MASTER_CHECK: Final = b"adyton master key check 2"
_UNSIGNED_RECORD: Final = b"adyton master key check 1"
"""What the state key was bound to in stores whose record carried no code of its own (schema 1 and 2)."""
_POLICY_MAC: Final = b"adyton policy mac 1"
_NONCE_MAC: Final = b"adyton challenge 1"
_RECORD_MAC: Final = b"adyton audit record 1"
_TOKENS: Final = b"adyton grant tokens 1"
_GRANT_SEAL: Final = b"adyton grant key 1"


class Keyring:
    """A store's id, its master key and its state key; the state key never changes, so what derives from it lasts."""

    def __init__(
        self, store_id: bytes, master: WrappingKey, state_key: WrappingKey, reload: Masters | None = None
    ) -> None:
        self.store_id = store_id
        self.master = master
        """Opens data keys; whoever wraps the store under another one puts that here afterwards."""
        self.data_keys: dict[int, WrappingKey] = {}
        """Data keys that were unwrapped before, by version; only such as are committed."""
        self.challenge_key = state_key.derive(_NONCE_MAC)
        self.grant_seal = WrappingKey(state_key.derive(_GRANT_SEAL))
        """Seals the key that signs grants, in the homes of all servers of this store."""
        self._state_key = state_key
        self._policy_key = state_key.derive(_POLICY_MAC)
        self._record_key = state_key.derive(_RECORD_MAC)
        self._token_key = state_key.derive(_TOKENS)
        self._reload = reload

    @classmethod
    def generate(cls, store_id: bytes, master: WrappingKey) -> Keyring:
        """The keyring of a new store, with a fresh state key."""
        return cls(store_id, master, WrappingKey.generate())

    @classmethod
    def open(
        cls,
        store_id: bytes,
        master: WrappingKey,
        wrapped_state: bytes,
        reload: Masters | None = None,
        *,
        unsigned_record: bool = False,
    ) -> Keyring:
        """The keyring of an existing store; raises StoreError where the master key is another's.

        An `unsigned_record` is that of an older schema. Its state key is bound to that, so that a store cannot be made
        to look as if its record still had to be taken as it is.

        `reload` gives the master keys that may have taken this one's place, the likeliest first: they are tried
        where this one does not open something (any more), so that a rotation reaches whoever serves already.
        """
        bound = (_UNSIGNED_RECORD if unsigned_record else _MASTER_CHECK) + store_id
        opened, state = _first(master, reload, wrapped_state, bound, "the store")
        return cls(store_id, opened, WrappingKey(state), reload)

    def without_data_keys(self) -> Keyring:
        """The same, with every data key still to be opened."""
        other = copy(self)
        other.data_keys = {}
        return other

    def current_master(self, wrapped_state: bytes) -> WrappingKey:
        """The master key that opens the store as it is now; raises StoreError where this process has none."""
        bound = _MASTER_CHECK + self.store_id
        self.master, _ = _first(self.master, self._reload, wrapped_state, bound, "the store")
        return self.master

    def open_data_key(self, version: int, wrapped: bytes) -> WrappingKey:
        """A data key of the store."""
        bound = self.data_key_binding(version)
        self.master, raw = _first(self.master, self._reload, wrapped, bound, f"data key {version}")
        return WrappingKey(raw)

    def state_under(self, master: WrappingKey) -> bytes:
        """The state key, wrapped under `master`: what `open` takes."""
        return master.wrap(self._state_key.reveal(), _MASTER_CHECK + self.store_id)

    def key_binding(self, name: str, version: int, kind: str) -> bytes:
        """What a wrapped key or secret is bound to."""
        store_id = self.store_id.hex().encode()
        return b"\0".join((b"adyton key 1", store_id, name.encode(), str(version).encode(), kind.encode()))

    def data_key_binding(self, version: int) -> bytes:
        """What a wrapped data key is bound to."""
        return b"\0".join((b"adyton data key 1", self.store_id.hex().encode(), str(version).encode()))

    def policy_mac(self, approval_id: str, state: str, revision: int, document: str) -> bytes:
        """The code that authenticates an approval in the database."""
        parts = [approval_id.encode(), state.encode(), str(revision).encode(), document.encode()]
        framed = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return hmac.digest(self._policy_key, framed, "sha256")

    def head_mac(self, head: Head) -> bytes:
        """The code that shows that Adyton wrote the audit record up to here."""
        message = b"head\0" + self.store_id + struct.pack(">Q", head.seq) + head.hash
        return hmac.digest(self._record_key, message, "sha256")

    def facts_mac(self, facts: bytes) -> bytes:
        """The code of what was read from the verified record, written down for the next process."""
        return hmac.digest(self._record_key, b"facts\0" + self.store_id + facts, "sha256")

    def token(self, grant_id: str) -> bytes:
        """What only the enclave learns that was given this grant: it shows that it opened it."""
        return hmac.digest(self._token_key, self.store_id + grant_id.encode("utf-8", "surrogatepass"), "sha256")


def _first(
    master: WrappingKey, reload: Masters | None, wrapped: bytes, bound_to: bytes, what: str
) -> tuple[WrappingKey, bytes]:
    """The first of the master keys that opens `wrapped`, with what was in it."""
    try:
        return master, master.unwrap(wrapped, bound_to, what)
    except StoreError:
        for other in reload() if reload is not None else ():
            try:
                return other, other.unwrap(wrapped, bound_to, what)
            except StoreError:
                continue
        raise
