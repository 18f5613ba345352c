"""The owner's certificates: her CA (pinned in manifests), the key server's, the grant key's and the audit key's.

The CA key is EC P-384. The server key is EC P-256, since every handshake signs with it. The others are Ed25519.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adyton.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.purpose_certificate import Purpose

DEFAULT_SERVER_NAME: Final = "adyton-key-server"
"""The name that a manifest without `server_name` pins."""
KEY_LABEL: Final = "keys"
"""A client of Gramine's protocol asks for `KEY.keys.SERVER_NAME` where a program may have several keys."""

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 825
_DNS_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_][A-Za-z0-9._-]{0,250}", re.ASCII)
_BACKDATE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A certificate and its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes


def make_ca(owner: str, now: datetime) -> Credential:
    """A new CA for this owner: P-384, path length 0, ten years."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, owner), x509.NameAttribute(NameOID.COMMON_NAME, f"{owner} CA")]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Credential(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def make_server(ca: Credential, names: Sequence[str], now: datetime) -> Credential:
    """A certificate for the key server under the CA.

    Manifests pin the first of `names`, or the default name where it is among them. For these two the certificate also
    has the wildcard that RA-TLS needs for several keys (`KEY.keys.NAME`).
    """
    if not names:
        raise UsageError("the key server needs a name", check="server name")
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives: list[x509.GeneralName] = []
    pinned = [name for name in names if name in (names[0], DEFAULT_SERVER_NAME)]
    for name in dict.fromkeys((*names, *(f"*.{KEY_LABEL}.{name}" for name in pinned))):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(_dns_name(name))
    builder = (
        _issued(ca, f"{names[0]}", key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return _sign(builder, ca, key)


def _dns_name(name: str) -> x509.DNSName:
    if not _DNS_NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is no name of a server",
            check="server name",
            expected="an IP address, or a DNS name of the characters a-z A-Z 0-9 . - _",
            seen=repr(name[:80]),
            remedy="write an international name in its ASCII form (xn--…)",
        )
    return x509.DNSName(name)


def make_audit(ca: Credential, owner: str, now: datetime) -> Credential:
    """The audit key's certificate under the CA. Its common name differs from the server's."""
    key = ed25519.Ed25519PrivateKey.generate()
    return _sign(_issued(ca, f"{owner} audit", key.public_key(), now, CA_DAYS - 1), ca, key)


def make_purpose(
    ca: Credential, public_key: ed25519.Ed25519PublicKey, owner: str, purpose: Purpose, now: datetime
) -> x509.Certificate:
    """The certificate of a key that has one purpose only, so no TLS client accepts it."""
    builder = _issued(ca, f"{owner} {purpose.name}", public_key, now, SERVER_DAYS).add_extension(
        x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose.oid)]), critical=True
    )
    return builder.sign(_ca_key(ca), hashes.SHA384())


def _issued(
    ca: Credential,
    common_name: str,
    public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    issuer = x509.load_pem_x509_certificate(ca.certificate_pem)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _BACKDATE, issuer.not_valid_before_utc))
        .not_valid_after(min(now + timedelta(days=days), issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )


def _sign(
    builder: x509.CertificateBuilder, ca: Credential, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> Credential:
    certificate = builder.sign(_ca_key(ca), hashes.SHA384())
    return Credential(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def _ca_key(ca: Credential) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(ca.key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoreError("the CA key is not an EC key", check="ca.key", expected="an EC P-384 key")
    return key


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
