"""Certificates of keys that have one purpose each: to sign grants, agreements, or statements that these are in force.

Each stands under the CA of its owner. Its extended key usage is critical and names exactly one purpose. So a key of one
purpose never counts for another, and none counts as a TLS server's. The dates are compared with a clock of the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from adyton.values import AGREEMENT_PURPOSE, GRANT_PURPOSE, IN_FORCE_PURPOSE

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.errors import Error

Refuse = Callable[[str, str, str], "Error"]
"""Makes the error from the check, what was expected, and what was seen."""

_FOREIGN: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a key signs: the object identifier, its name, and how messages call the certificate."""

    oid: str
    name: str
    certificate: str


GRANTS: Final = Purpose(GRANT_PURPOSE, "grants", "the grant's certificate")
AGREEMENTS: Final = Purpose(AGREEMENT_PURPOSE, "agreements", "the agreement key's certificate")
IN_FORCE: Final = Purpose(IN_FORCE_PURPOSE, "statements that agreements are in force", "the statement's certificate")


def certified_key(der: bytes, ca_der: bytes, purpose: Purpose, now: datetime, refuse: Refuse) -> Ed25519PublicKey:
    """The Ed25519 key in a certificate (DER) that stands under this CA (DER), for this purpose alone, and is valid now.

    Raises what `refuse` makes where it is not.
    """
    certificate, ca = _issued(der, ca_der, purpose, refuse)
    _check_purpose(certificate, purpose, refuse)
    for what, each in ((purpose.certificate, certificate), ("the pinned CA", ca)):
        begin, end = each.not_valid_before_utc, each.not_valid_after_utc
        if not begin <= now <= end:
            seen = f"{now:%Y-%m-%d %H:%M:%S} by this machine's clock"
            raise refuse(f"validity of {what}", f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}", seen)
    try:
        key = certificate.public_key()
    except _FOREIGN as error:
        raise refuse(f"key of {purpose.certificate}", "an Ed25519 key", type(error).__name__) from None
    if not isinstance(key, Ed25519PublicKey):
        raise refuse(f"key of {purpose.certificate}", "an Ed25519 key", type(key).__name__)
    return key


def _issued(der: bytes, ca_der: bytes, purpose: Purpose, refuse: Refuse) -> tuple[x509.Certificate, x509.Certificate]:
    """The certificate and the CA, once the CA's signature is verified."""
    check = f"issuer of {purpose.certificate}"
    try:
        ca = x509.load_der_x509_certificate(ca_der)
        is_ca = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        subject = ca.subject.rfc4514_string()[:200]
    except _FOREIGN as error:
        raise refuse(check, "a CA's certificate", type(error).__name__) from None
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(ca)
    except _FOREIGN as error:
        raise refuse(check, subject, type(error).__name__) from None
    if not is_ca or certificate.version != x509.Version.v3:
        raise refuse(check, "a CA, and a certificate of version 3", "not so")
    return certificate, ca


def _check_purpose(certificate: x509.Certificate, purpose: Purpose, refuse: Refuse) -> None:
    """Check that the certificate is for this purpose only: not for a TLS server, not a CA, not another key's."""
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        named = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        unknown = [item for item in extensions if item.critical and isinstance(item.value, x509.UnrecognizedExtension)]
        holds = (
            not constraints.value.ca
            and usage.value.digital_signature
            and not usage.value.key_cert_sign
            and named.critical
            and [oid.dotted_string for oid in named.value] == [purpose.oid]
            and not unknown
        )
        seen = ", ".join(oid.dotted_string for oid in named.value)[:200]
    except _FOREIGN as error:
        holds, seen = False, type(error).__name__
    if not holds:
        raise refuse(f"purpose of {purpose.certificate}", f"{purpose.name} alone ({purpose.oid})", seen)
