"""The keys of one open store: their derivation, and the binding of each wrapped value."""

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
"""The binding of the state key in stores whose record had no code (schema 1 and 2)."""
_POLICY_MAC: Final = b"adyton policy mac 1"
_NONCE_MAC: Final = b"adyton challenge 1"
_RECORD_MAC: Final = b"adyton audit record 1"
_TOKENS: Final = b"adyton grant tokens 1"
_GRANT_SEAL: Final = b"adyton grant key 1"


class Keyring:
    """A store's id, master key and state key. The state key never changes, so keys derived from it last."""

    def __init__(
        self, store_id: bytes, master: WrappingKey, state_key: WrappingKey, reload: Masters | None = None
    ) -> None:
        self.store_id = store_id
        self.master = master
        """The key that opens data keys. A rotation sets the new one here."""
        self.data_keys: dict[int, WrappingKey] = {}
        """Unwrapped data keys by version. Only committed ones."""
        self.challenge_key = state_key.derive(_NONCE_MAC)
        self.grant_seal = WrappingKey(state_key.derive(_GRANT_SEAL))
        """Seals the keys that sign grants and agreements (`sealed_key`), in the homes of all servers of this store."""
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
        """The keyring of an existing store. Raises StoreError where the master key does not open it.

        An `unsigned_record` is that of an older schema. The state key is bound to this fact. So a newer store cannot be
        made to look like an older one, whose record has no code.

        `reload` gives the master keys that may have replaced this one, the likeliest first. They are tried where this
        one does not open a value. So a rotation reaches servers that already run.
        """
        bound = (_UNSIGNED_RECORD if unsigned_record else _MASTER_CHECK) + store_id
        opened, state = _first(master, reload, wrapped_state, bound, "the store")
        return cls(store_id, opened, WrappingKey(state), reload)

    def without_data_keys(self) -> Keyring:
        """A copy without unwrapped data keys."""
        other = copy(self)
        other.data_keys = {}
        return other

    def current_master(self, wrapped_state: bytes) -> WrappingKey:
        """The master key that opens the store now. Raises StoreError where this process has none."""
        bound = _MASTER_CHECK + self.store_id
        self.master, _ = _first(self.master, self._reload, wrapped_state, bound, "the store")
        return self.master

    def open_data_key(self, version: int, wrapped: bytes) -> WrappingKey:
        """Unwrap a data key of the store."""
        bound = self.data_key_binding(version)
        self.master, raw = _first(self.master, self._reload, wrapped, bound, f"data key {version}")
        return WrappingKey(raw)

    def state_under(self, master: WrappingKey) -> bytes:
        """The state key, wrapped under `master`, as `open` takes it."""
        return master.wrap(self._state_key.reveal(), _MASTER_CHECK + self.store_id)

    def key_binding(self, name: str, version: int, kind: str) -> bytes:
        """The binding of a wrapped key or secret."""
        store_id = self.store_id.hex().encode()
        return b"\0".join((b"adyton key 1", store_id, name.encode(), str(version).encode(), kind.encode()))

    def data_key_binding(self, version: int) -> bytes:
        """The binding of a wrapped data key."""
        return b"\0".join((b"adyton data key 1", self.store_id.hex().encode(), str(version).encode()))

    def policy_mac(self, approval_id: str, state: str, revision: int, document: str) -> bytes:
        """The MAC of an approval in the database."""
        parts = [approval_id.encode(), state.encode(), str(revision).encode(), document.encode()]
        framed = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return hmac.digest(self._policy_key, framed, "sha256")

    def head_mac(self, head: Head) -> bytes:
        """The MAC of the record's head. It shows that Adyton wrote the record up to here."""
        message = b"head\0" + self.store_id + struct.pack(">Q", head.seq) + head.hash
        return hmac.digest(self._record_key, message, "sha256")

    def facts_mac(self, facts: bytes) -> bytes:
        """The MAC of the stored facts, which the next process reads."""
        return hmac.digest(self._record_key, b"facts\0" + self.store_id + facts, "sha256")

    def token(self, grant_id: str) -> bytes:
        """The token of a grant. Only the enclave that opened the grant knows it, so it proves the opening."""
        return hmac.digest(self._token_key, self.store_id + grant_id.encode("utf-8", "surrogatepass"), "sha256")


def _first(
    master: WrappingKey, reload: Masters | None, wrapped: bytes, bound_to: bytes, what: str
) -> tuple[WrappingKey, bytes]:
    """The first master key that opens `wrapped`, and the unwrapped bytes."""
    try:
        return master, master.unwrap(wrapped, bound_to, what)
    except StoreError:
        for other in reload() if reload is not None else ():
            try:
                return other, other.unwrap(wrapped, bound_to, what)
            except StoreError:
                continue
        raise
