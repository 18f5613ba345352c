"""RA-TLS certificates: as Gramine makes them, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adyton.attest import dcap, ratls, sgx
from adyton.attest.assess import assess
from adyton.attest.evidence_policy import Policy
from adyton.attest.ratls import EVIDENCE_OID, LEGACY_OID, LEGACY_OID_INTENDED
from adyton.errors import BadChain, Error, MalformedQuote, Mismatch, UsageError
from tests.support.evidence_factory import MRENCLAVE, Scenario

KEY = ec.derive_private_key(11, ec.SECP384R1())
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
LAST = datetime(2027, 1, 1, tzinfo=UTC)
SPKI = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def quote_of(report_data: bytes) -> bytes:
    """A quote of the test vendor, small enough for two in one certificate."""
    scenario = Scenario()
    scenario.body["report_data"] = report_data
    return scenario.built().quote


def certificate(key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    """A good certificate."""
    return ratls.make_certificate(key, quote_of, not_before=FIRST, not_after=LAST)


def with_extensions(
    extensions: list[tuple[x509.ObjectIdentifier, bytes]],
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    critical: bool = False,
) -> bytes:
    """A self-signed certificate with these extensions."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RATLS")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, FIRST, LAST)
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_certificate_made_here_parses_verifies_and_binds(curve: ec.EllipticCurve) -> None:
    """Made, parsed, its quote verified, its key bound."""
    raw = certificate(ec.derive_private_key(11, curve))
    parsed = ratls.parse_certificate(raw)
    assert parsed.evidence_quote is not None
    assert parsed.legacy_quote is not None
    scenario = Scenario()
    built = scenario.built()
    report = dcap.verify(sgx.parse_quote(parsed.quote), built.collateral, built.roots, built.now)
    assert report.report_data == parsed.expected_report_data
    assert (parsed.not_before, parsed.not_after) == (FIRST, LAST)


def test_certificate_has_gramines_form() -> None:
    """Names, serial, extensions and their order are those of the fact sheet."""
    parsed = x509.load_der_x509_certificate(certificate())
    assert parsed.serial_number == 1
    assert [(item.oid, item.value) for item in parsed.subject] == [
        (NameOID.COMMON_NAME, "RATLS"),
        (NameOID.ORGANIZATION_NAME, "GramineDevelopers"),
        (NameOID.COUNTRY_NAME, "US"),
    ]
    assert parsed.issuer == parsed.subject
    assert [extension.oid.dotted_string for extension in parsed.extensions] == [
        "2.5.29.19",
        "2.5.29.14",
        "2.5.29.35",
        LEGACY_OID.dotted_string,
        EVIDENCE_OID.dotted_string,
    ]
    assert not any(extension.critical for extension in parsed.extensions)
    assert bytes.fromhex("060b06092a864886f84d8a3906") in certificate()


def test_evidence_is_the_cbor_of_the_specification() -> None:
    """Our encoding is what an independent CBOR library makes and reads."""
    claims = ratls.encode_claims(SPKI)
    assert len(claims) == 51
    entry = cbor2.dumps([1, hashlib.sha256(SPKI).digest()])
    assert claims == cbor2.dumps({"pubkey-hash": entry})
    quote = bytes(1036)
    evidence = ratls.encode_evidence(quote, claims)
    assert evidence == cbor2.dumps(cbor2.CBORTag(60000, [quote, claims]))
    assert evidence[:7].hex() == "d9ea608259040c"
    assert ratls.parse_evidence_extension(evidence) == (quote, claims)


@pytest.mark.shared_vectors
def test_certificate_of_gramine_parses_and_binds(shared_vectors: Path) -> None:
    """The certificate that Gramine's own library made: both quotes, and the hashes of the worked example."""
    raw = (shared_vectors / "gramine/ratls/real.crt.der").read_bytes()
    parsed = ratls.parse_certificate(raw)
    assert len(parsed.spki) == 120
    assert parsed.legacy_quote is not None
    assert len(parsed.legacy_quote) == len(parsed.quote) == 1036
    bound = hashlib.sha256(parsed.spki).hexdigest().upper()
    assert bound == "3A8B6EAFB38996A8E3027860A0840ADBC5AA88F0FE0CB66E8DC45FD3726660A6"
    # report data stands at 368 in a quote; this one's signature data is a stand-in, so it is not parsed further
    assert parsed.quote[368:432] == parsed.expected_report_data
    assert parsed.legacy_quote[368:432].hex().upper() == bound + "00" * 32
    assert parsed.expected_report_data[:32].hex().startswith("7e4c67f2abbe72ef")


