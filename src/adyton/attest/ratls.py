"""RA-TLS certificates as Gramine makes them: a self-signed certificate that carries quotes over its own key.

Two extensions: the older one holds a quote whose report data is the SHA-256 of the public key. The newer one (TCG DICE
tagged evidence, OID 2.23.133.5.4.9) holds CBOR `60000([quote, claims])`, whose quote's report data is the SHA-256 of
the claims, which hold the hash of the public key. Where the newer one is present, it alone counts.

A certificate binds its key only together with a verified report whose report data is `expected_report_data`.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adyton.attest.cbor import ARRAY, BYTES, MAP, TAGGED, TEXT, UNSIGNED, Reader, head, string
from adyton.attest.certificates import FOREIGN
from adyton.attest.evidence import parse_evidence
from adyton.errors import BadChain, MalformedQuote, Mismatch, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from adyton.attest.evidence import Evidence

EVIDENCE_OID: Final = x509.ObjectIdentifier("2.23.133.5.4.9")
LEGACY_OID: Final = x509.ObjectIdentifier("0.6.9.42.840.113741.1337.6")
"""As Gramine writes it: a whole OID element where only its content belongs."""
LEGACY_OID_INTENDED: Final = x509.ObjectIdentifier("1.2.840.113741.1337.6")

TAG: Final = 60000
PUBKEY_HASH: Final = "pubkey-hash"
MAX_CERTIFICATE_BYTES: Final = 128 << 10
MAX_EVIDENCE_BYTES: Final = 8192
"""Gramine's own verifier ignores a longer evidence extension, so none is made."""

_HASHES: Final = {1: "sha256", 7: "sha384", 8: "sha512"}
_NAME: Final = x509.Name(
    [
        x509.NameAttribute(NameOID.COMMON_NAME, "RATLS"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "GramineDevelopers"),
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
    ]
)


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"malformed RA-TLS certificate: {what}",
        check="RA-TLS certificate",
        expected="one certificate with TCG tagged evidence or a quote",
        seen=what,
        remedy="let the enclave make its certificate again; if it persists, the other side is no RA-TLS peer",
    )


def encode_claims(spki: bytes) -> bytes:
    """The claims that Gramine makes: the SHA-256 of the public key, CBOR, 51 bytes."""
    entry = head(ARRAY, 2) + head(UNSIGNED, 1) + string(BYTES, hashlib.sha256(spki).digest())
    return head(MAP, 1) + string(TEXT, PUBKEY_HASH.encode()) + string(BYTES, entry)


def encode_evidence(quote: bytes, claims: bytes) -> bytes:
    """The evidence extension's value: `60000([quote, claims])`."""
    return head(TAGGED, TAG) + head(ARRAY, 2) + string(BYTES, quote) + string(BYTES, claims)


def parse_evidence_extension(raw: bytes) -> tuple[bytes, bytes]:
    """Quote and claims of an evidence extension."""
    reader = Reader(raw, _malformed)
    if reader.head(TAGGED, "tag") != TAG:
        raise _malformed(f"evidence without the tag {TAG}")
    if reader.head(ARRAY, "array") != 2:
        raise _malformed("evidence that is no pair")
    quote = reader.string(BYTES, "quote")
    claims = reader.string(BYTES, "claims")
    reader.end("evidence")
    return quote, claims


def parse_claims(raw: bytes) -> Mapping[str, bytes]:
    """Name -> value of the claims, a CBOR map of texts to byte strings."""
    reader = Reader(raw, _malformed)
    found: dict[str, bytes] = {}
    for _ in range(reader.count(MAP, "map of claims", 64)):
        name = reader.text("name of a claim", MAX_EVIDENCE_BYTES)
        if name in found:
            raise _malformed(f"the claim {name[:40]!r} stands twice")
        found[name] = reader.string(BYTES, "value of a claim")
    reader.end("claims")
    return found


