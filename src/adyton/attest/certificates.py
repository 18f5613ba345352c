"""Certificates and CRLs as values: parsed once, compared by their bytes. `cryptography` parses them.

AMD's chip certificates have serial number 0, which RFC 5280 forbids and `cryptography` is about to refuse
(pyca/cryptography#12853). Such a certificate is read from a copy with serial number 1. The signature is always
checked over the original bytes.
"""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import SignatureAlgorithmOID

from adyton.attest import der
from adyton.attest.layout import MAX_CERTIFICATES, MAX_CHAIN_BYTES, MAX_CRL_BYTES
from adyton.errors import MalformedQuote
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_MAX_SERIAL_BYTES: Final = 32
"""RFC 5280 allows 20. Some makers write one more, and nobody needs a number that Python refuses to print."""
_NO_SPACE: Final = dict.fromkeys(map(ord, " \t\r\n"))
FOREIGN: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.UnsupportedGeneralNameType,
    x509.DuplicateExtension,
    x509.InvalidVersion,
)
_SHA256: Final = ec.ECDSA(hashes.SHA256())
ECDSA_SHA384: Final = ec.ECDSA(hashes.SHA384())
_PSS_SALT_BYTES: Final = 48
_ECDSA: Final = {
    ("secp256r1", SignatureAlgorithmOID.ECDSA_WITH_SHA256): _SHA256,
    ("secp384r1", SignatureAlgorithmOID.ECDSA_WITH_SHA384): ECDSA_SHA384,
}
"""The hash that goes with a curve in a certificate's or a CRL's signature."""


class Window(NamedTuple):
    """The time in which a document is valid. Both ends belong to it."""

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


