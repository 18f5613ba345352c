"""The certificate chain of an attestation key (AK): from the key up to a root that is pinned for TPMs.

Certificates of TPM makers are signed with ECDSA P-256 or RSASSA, both over SHA-256. The AK's certificate must say that
it is for attestation (extended key usage tcg-kp-AIKCertificate), so that no other certificate under the same root
passes as one. Source: TCG EK and Platform Certificate profiles; TCG Infrastructure WG, SKAE and AIK certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from adyton.attest.certificates import Certificate, Window, parse_certificate
from adyton.attest.tpm.quote import MIN_RSA_BITS, rsassa_is_valid
from adyton.errors import BadChain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.attest.checks import Checks
    from adyton.attest.roots import TrustRoots
    from adyton.values import Digest

AIK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate."""

_KNOWN_EXTENSIONS: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
)
"""Extensions that may be critical: their meaning is looked at, or (the name of a TPM) does not matter here."""
_FOREIGN: Final = "refuse the evidence: its attestation key has no certificate under a root that you trust"


class AttestationKey(NamedTuple):
    """A key whose chain was verified."""

    key: object
    root: Digest
    simulated: bool
    windows: tuple[Window, ...]
    """When each certificate of the chain is valid. The caller compares them with its time."""


def check_ak_chain(checks: Checks, chain: Sequence[bytes], roots: TrustRoots) -> AttestationKey:
    """Verify an AK's chain (DER, leaf first, root last). Returns the key, its root, and what must be valid now."""
    names = ["AK certificate", *(f"AK issuer {place}" for place in range(1, len(chain) - 1)), "AK root"]
    certificates = [parse_certificate(raw, what) for raw, what in zip(chain, names, strict=True)]
    leaf, root = certificates[0], certificates[-1]
    _check_root(checks, root, roots)
    for depth, (certificate, issuer) in enumerate(zip(certificates, [*certificates[1:], root], strict=True)):
        _check_issued(checks, certificate, issuer)
        _check_critical(checks, certificate)
        if depth:
            _check_issuer(checks, certificate, depth - 1)
    _check_leaf(checks, leaf)
    return AttestationKey(
        key=leaf.key,
        root=root.fingerprint,
        simulated=root.fingerprint in roots.sim,
        windows=tuple(certificate.window for certificate in certificates),
    )


def _check_root(checks: Checks, root: Certificate, roots: TrustRoots) -> None:
    known = roots.sim | roots.tpm
    checks.require(
        "AK root: pinned",
        root.fingerprint in known,
        expected=known or "a root that the policy names: tpm_roots, or sim-tpm:<root>",
        seen=root.fingerprint,
        error=BadChain,
        message=f"the attestation key's chain ends in a root that nobody pinned: SHA-256 {root.fingerprint}",
        remedy=_FOREIGN,
    )


def _is_signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether the issuer's key signed: ECDSA P-256 or RSASSA, both with SHA-256."""
    key = issuer.key
    if not isinstance(key, rsa.RSAPublicKey):
        return certificate.is_signed_by(issuer)
    parsed = certificate.parsed
    return (
        key.key_size >= MIN_RSA_BITS
        and parsed.signature_algorithm_oid == SignatureAlgorithmOID.RSA_WITH_SHA256
        and rsassa_is_valid(key, parsed.signature, certificate.tbs)
    )


def _check_issued(checks: Checks, certificate: Certificate, issuer: Certificate) -> None:
    checks.require(
        f"{certificate.what}: issuer",
        certificate.issuer == issuer.subject,
        expected=issuer.subject,
        seen=certificate.issuer,
        error=BadChain,
        remedy=_FOREIGN,
    )
    checks.require(
        f"{certificate.what}: signature",
        _is_signed_by(certificate, issuer),
        expected=f"a signature by the {issuer.what}: ECDSA P-256 or RSASSA, with SHA-256",
        seen="a signature by another key, of another kind, or over other bytes",
        error=BadChain,
        remedy=_FOREIGN,
    )


def _check_critical(checks: Checks, certificate: Certificate) -> None:
    unknown = [
        extension.oid.dotted_string
        for extension in certificate.extensions
        if extension.critical and not isinstance(extension.value, _KNOWN_EXTENSIONS)
    ]
    checks.require(
        f"{certificate.what}: critical extensions",
        not unknown,
        expected="none that is unknown",
        seen=", ".join(unknown) or "none",
        error=BadChain,
    )


def _check_issuer(checks: Checks, certificate: Certificate, below: int) -> None:
    """A certificate that issued another: a CA, for signing certificates, with room for the `below` CAs under it."""
    found = [extension.value for extension in certificate.extensions]
    basic = next((value for value in found if isinstance(value, x509.BasicConstraints)), None)
    usage = next((value for value in found if isinstance(value, x509.KeyUsage)), None)
    checks.require(
        f"{certificate.what}: is a CA",
        basic is not None
        and basic.ca
        and (basic.path_length is None or basic.path_length >= below)
        and (usage is None or usage.key_cert_sign),
        expected=f"basic constraints with CA true and room for {below} below it; key usage keyCertSign",
        seen=f"{basic}, {usage}",
        error=BadChain,
        remedy=_FOREIGN,
    )


def _check_leaf(checks: Checks, leaf: Certificate) -> None:
    found = [extension.value for extension in leaf.extensions]
    usage = next((value for value in found if isinstance(value, x509.KeyUsage)), None)
    purposes = next((list(value) for value in found if isinstance(value, x509.ExtendedKeyUsage)), [])
    checks.require(
        "AK certificate: for attestation",
        AIK_PURPOSE in purposes and not leaf.is_ca and (usage is None or usage.digital_signature),
        expected=f"no CA, key usage digitalSignature, extended key usage {AIK_PURPOSE.dotted_string} (attestation key)",
        seen=f"CA {leaf.is_ca}, purposes {', '.join(item.dotted_string for item in purposes) or 'none'}",
        error=BadChain,
        remedy="certify a restricted signing key of the TPM as attestation key; no other certificate will do",
    )
