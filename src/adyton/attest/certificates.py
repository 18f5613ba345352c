"""Certificates and CRLs as values: parsed once, compared by their bytes; parsing is `cryptography`'s.

AMD's chip certificates have serial number 0, which RFC 5280 forbids and `cryptography` is about to refuse
(pyca/cryptography#12853). Such a certificate is read from a copy with serial number 1; the signature is always
checked over the original bytes.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from adyton.attest import der
from adyton.attest.layout import MAX_CERTIFICATES, MAX_CHAIN_BYTES, MAX_CRL_BYTES
from adyton.errors import MalformedQuote
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_BLOCK: Final = re.compile(
    r"\s*-----BEGIN (CERTIFICATE|X509 CRL)-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END \1-----", re.ASCII
)
FOREIGN: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.UnsupportedGeneralNameType,
    x509.DuplicateExtension,
)
_SHA256: Final = ec.ECDSA(hashes.SHA256())
_SHA384: Final = ec.ECDSA(hashes.SHA384())
_PSS_SALT_BYTES: Final = 48


class Window(NamedTuple):
    """When a document is valid; both ends belong to it."""

    what: str
    not_before: datetime
    not_after: datetime


def _malformed(what: str, seen: object) -> MalformedQuote:
    return MalformedQuote(f"the {what} does not parse: {seen}", check=f"parse of the {what}", seen=seen)


def ecdsa_is_valid(
    key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, algorithm: ec.ECDSA = _SHA256
) -> bool:
    """Whether a raw r,s signature (equal halves, big-endian) over `data` is the key's."""
    half = len(signature) // 2
    pair = utils.encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
    try:
        key.verify(pair, data, algorithm)
    except InvalidSignature:
        return False
    return True


def load_p256(point: bytes) -> ec.EllipticCurvePublicKey | None:
    """A P-256 public key from x, y (64 bytes), or None where that is no point of the curve."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError:
        return None


@dataclass(frozen=True)
class Certificate:
    """One X.509 certificate."""

    der: bytes
    what: str

    @cached_property
    def parsed(self) -> x509.Certificate:
        """As `cryptography` reads it (with serial number 1 where the certificate says 0)."""
        return x509.load_der_x509_certificate(_without_serial_zero(self.der, self._tbs[0], self._tbs[1]))

    @cached_property
    def _tbs(self) -> tuple[int, int]:
        tag, start, end = der.element(self.der, 0, len(self.der))
        inner, _, inner_end = der.element(self.der, start, end)
        if tag != der.SEQUENCE or inner != der.SEQUENCE or end != len(self.der):
            raise _malformed(self.what, "not one certificate")
        return start, inner_end

    @property
    def tbs(self) -> bytes:
        """The signed part, as it stands in the certificate."""
        return self.der[slice(*self._tbs)]

    @cached_property
    def fingerprint(self) -> Digest:
        """SHA-256 of the DER."""
        return Digest(hashlib.sha256(self.der).digest())

    @property
    def pem(self) -> str:
        """The certificate as PEM, from its original bytes."""
        text = binascii.b2a_base64(self.der, newline=False).decode()
        lines = [text[at : at + 64] for at in range(0, len(text), 64)]
        return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])

    @property
    def subject(self) -> x509.Name:
        """Subject."""
        return self.parsed.subject

    @property
    def issuer(self) -> x509.Name:
        """Issuer."""
        return self.parsed.issuer

    @property
    def serial(self) -> int:
        """Serial number."""
        return 0 if _has_serial_zero(self.der, self._tbs[0], self._tbs[1]) else self.parsed.serial_number

    @cached_property
    def common_name(self) -> str:
        """The subject's common name; empty where there is none or several."""
        names = self.parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        value = names[0].value if len(names) == 1 else ""
        return value if isinstance(value, str) else ""

    @property
    def window(self) -> Window:
        """When it is valid."""
        return Window(self.what, self.parsed.not_valid_before_utc, self.parsed.not_valid_after_utc)

    @cached_property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        return self.parsed.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @cached_property
    def key(self) -> object:
        """The public key."""
        return self.parsed.public_key()

    @property
    def p256(self) -> ec.EllipticCurvePublicKey | None:
        """The public key, where it is of P-256."""
        key = self.key
        return key if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" else None

    @property
    def p384(self) -> ec.EllipticCurvePublicKey | None:
        """The public key, where it is of P-384."""
        key = self.key
        return key if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1" else None

    @cached_property
    def extensions(self) -> x509.Extensions:
        """Every extension."""
        return self.parsed.extensions

    def has_extensions(self, kinds: Sequence[type[x509.ExtensionType]]) -> bool:
        """Whether every one of these extensions is there."""
        return {type(extension.value) for extension in self.extensions} >= set(kinds)

    @property
    def is_ca(self) -> bool:
        """Whether basicConstraints says so."""
        for extension in self.extensions:
            if isinstance(extension.value, x509.BasicConstraints):
                return extension.value.ca
        return False

    def unrecognized(self, oid: str) -> bytes | None:
        """The value of an extension that `cryptography` does not know, or None."""
        for extension in self.extensions:
            if extension.oid.dotted_string == oid and isinstance(extension.value, x509.UnrecognizedExtension):
                return extension.value.value
        return None

    def is_signed_by(self, issuer: Certificate) -> bool:
        """Whether the signature is of the issuer's key: ECDSA P-256 with SHA-256, or RSA-PSS with SHA-384 (AMD)."""
        return _is_signed(
            issuer.key, self.parsed.signature_algorithm_oid, self.parsed.signature, self.tbs, self._pss_parameters
        )

    @property
    def _pss_parameters(self) -> object:
        return self.parsed.signature_algorithm_parameters