def _pubkey_hash(claims: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Name of the hash function and hash of the public key, which the claims must hold."""
    entry = claims.get(PUBKEY_HASH)
    if entry is None:
        raise _malformed("the claims do not name the public key")
    reader = Reader(entry, _malformed)
    if reader.head(ARRAY, "array") != 2:
        raise _malformed("the public key's hash is no pair")
    name = _HASHES.get(reader.head(UNSIGNED, "hash algorithm"))
    digest = reader.string(BYTES, "public key's hash")
    reader.end("public key's hash")
    if name is None or len(digest) != hashlib.new(name).digest_size:
        raise _malformed("the public key's hash is of an unknown algorithm or of another size")
    return name, digest


@dataclass(frozen=True, slots=True)
class RATLSCertificate:
    """A parsed RA-TLS certificate. The quotes in it are unverified."""

    der: bytes
    spki: bytes
    """SubjectPublicKeyInfo, DER."""
    not_before: datetime
    not_after: datetime
    evidence_quote: bytes | None
    claims_bytes: bytes | None
    claims: Mapping[str, bytes]
    legacy_quote: bytes | None

    @property
    def quote(self) -> bytes:
        """The quote that counts: the evidence extension's where there is one."""
        quote = self.evidence_quote if self.evidence_quote is not None else self.legacy_quote
        if quote is None:
            raise _malformed("it carries no quote")
        return quote

    @property
    def evidence(self) -> Evidence:
        """The quote that counts, parsed and unverified."""
        return parse_evidence(self.quote)

    @property
    def expected_report_data(self) -> bytes:
        """The 64 bytes that the quote's report data must be for this certificate's claims or key."""
        content = self.claims_bytes if self.claims_bytes is not None else self.spki
        return hashlib.sha256(content).digest() + bytes(32)


def make_certificate(
    private_key: ec.EllipticCurvePrivateKey,
    quote_of: Callable[[bytes], bytes],
    *,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Make an RA-TLS certificate (DER) with both extensions.

    `quote_of` turns 64 bytes of report data into a quote. It is called twice. The key is of P-384 or P-256.
    """
    if private_key.curve.name not in ("secp384r1", "secp256r1"):
        raise UsageError("an RA-TLS key is of P-384 or P-256", expected="P-384", seen=private_key.curve.name)
    public = private_key.public_key()
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    legacy = quote_of(hashlib.sha256(spki).digest() + bytes(32))
    claims = encode_claims(spki)
    evidence = encode_evidence(quote_of(hashlib.sha256(claims).digest() + bytes(32)), claims)
    if len(evidence) > MAX_EVIDENCE_BYTES:
        raise UsageError(
            f"the quote is too long for an RA-TLS certificate: {len(evidence)} bytes of evidence",
            expected=f"at most {MAX_EVIDENCE_BYTES} bytes",
            seen=f"{len(evidence)} bytes",
        )
    builder = (
        x509.CertificateBuilder(_NAME, _NAME, public, 1, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(x509.UnrecognizedExtension(LEGACY_OID, legacy), critical=False)
        .add_extension(x509.UnrecognizedExtension(EVIDENCE_OID, evidence), critical=False)
    )
    return builder.sign(private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _quotes(certificate: x509.Certificate) -> tuple[bytes | None, bytes | None]:
    """Values of the evidence and of the legacy extension."""
    evidence: bytes | None = None
    legacy: bytes | None = None
    for extension in certificate.extensions:
        if not isinstance(extension.value, x509.UnrecognizedExtension):
            continue
        if extension.oid == EVIDENCE_OID:
            evidence = extension.value.value
        elif extension.oid in (LEGACY_OID, LEGACY_OID_INTENDED):
            if legacy is not None:
                raise _malformed("two quotes under the older extension")
            legacy = extension.value.value
        elif extension.critical:
            raise _malformed(f"the unknown critical extension {extension.oid.dotted_string}")
    return evidence, legacy


def parse_certificate(raw: bytes, *, allow_legacy: bool = True) -> RATLSCertificate:
    """Parse an RA-TLS certificate (DER) strictly. Raises MalformedQuote or BadChain.

    Checked here: one certificate, self-signed with its own key of P-384 or P-256, the extensions' form, and that the
    claims name this very key. Not checked here: the quotes, and the dates (the caller has the clock).
    """
    if len(raw) > MAX_CERTIFICATE_BYTES:
        raise _malformed(f"{len(raw)} bytes")
    raw = bytes(raw)
    try:
        certificate = x509.load_der_x509_certificate(raw)
        key = certificate.public_key()
        evidence, legacy = _quotes(certificate)
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        algorithm = certificate.signature_hash_algorithm
    except FOREIGN as error:
        raise _malformed(type(error).__name__) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ("secp384r1", "secp256r1"):
        raise _malformed("the key is not of P-384 or P-256")
    if not isinstance(algorithm, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
        raise _malformed("it is not signed with SHA-2")
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        raise BadChain(
            "the RA-TLS certificate is not signed with its own key",
            check="RA-TLS certificate: signature",
            expected="a signature by the certificate's own key",
            seen="another signature",
        ) from None
    if evidence is None and (legacy is None or not allow_legacy):
        raise _malformed(
            "it carries no evidence" if legacy is None else "only the older extension, which is not allowed"
        )
    quote: bytes | None = None
    claims_bytes: bytes | None = None
    claims: Mapping[str, bytes] = {}
    if evidence is not None:
        quote, claims_bytes = parse_evidence_extension(evidence)
        claims = parse_claims(claims_bytes)
        name, digest = _pubkey_hash(claims)
        if not hmac.compare_digest(hashlib.new(name, spki).digest(), digest):
            raise Mismatch(
                "the evidence in the RA-TLS certificate is for another key",
                check="RA-TLS certificate: claims name its key",
                expected=hashlib.new(name, spki).hexdigest(),
                seen=digest.hex(),
                remedy="somebody put another enclave's evidence into this certificate: refuse it",
            )
    return RATLSCertificate(
        der=raw,
        spki=spki,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        evidence_quote=quote,
        claims_bytes=claims_bytes,
        claims=claims,
        legacy_quote=legacy,
    )
