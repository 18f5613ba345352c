"""The key that signs audit checkpoints: audit.key and audit.crt of the home."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.capped_read import read_private_file
from adyton.errors import Error, StoreError
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.wrapping import NO_HOME

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def audit_private_key(folder: Path) -> Ed25519PrivateKey:
    """The key that signs audit checkpoints, from the home `folder`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(read_private_file(folder / "audit.key", "audit.key", remedy=NO_HOME), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError("audit.key is not an Ed25519 key", check="audit.key")
    return key


def audit_certificates(folder: Path) -> tuple[bytes, bytes]:
    """The certificates of the audit key and of the owner's CA, from the home `folder`, DER. Raises StoreError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    audit_public_key(folder)
    audit, ca = (
        x509.load_pem_x509_certificate(read_certificate(folder, name)).public_bytes(Encoding.DER)
        for name in ("audit.crt", "ca.crt")
    )
    return audit, ca


def audit_public_key(folder: Path) -> Ed25519PublicKey:
    """The key that checkpoints are verified with, from audit.crt, which must stand under the CA."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        certificate = x509.load_pem_x509_certificate(read_certificate(folder, "audit.crt"))
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(read_certificate(folder, "ca.crt")))
        key = certificate.public_key()
    except (Error, ValueError, TypeError, InvalidSignature) as error:
        raise StoreError(
            "audit.crt cannot be used", check="audit.crt", expected="a certificate under ca.crt", seen=error
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError("audit.crt holds no Ed25519 key", check="audit.crt")
    return key
