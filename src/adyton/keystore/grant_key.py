"""The key that signs grants. It is not the TLS server's key, so a thief of that key alone can grant nothing.

::

    HOME/grant.crt   its certificate under the owner's CA (PEM), for no other purpose than this
    HOME/grant.key   nonce (12) ‖ the Ed25519 key (32 bytes, AES-256-GCM) ‖ tag (16), bound to store and certificate

It is sealed under a key that derives from the store's state key. So a home without its store, or without the master
key, can sign nothing. A rotation of the master key does not affect it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adyton.atomic_file import replace_private_file
from adyton.capped_read import read_private_file
from adyton.errors import StoreError
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.certificates import Credential, make_grant
from adyton.keystore.clock import now_ms
from adyton.keystore.wrapping import NO_HOME

if TYPE_CHECKING:
    from adyton.keystore.home import Home
    from adyton.keystore.store import Store

CERTIFICATE: Final = "grant.crt"
KEY: Final = "grant.key"


@dataclass(frozen=True, slots=True, repr=False)
class GrantKey:
    """The key that signs grants, and its certificate (DER)."""

    certificate_der: bytes
    private: Ed25519PrivateKey


def make_grant_key(home: Home, store: Store, *, actor: str, now: datetime | None = None) -> None:
    """Make a new key for grants and its certificate, in the place of any that were; raises where ca.key is not here."""
    ca = Credential(read_certificate(home.path, "ca.crt"), home.private("ca.key"))
    private = Ed25519PrivateKey.generate()
    certificate = make_grant(ca, private.public_key(), home.config.name, datetime.now(UTC) if now is None else now)
    der = certificate.public_bytes(serialization.Encoding.DER)
    sealed = store.keyring.grant_seal.wrap(private.private_bytes_raw(), _binding(store, der))
    replace_private_file(home.path / KEY, sealed)
    replace_private_file(home.path / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    (home.path / CERTIFICATE).chmod(0o644)
    body = {"sha256": hashlib.sha256(der).hexdigest(), "actor": actor[:128]}
    with store.write() as transaction:
        transaction.record("grant-key-made", "", body, now_ms())


def open_grant_key(home: Home, store: Store, *, actor: str, now: datetime | None = None) -> GrantKey:
    """Open the home's grant key. Where it is missing or incomplete, make one if the CA key is here.

    Raises StoreError with a remedy where it cannot be used.
    """
    if not _is_whole(home, store):
        if not (home.path / "ca.key").exists():
            raise _unusable("none, and ca.key is not here to make one")
        make_grant_key(home, store, actor=actor, now=now)
    certificate = _certificate(home)
    moment = datetime.now(UTC) if now is None else now
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise _unusable(f"one that is valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    der = certificate.public_bytes(serialization.Encoding.DER)
    return GrantKey(der, Ed25519PrivateKey.from_private_bytes(_opened(home, store, der)))


def _is_whole(home: Home, store: Store) -> bool:
    """Whether key and certificate exist and belong together. Raises StoreError where they belong to another store."""
    if not (home.path / KEY).exists() or not (home.path / CERTIFICATE).exists():
        return False
    certificate = _certificate(home)
    key = certificate.public_key()
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(read_certificate(home.path, "ca.crt")))
        raw = _opened(home, store, certificate.public_bytes(serialization.Encoding.DER))
    except (StoreError, ValueError, TypeError, InvalidSignature):
        return False
    return isinstance(key, Ed25519PublicKey) and Ed25519PrivateKey.from_private_bytes(raw).public_key() == key


def _opened(home: Home, store: Store, der: bytes) -> bytes:
    sealed = read_private_file(home.path / KEY, KEY, remedy=NO_HOME)
    return store.keyring.grant_seal.unwrap(sealed, _binding(store, der), KEY)


def _certificate(home: Home) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_certificate(home.path, CERTIFICATE))
    except ValueError:
        raise _unusable("something that is no certificate") from None


def _binding(store: Store, der: bytes) -> bytes:
    return b"\0".join((b"adyton grant key 1", store.id.hex().encode(), hashlib.sha256(der).digest()))


def _unusable(seen: str) -> StoreError:
    return StoreError(
        "there is no key to sign grants with",
        check=f"{CERTIFICATE} and {KEY}",
        expected="a certificate for grants under ca.crt that is valid now, and its key, sealed for this store",
        seen=seen,
        remedy="adyton init --renew-server, where ca.key and the store are at hand; it makes a new one",
    )