def _is_signed(
    key: object, algorithm: x509.ObjectIdentifier, signature: bytes, data: bytes, parameters: object
) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA256 or key.curve.name != "secp256r1":
                return False
            key.verify(signature, data, _SHA256)
            return True
        if isinstance(key, rsa.RSAPublicKey):
            if algorithm != SignatureAlgorithmOID.RSASSA_PSS or key.key_size < 4096:
                return False
            if not isinstance(parameters, padding.PSS):
                return False
            pss = padding.PSS(padding.MGF1(hashes.SHA384()), _PSS_SALT_BYTES)
            key.verify(signature, data, pss, hashes.SHA384())
            return True
    except InvalidSignature:
        return False
    return False


def _has_serial_zero(raw: bytes, start: int, end: int) -> bool:
    _, at, _ = der.element(raw, start, end)
    tag, content, after = der.element(raw, at, end)
    if tag == 0xA0:
        tag, content, after = der.element(raw, after, end)
    return tag == der.INTEGER and raw[content:after] == b"\x00"


def _without_serial_zero(raw: bytes, start: int, end: int) -> bytes:
    if not _has_serial_zero(raw, start, end):
        return raw
    _, at, _ = der.element(raw, start, end)
    tag, content, after = der.element(raw, at, end)
    if tag == 0xA0:
        _, content, _ = der.element(raw, after, end)
    return raw[:content] + b"\x01" + raw[content + 1 :]


def parse_certificate(raw: bytes, what: str) -> Certificate:
    """Parse one DER certificate; raises MalformedQuote."""
    if len(raw) > MAX_CHAIN_BYTES:
        raise _malformed(what, f"{len(raw)} bytes")
    certificate = Certificate(bytes(raw), what)
    try:
        _ = certificate.extensions, certificate.key, certificate.common_name, certificate.subject, certificate.issuer
        _ = certificate.window, certificate.parsed.signature_algorithm_parameters
    except FOREIGN as error:
        raise _malformed(what, type(error).__name__) from None
    return certificate