@pytest.mark.parametrize("oid", [LEGACY_OID, LEGACY_OID_INTENDED])
def test_certificate_with_the_older_extension_alone_binds_its_key(oid: x509.ObjectIdentifier) -> None:
    """The older extension counts where the newer is absent, unless it is not allowed."""
    quote = quote_of(hashlib.sha256(SPKI).digest() + bytes(32))
    raw = with_extensions([(oid, quote)])
    parsed = ratls.parse_certificate(raw)
    assert parsed.quote == quote
    assert parsed.expected_report_data == hashlib.sha256(SPKI).digest() + bytes(32)
    with pytest.raises(MalformedQuote, match="not allowed"):
        ratls.parse_certificate(raw, allow_legacy=False)


def _claims(entry: object, **more: bytes) -> bytes:
    return cbor2.dumps({"pubkey-hash": entry if isinstance(entry, bytes) else cbor2.dumps(entry)} | more)


GOOD_HASH = hashlib.sha256(SPKI).digest()
SPOILT_EVIDENCE: dict[str, Callable[[], bytes]] = {
    "another-tag": lambda: cbor2.dumps(cbor2.CBORTag(60001, [b"q", ratls.encode_claims(SPKI)])),
    "no-tag": lambda: cbor2.dumps([b"q", ratls.encode_claims(SPKI)]),
    "three-items": lambda: cbor2.dumps(cbor2.CBORTag(60000, [b"q", ratls.encode_claims(SPKI), b""])),
    "indefinite-array": lambda: bytes.fromhex("d9ea609f4171") + ratls.encode_claims(SPKI) + b"\xff",
    "trailing-bytes": lambda: ratls.encode_evidence(b"q", ratls.encode_claims(SPKI)) + b"\x00",
    "long-head": lambda: bytes.fromhex("d9ea6082580171") + b"\x58\x33" + ratls.encode_claims(SPKI),
    "cut": lambda: ratls.encode_evidence(b"q", ratls.encode_claims(SPKI))[:-1],
    "huge-length": lambda: bytes.fromhex("d9ea60825bffffffffffffffff"),
    "no-pubkey-hash": lambda: ratls.encode_evidence(b"q", cbor2.dumps({"nonce": b"n" * 32})),
    "empty-claims": lambda: ratls.encode_evidence(b"q", cbor2.dumps({})),
    "pubkey-hash-twice": lambda: ratls.encode_evidence(
        b"q", b"\xa2" + ratls.encode_claims(SPKI)[1:] + ratls.encode_claims(SPKI)[1:]
    ),
    "unknown-hash": lambda: ratls.encode_evidence(b"q", _claims([2, GOOD_HASH])),
    "short-hash": lambda: ratls.encode_evidence(b"q", _claims([1, GOOD_HASH[:16]])),
    "hash-of-another-algorithm": lambda: ratls.encode_evidence(b"q", _claims([7, GOOD_HASH])),
    "integer-claim": lambda: ratls.encode_evidence(b"q", cbor2.dumps({"pubkey-hash": 1})),
    "text-is-not-utf8": lambda: ratls.encode_evidence(b"q", b"\xa1\x61\xff\x40"),
    "many-claims": lambda: ratls.encode_evidence(b"q", b"\xb9\xff\xff"),
}


@pytest.mark.parametrize("name", sorted(SPOILT_EVIDENCE))
def test_evidence_that_is_not_strict_is_refused(name: str) -> None:
    """Whatever departs from the form is refused, and there is no falling back to the older extension."""
    legacy = quote_of(hashlib.sha256(SPKI).digest() + bytes(32))
    raw = with_extensions([(EVIDENCE_OID, SPOILT_EVIDENCE[name]()), (LEGACY_OID, legacy)])
    with pytest.raises(MalformedQuote):
        ratls.parse_certificate(raw)


