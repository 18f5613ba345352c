"""The key that signs audit checkpoints: audit.key and audit.crt of the home."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from adyton.keystore.home import Home


def audit_private_key(home: Home) -> Ed25519PrivateKey:
    """The key that signs audit checkpoints."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(home.private("audit.key"), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError("audit.key is not an Ed25519 key", check="audit.key")
    return key


def audit_public_key(home: Home) -> Ed25519PublicKey:
    """The key that verifies checkpoints, from audit.crt. That certificate must be under the CA."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        certificate = x509.load_pem_x509_certificate((home.path / "audit.crt").read_bytes())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(home.ca_path.read_bytes()))
        key = certificate.public_key()
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        raise StoreError(
            "audit.crt cannot be used", check="audit.crt", expected="a certificate under ca.crt", seen=error
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError("audit.crt holds no Ed25519 key", check="audit.crt")
    return key
