"""Keys of the owner that sign for one purpose each, sealed in her home. None is the TLS server's key.

::

    HOME/NAME.crt   its certificate under the owner's CA (PEM), for no other purpose than this
    HOME/NAME.key   nonce (12) ‖ the Ed25519 key (32 bytes, AES-256-GCM) ‖ tag (16), bound to store and certificate

A key is sealed under a key that derives from the store's state key. So a home without its store, or without the master
key, can sign nothing. A rotation of the master key does not affect it.

`grant` signs grants: it is made with the home. `agreement` signs agreements, `in-force` says that they are in force:
both are made when the owner first signs an agreement.
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
from adyton.keystore.certificates import Credential, make_purpose
from adyton.keystore.clock import now_ms
from adyton.keystore.wrapping import NO_HOME
from adyton.purpose_certificate import AGREEMENTS, GRANTS, IN_FORCE, Purpose

if TYPE_CHECKING:
    from adyton.keystore.home import Home
    from adyton.keystore.store import Store


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the sealed keys: its name, which its files and its entry in the record have, and its purpose."""

    name: str
    purpose: Purpose

    @property
    def certificate(self) -> str:
        """The file of its certificate."""
        return f"{self.name}.crt"

    @property
    def key(self) -> str:
        """The file of the sealed key."""
        return f"{self.name}.key"

    @property
    def label(self) -> bytes:
        """What its seal is bound to."""
        return f"adyton {self.name} key 1".encode()


GRANT: Final = Kind("grant", GRANTS)
AGREEMENT: Final = Kind("agreement", AGREEMENTS)
IN_FORCE_KEY: Final = Kind("in-force", IN_FORCE)


@dataclass(frozen=True, slots=True, repr=False)
class SealedKey:
    """An opened key and its certificate (DER)."""

    certificate_der: bytes
    private: Ed25519PrivateKey


def make_sealed_key(home: Home, store: Store, kind: Kind, *, actor: str, now: datetime | None = None) -> None:
    """Make a new key and its certificate, in the place of any that were. Raises where ca.key is not here."""
    ca = Credential(read_certificate(home.path, "ca.crt"), home.private("ca.key"))
    private = Ed25519PrivateKey.generate()
    moment = datetime.now(UTC) if now is None else now
    certificate = make_purpose(ca, private.public_key(), home.config.name, kind.purpose, moment)
    der = certificate.public_bytes(serialization.Encoding.DER)
    sealed = store.keyring.grant_seal.wrap(private.private_bytes_raw(), _binding(store, kind, der))
    replace_private_file(home.path / kind.key, sealed)
    replace_private_file(home.path / kind.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    (home.path / kind.certificate).chmod(0o644)
    body = {"sha256": hashlib.sha256(der).hexdigest(), "actor": actor[:128]}
    with store.write() as transaction:
        transaction.record(f"{kind.name}-key-made", "", body, now_ms())


def open_sealed_key(home: Home, store: Store, kind: Kind, *, actor: str, now: datetime | None = None) -> SealedKey:
    """Open one of the home's keys. Where it is missing or incomplete, make one if the CA key is here.

    Raises StoreError with a remedy where it cannot be used.
    """
    if not is_whole(home, store, kind):
        if not (home.path / "ca.key").exists():
            raise _unusable(kind, "none, and ca.key is not here to make one")
        make_sealed_key(home, store, kind, actor=actor, now=now)
    certificate = _certificate(home, kind)
    moment = datetime.now(UTC) if now is None else now
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise _unusable(kind, f"one that is valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    der = certificate.public_bytes(serialization.Encoding.DER)
    return SealedKey(der, Ed25519PrivateKey.from_private_bytes(_opened(home, store, kind, der)))


def is_whole(home: Home, store: Store, kind: Kind) -> bool:
    """Whether key and certificate exist and belong together, and to this store."""
    if not (home.path / kind.key).exists() or not (home.path / kind.certificate).exists():
        return False
    certificate = _certificate(home, kind)
    key = certificate.public_key()
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(read_certificate(home.path, "ca.crt")))
        raw = _opened(home, store, kind, certificate.public_bytes(serialization.Encoding.DER))
    except (StoreError, ValueError, TypeError, InvalidSignature):
        return False
    return isinstance(key, Ed25519PublicKey) and Ed25519PrivateKey.from_private_bytes(raw).public_key() == key


def _opened(home: Home, store: Store, kind: Kind, der: bytes) -> bytes:
    sealed = read_private_file(home.path / kind.key, kind.key, remedy=NO_HOME)
    return store.keyring.grant_seal.unwrap(sealed, _binding(store, kind, der), kind.key)


def _certificate(home: Home, kind: Kind) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_certificate(home.path, kind.certificate))
    except ValueError:
        raise _unusable(kind, "something that is no certificate") from None


def _binding(store: Store, kind: Kind, der: bytes) -> bytes:
    return b"\0".join((kind.label, store.id.hex().encode(), hashlib.sha256(der).digest()))


def _unusable(kind: Kind, seen: str) -> StoreError:
    return StoreError(
        f"there is no key to sign {kind.purpose.name} with",
        check=f"{kind.certificate} and {kind.key}",
        expected=f"a certificate for {kind.purpose.name} under ca.crt that is valid now, and its key, sealed for this"
        " store",
        seen=seen,
        remedy="adyton init --renew-server, where ca.key and the store are at hand; it makes a new one",
    )