@pytest.mark.parametrize(("number", "algorithm"), [(1, "sha256"), (7, "sha384"), (8, "sha512")])
def test_claims_may_hash_the_key_with_each_known_algorithm(number: int, algorithm: str) -> None:
    """SHA-256, SHA-384 and SHA-512, and other claims beside, as the specification allows."""
    digest = hashlib.new(algorithm, SPKI).digest()
    evidence = ratls.encode_evidence(b"q", _claims([number, digest], nonce=b"n"))
    parsed = ratls.parse_certificate(with_extensions([(EVIDENCE_OID, evidence)]))
    assert parsed.claims["nonce"] == b"n"


def test_evidence_for_another_key_is_refused() -> None:
    """Somebody else's evidence in a certificate of one's own is refused."""
    evidence = ratls.encode_evidence(b"q", ratls.encode_claims(b"another key"))
    with pytest.raises(Mismatch) as caught:
        ratls.parse_certificate(with_extensions([(EVIDENCE_OID, evidence)]))
    assert caught.value.check == "RA-TLS certificate: claims name its key"


@pytest.mark.parametrize("newer", [True, False])
def test_quote_made_for_other_report_data_does_not_bind(newer: bool) -> None:
    """All 64 bytes of report data count, also those that Gramine's own verifier does not look at."""
    content = ratls.encode_claims(SPKI) if newer else SPKI
    quote = quote_of(hashlib.sha256(content).digest() + bytes(31) + b"\x01")
    value = ratls.encode_evidence(quote, content) if newer else quote
    parsed = ratls.parse_certificate(with_extensions([(EVIDENCE_OID if newer else LEGACY_OID, value)]))
    built = Scenario().built()
    bound = parsed.expected_report_data
    policy = Policy.from_dict({"tees": ["sgx"], "measurements": [MRENCLAVE.hex()]})
    found = assess(parsed.evidence, built.collateral, built.roots, policy, built.now, report_data=bound)
    assert found.claims is None
    assert [check.name for check in found.checks if not check.ok] == ["report data"]


def test_certificate_not_signed_with_its_own_key_is_refused() -> None:
    """A broken self-signature is refused, though Gramine's verifier accepts it."""
    raw = bytearray(certificate())
    raw[-1] ^= 1
    with pytest.raises(Error):
        ratls.parse_certificate(bytes(raw))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RATLS")])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, FIRST, LAST)
    foreign = builder.sign(ec.derive_private_key(3, ec.SECP384R1()), hashes.SHA256())
    with pytest.raises(BadChain):
        ratls.parse_certificate(foreign.public_bytes(serialization.Encoding.DER))


def test_two_certificates_in_a_row_are_refused() -> None:
    """Exactly one certificate, nothing behind it."""
    with pytest.raises(MalformedQuote):
        ratls.parse_certificate(certificate() + certificate())


def test_certificate_of_another_curve_is_refused() -> None:
    """Keys are of P-384 or P-256, when making and when parsing."""
    key = ec.derive_private_key(11, ec.SECP521R1())
    with pytest.raises(UsageError):
        certificate(key)
    with pytest.raises(MalformedQuote, match="P-384"):
        ratls.parse_certificate(with_extensions([], key=key))


def test_certificate_without_evidence_is_refused() -> None:
    """A plain certificate is no RA-TLS certificate; an unknown critical extension makes it none either."""
    with pytest.raises(MalformedQuote, match="no evidence"):
        ratls.parse_certificate(with_extensions([]))
    unknown = [(x509.ObjectIdentifier("1.2.3.4"), b"x")]
    with pytest.raises(MalformedQuote, match="critical"):
        ratls.parse_certificate(with_extensions(unknown, critical=True))


def test_two_older_extensions_are_refused() -> None:
    """Two quotes under the older extension's two identifiers: nobody knows which one counts."""
    with pytest.raises(MalformedQuote, match="two quotes"):
        ratls.parse_certificate(with_extensions([(LEGACY_OID, b"a"), (LEGACY_OID_INTENDED, b"b")]))


def test_quote_too_long_for_a_certificate_is_refused_when_making_it() -> None:
    """Gramine's verifier ignores longer evidence, so none is made."""
    with pytest.raises(UsageError, match="too long"):
        ratls.make_certificate(KEY, lambda _: bytes(9000), not_before=FIRST, not_after=LAST)