_COMMON_NAME: Final = bytes.fromhex("550403")
_NAME_PARTS: Final = {
    _COMMON_NAME: "CN",
    bytes.fromhex("550406"): "C",
    bytes.fromhex("550407"): "L",
    bytes.fromhex("550408"): "ST",
    bytes.fromhex("55040a"): "O",
    bytes.fromhex("55040b"): "OU",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A distinguished name as it stands in a certificate. Two are equal where their DER is."""

    der: bytes

    def parts(self) -> list[tuple[bytes, str]]:
        """Every attribute: the bytes of its OID, and its text."""
        found = []
        for set_tag, rdn in der.children(der.only(self.der, der.SEQUENCE)):
            for tag, pair in der.children(rdn):
                items = der.children(pair) if tag == der.SEQUENCE and set_tag == der.SET else []
                if len(items) != 2 or items[0][0] != der.OID:
                    raise _malformed("distinguished name", "an attribute that is no pair")
                found.append((items[0][1], items[1][1].decode("utf-8", "replace")))
        return found

    @property
    def common_name(self) -> str:
        """The common name. Empty where there is none or several."""
        names = [text for oid, text in self.parts() if oid == _COMMON_NAME]
        return names[0] if len(names) == 1 else ""

    def rfc4514_string(self) -> str:
        """The name for a person to read, most specific attribute first."""
        try:
            parts = self.parts()
        except MalformedQuote:
            return f"unreadable: {self.der.hex()}"
        return ",".join(f"{_NAME_PARTS.get(oid, oid.hex())}={text}" for oid, text in reversed(parts))

    def __str__(self) -> str:
        return self.rfc4514_string()


class _Positions(NamedTuple):
    """Where things stand in the DER of a certificate: start and end."""

    tbs: slice
    serial: slice
    issuer: slice
    subject: slice


_AUTHORITY_KEY_IDENTIFIER: Final = bytes.fromhex("551d23")
_AUTHORITY_SERIAL: Final = 0x82
_CERTIFICATE_EXTENSIONS: Final = 0xA3
_CRL_EXTENSIONS: Final = 0xA0


def _check_authority_serial(tbs: bytes, tag: int, what: str) -> None:
    """Refuse an authority key identifier whose serial number is not positive: the library only warns about it.

    `tag` is that of the extensions inside `tbs`.
    """
    for found, explicit in der.children(der.only(tbs, der.SEQUENCE)):
        if found != tag:
            continue
        for _, extension in der.children(der.only(explicit, der.SEQUENCE)):
            parts = der.children(extension)
            if len(parts) < 2 or parts[0] != (der.OID, _AUTHORITY_KEY_IDENTIFIER):
                continue
            for part, content in der.children(der.only(parts[-1][1], der.SEQUENCE)):
                if part == _AUTHORITY_SERIAL and (content[:1] >= b"\x80" or not any(content)):
                    raise _malformed(what, "an authority's serial number that is none")


def _positions(raw: bytes, what: str) -> _Positions:
    """Walk the certificate's outer structure: tbs = [version], serial, algorithm, issuer, validity, subject, ..."""
    tag, start, end = der.element(raw, 0, len(raw))
    inner, at, tbs_end = der.element(raw, start, end)
    if tag != der.SEQUENCE or inner != der.SEQUENCE or end != len(raw):
        raise _malformed(what, "not one certificate")
    tag, content, after = der.element(raw, at, tbs_end)
    if tag == der.VERSION:
        tag, content, after = der.element(raw, after, tbs_end)
    if tag != der.INTEGER or not 1 <= after - content <= _MAX_SERIAL_BYTES or raw[content] & 0x80:
        raise _malformed(what, "a serial number that is none")
    spans = []
    next_at = after
    for _ in range(4):
        begin = next_at
        _, _, next_at = der.element(raw, begin, tbs_end)
        spans.append(slice(begin, next_at))
    return _Positions(slice(start, tbs_end), slice(content, after), spans[1], spans[3])


@dataclass(frozen=True)
class Certificate:
    """One X.509 certificate."""

    der: bytes
    what: str

    def named(self, what: str) -> Certificate:
        """The same certificate in another place, with all that has been read of it."""
        other = Certificate(self.der, what)
        vars(other).update({name: value for name, value in vars(self).items() if name != "what"})
        return other

    @cached_property
    def _signed_by(self) -> dict[bytes, bool]:
        """Public keys that the signature was checked against, and the outcome."""
        return {}

    @cached_property
    def _at(self) -> _Positions:
        return _positions(self.der, self.what)

    @cached_property
    def parsed(self) -> x509.Certificate:
        """As `cryptography` reads it (with serial number 1 where the certificate says 0)."""
        raw, at = self.der, self._at.serial
        _check_authority_serial(self.tbs, _CERTIFICATE_EXTENSIONS, self.what)
        if raw[at] == b"\x00":
            raw = raw[: at.start] + b"\x01" + raw[at.stop :]
        return x509.load_der_x509_certificate(raw)

    @property
    def tbs(self) -> bytes:
        """The signed part, as it stands in the certificate."""
        return self.der[self._at.tbs]

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

    @cached_property
    def subject(self) -> Name:
        """Subject."""
        return Name(self.der[self._at.subject])

    @cached_property
    def issuer(self) -> Name:
        """Issuer."""
        return Name(self.der[self._at.issuer])

    @property
    def serial(self) -> int:
        """Serial number."""
        return int.from_bytes(self.der[self._at.serial], "big")

    @cached_property
    def common_name(self) -> str:
        """The subject's common name. Empty where there is none or several."""
        return self.subject.common_name

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
        """Whether the signature is of the issuer's key.

        ECDSA of P-256 with SHA-256 (Intel), of P-384 with SHA-384 (NVIDIA), or RSA-PSS with SHA-384 (AMD).
        """
        outcome = self._signed_by.get(issuer.spki)
        if outcome is None:
            parsed = self.parsed
            algorithm, parameters = parsed.signature_algorithm_oid, parsed.signature_algorithm_parameters
            outcome = _is_signed(issuer.key, algorithm, parsed.signature, self.tbs, parameters)
            self._signed_by[issuer.spki] = outcome
        return outcome


def _is_signed(
    key: object, algorithm: x509.ObjectIdentifier, signature: bytes, data: bytes, parameters: object
) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            hash_of = _ECDSA.get((key.curve.name, algorithm))
            if hash_of is None:
                return False
            key.verify(signature, data, hash_of)
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


Known: TypeAlias = dict[bytes, Certificate]
"""Certificates that were parsed before, by their DER: one verification meets the same ones several times."""


def parse_certificate(raw: bytes, what: str, known: Known | None = None) -> Certificate:
    """Parse one DER certificate. Raises MalformedQuote."""
    if known is not None and raw in known:
        return known[raw].named(what)
    if len(raw) > MAX_CHAIN_BYTES:
        raise _malformed(what, f"{len(raw)} bytes")
    certificate = Certificate(bytes(raw), what)
    try:
        _ = certificate.extensions, certificate.key, certificate.common_name
        _ = certificate.window, certificate.parsed.signature_algorithm_parameters
    except MalformedQuote as error:
        raise _malformed(what, error.seen) from None
    except FOREIGN as error:
        raise _malformed(what, type(error).__name__) from None
    _ = certificate._signed_by
    if known is not None:
        known[certificate.der] = certificate
    return certificate


def split_pem(text: str | bytes, what: str, label: str = "CERTIFICATE") -> list[bytes]:
    """The DER inside PEM blocks. Between and behind them only white space and NUL are allowed."""
    if len(text) > (MAX_CHAIN_BYTES if label == "CERTIFICATE" else 2 * MAX_CRL_BYTES):
        raise _malformed(what, f"{len(text)} characters")
    if isinstance(text, bytes):
        try:
            text = text.decode("ascii")
        except UnicodeDecodeError:
            raise _malformed(what, "not ASCII") from None
    text = text.rstrip("\x00 \t\r\n").lstrip(" \t\r\n")
    begin, end = f"-----BEGIN {label}-----", f"-----END {label}-----"
    blocks: list[bytes] = []
    at = 0
    while at < len(text):
        stop = text.find(end, at)
        if stop < 0 or not text.startswith(begin, at):
            raise _malformed(what, "something that is no PEM block")
        try:
            block = text[at + len(begin) : stop].translate(_NO_SPACE)
            blocks.append(binascii.a2b_base64(block, strict_mode=True))
        except (binascii.Error, ValueError):
            raise _malformed(what, "bad base64") from None
        if binascii.b2a_base64(blocks[-1], newline=False).decode() != block:
            raise _malformed(what, "base64 that is not in its one form")
        if len(blocks) > MAX_CERTIFICATES or not block:
            raise _malformed(what, f"an empty block, or more than {MAX_CERTIFICATES}")
        at = stop + len(end)
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
    return blocks


def leaf_first(text: str) -> str:
    """A PEM chain with its leaf first, as this package reads chains: one that begins with its root is turned around.

    A text in which no order can be seen comes back as it is: whoever reads it refuses it.
    """
    try:
        found = [parse_certificate(block, "chain") for block in split_pem(text, "chain")]
    except MalformedQuote:
        return text
    if len(found) < 2 or found[0].issuer != found[0].subject or found[-1].issuer == found[-1].subject:
        return text
    return "".join(certificate.pem for certificate in reversed(found))


def parse_chain(
    text: str | bytes, names: Sequence[str], what: str, known: Known | None = None
) -> tuple[Certificate, ...]:
    """Parse a PEM chain that must have exactly the certificates named, in that order (leaf first)."""
    blocks = split_pem(text, what)
    if len(blocks) != len(names):
        raise MalformedQuote(
            f"the {what} has {len(blocks)} certificates, expected {len(names)}",
            check=f"length of the {what}",
            expected=", ".join(names),
            seen=f"{len(blocks)} certificates",
        )
    return tuple(parse_certificate(block, name, known) for block, name in zip(blocks, names, strict=True))


@dataclass(frozen=True)
class CRL:
    """One certificate revocation list."""

    der: bytes
    what: str
    issuer: Name
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


def _crl_issuer(tbs: bytes) -> Name:
    """tbsCertList = [version], algorithm, issuer, ..."""
    _, at, end = der.element(tbs, 0, len(tbs))
    tag, _, after = der.element(tbs, at, end)
    if tag == der.INTEGER:
        _, _, after = der.element(tbs, after, end)
    _, _, name_end = der.element(tbs, after, end)
    return Name(tbs[after:name_end])


def parse_crl(raw: bytes, what: str) -> CRL:
    """Parse a DER CRL that is complete and direct, with a next update. Raises MalformedQuote."""
    if len(raw) > MAX_CRL_BYTES:
        raise _malformed(what, f"{len(raw)} bytes")
    try:
        crl = x509.load_der_x509_crl(bytes(raw))
        _check_authority_serial(crl.tbs_certlist_bytes, _CRL_EXTENSIONS, what)
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
    except MalformedQuote as error:
        raise _malformed(what, error.seen) from None
    except FOREIGN as error:
        raise _malformed(what, type(error).__name__) from None
    if after is None:
        raise _malformed(what, "no next update")
    window = Window(what, crl.last_update_utc, after)
    return CRL(bytes(raw), what, _crl_issuer(crl.tbs_certlist_bytes), window, frozenset(revoked), number, crl)


def decode_crl(raw: bytes) -> bytes:
    """The DER of a CRL that came as DER, as PEM, or as either in hex. Its content decides which."""
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
        found = bytes.fromhex(raw.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        found = b""
    if found.startswith(b"-----BEGIN"):
        return decode_crl(found)
    if not found:
        raise _malformed("CRL", "neither DER, PEM nor hex")
    return found