def split_pem(text: str | bytes, what: str, label: str = "CERTIFICATE") -> list[bytes]:
    """The DER inside PEM blocks; between and behind them only white space and NUL is allowed."""
    if len(text) > (MAX_CHAIN_BYTES if label == "CERTIFICATE" else 2 * MAX_CRL_BYTES):
        raise _malformed(what, f"{len(text)} characters")
    if isinstance(text, bytes):
        try:
            text = text.decode("ascii")
        except UnicodeDecodeError:
            raise _malformed(what, "not ASCII") from None
    text = text.rstrip("\x00 \t\r\n")
    blocks: list[bytes] = []
    at = 0
    while at < len(text):
        found = _BLOCK.match(text, at)
        if found is None or found[1] != label:
            raise _malformed(what, "something that is no PEM block")
        try:
            blocks.append(binascii.a2b_base64("".join(found[2].split()), strict_mode=True))
        except binascii.Error:
            raise _malformed(what, "bad base64") from None
        if len(blocks) > MAX_CERTIFICATES:
            raise _malformed(what, f"more than {MAX_CERTIFICATES} blocks")
        at = found.end()
    return blocks


def parse_chain(text: str | bytes, names: Sequence[str], what: str) -> tuple[Certificate, ...]:
    """Parse a PEM chain that must have exactly the certificates named, in that order (leaf first)."""
    blocks = split_pem(text, what)
    if len(blocks) != len(names):
        raise MalformedQuote(
            f"the {what} has {len(blocks)} certificates, expected {len(names)}",
            check=f"length of the {what}",
            expected=", ".join(names),
            seen=f"{len(blocks)} certificates",
        )
    return tuple(parse_certificate(block, name) for block, name in zip(blocks, names, strict=True))


@dataclass(frozen=True)
class CRL:
    """One certificate revocation list."""

    der: bytes
    what: str
    issuer: x509.Name
    window: Window
    revoked: frozenset[int]
    number: int | None
    _parsed: x509.CertificateRevocationList

    def is_signed_by(self, issuer: Certificate) -> bool:
        """Whether the signature is of the issuer's key."""
        return _is_signed(
            issuer.key,
            self._parsed.signature_algorithm_oid,
            self._parsed.signature,
            self._parsed.tbs_certlist_bytes,
            self._parsed.signature_algorithm_parameters,
        )


_CRL_EXTENSIONS: Final = (x509.CRLNumber, x509.AuthorityKeyIdentifier)


def parse_crl(raw: bytes, what: str) -> CRL:
    """Parse a DER CRL that is complete and direct, with a next update; raises MalformedQuote."""
    if len(raw) > MAX_CRL_BYTES:
        raise _malformed(what, f"{len(raw)} bytes")
    try:
        crl = x509.load_der_x509_crl(bytes(raw))
        number: int | None = None
        for extension in crl.extensions:
            if isinstance(extension.value, x509.CRLNumber):
                number = extension.value.crl_number
            elif extension.critical or isinstance(extension.value, x509.DeltaCRLIndicator):
                raise _malformed(what, f"extension {extension.oid.dotted_string} restricts it")
        revoked: set[int] = set()
        for entry in crl:
            if any(extension.critical for extension in entry.extensions):
                raise _malformed(what, "an entry with a critical extension")
            revoked.add(entry.serial_number)
        after = crl.next_update_utc
        _ = crl.signature_algorithm_parameters
    except FOREIGN as error:
        raise _malformed(what, type(error).__name__) from None
    if after is None:
        raise _malformed(what, "no next update")
    window = Window(what, crl.last_update_utc, after)
    return CRL(bytes(raw), what, crl.issuer, window, frozenset(revoked), number, crl)


def decode_crl(raw: bytes) -> bytes:
    """The DER of a CRL that a service delivered as DER, PEM or hex text; decided by its content."""
    if len(raw) > 2 * MAX_CRL_BYTES:
        raise _malformed("CRL", f"{len(raw)} bytes")
    head = raw.lstrip()
    if head.startswith(b"-----BEGIN"):
        blocks = split_pem(raw, "CRL", "X509 CRL")
        if len(blocks) != 1:
            raise _malformed("CRL", f"{len(blocks)} PEM blocks")
        return blocks[0]
    if raw[:1] == b"\x30" and raw[1:2] >= b"\x80":
        return raw
    try:
        return bytes.fromhex(raw.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        raise _malformed("CRL", "neither DER, PEM nor hex") from None
