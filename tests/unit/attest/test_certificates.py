"""Certificates, CRLs and PEM: what is read, what is refused, and that foreign exceptions stay inside."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from adyton.attest import der
from adyton.attest.certificates import decode_crl, load_p256, parse_certificate, parse_chain, parse_crl, split_pem
from adyton.errors import MalformedQuote
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import NOW, Revocations, Scenario, key, name, pem


def test_certificate_reads_what_the_library_reads() -> None:
    """Names, serial, validity and signed bytes are those of `cryptography`."""
    raw = Scenario().leaf.build()
    ours, theirs = parse_certificate(raw, "certificate"), x509.load_der_x509_certificate(raw)
    assert ours.tbs == theirs.tbs_certificate_bytes
    assert ours.serial == theirs.serial_number
    assert ours.subject.der == theirs.subject.public_bytes()
    assert ours.issuer.der == theirs.issuer.public_bytes()
    assert ours.common_name == "Test SGX PCK Certificate"
    assert str(ours.issuer) == theirs.issuer.rfc4514_string()
    assert ours.pem == theirs.public_bytes(serialization.Encoding.PEM).decode()


def test_certificate_of_an_unknown_version_is_refused_as_malformed() -> None:
    """The library has an exception of its own for this; it does not get out."""
    raw = Scenario().root.build()
    at = raw.index(bytes.fromhex("a003020102"))
    with pytest.raises(MalformedQuote):
        parse_certificate(raw[: at + 3] + b"\x22" + raw[at + 4 :], "certificate")


def test_certificate_with_negative_serial_number_is_refused() -> None:
    """A negative serial number is refused before the library warns about it."""
    raw = bytearray(Scenario().root.build())
    at = raw.index(bytes.fromhex("a003020102")) + 7
    raw[at] |= 0x80
    with pytest.raises(MalformedQuote, match="serial"):
        parse_certificate(bytes(raw), "certificate")


@pytest.mark.parametrize(("size", "taken"), [(21, True), (32, True), (33, False), (2000, False)])
def test_certificate_with_a_serial_number_without_end_is_refused(size: int, *, taken: bool) -> None:
    """A number of thousands of digits cannot be printed: the verdict over such a device would be a crash."""
    raw = Scenario().root.build()
    _, start, end = der.element(raw, 0, len(raw))
    _, tbs_start, tbs_end = der.element(raw, start, end)
    _, _, after_version = der.element(raw, tbs_start, tbs_end)
    _, _, after_serial = der.element(raw, after_version, tbs_end)
    number = _element(der.INTEGER, b"\x11" * size)
    tbs = _element(der.SEQUENCE, raw[tbs_start:after_version] + number + raw[after_serial:tbs_end])
    changed = _element(der.SEQUENCE, tbs + raw[tbs_end:end])
    if taken:
        assert parse_certificate(changed, "certificate").serial == int.from_bytes(b"\x11" * size, "big")
        return
    with pytest.raises(MalformedQuote, match="serial"):
        parse_certificate(changed, "certificate")


def _element(tag: int, content: bytes) -> bytes:
    """One element of DER with a length of two bytes, or of one."""
    size = len(content)
    return bytes((tag, size)) + content if size < 128 else bytes((tag, 0x82)) + size.to_bytes(2, "big") + content


def test_certificate_with_an_authority_serial_that_is_none_is_refused() -> None:
    """The authority's serial number has the same rule, and the same warning of the library."""
    authority = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(name("x"))], 0x7FFF)
    builder = x509.CertificateBuilder(name("x"), name("x"), key("x").public_key(), 1, NOW.replace(year=2020), NOW)
    built = builder.add_extension(authority, critical=False).sign(key("x"), hashes.SHA256())
    raw = built.public_bytes(serialization.Encoding.DER)
    assert parse_certificate(raw, "certificate").serial == 1
    for spoilt in (b"\x82\x02\xff\xff", b"\x82\x02\x00\x00"):
        with pytest.raises(MalformedQuote, match="authority"):
            parse_certificate(raw.replace(b"\x82\x02\x7f\xff", spoilt), "certificate")


def test_certificate_with_serial_number_zero_verifies_over_its_own_bytes() -> None:
    """Reading from a copy with serial number 1 changes nothing that is signed."""
    raw = bytearray(Scenario().root.build())
    at = raw.index(bytes.fromhex("a003020102")) + 7
    raw[at] = 0
    certificate = parse_certificate(bytes(raw), "certificate")
    assert certificate.serial == 0
    assert certificate.tbs in bytes(raw)
    assert not certificate.is_signed_by(certificate)


def test_rsa_signature_with_another_scheme_is_not_accepted() -> None:
    """AMD signs with RSA-PSS and SHA-384; PKCS#1 v1.5 under the same key does not count."""
    from tests.support.amd_factory import rsa_key

    builder = x509.CertificateBuilder(
        name("ARK-Milan"), name("ARK-Milan"), rsa_key("ark").public_key(), 1, NOW.replace(year=2020), NOW
    )
    raw = builder.sign(rsa_key("ark"), hashes.SHA384()).public_bytes(serialization.Encoding.DER)
    certificate = parse_certificate(raw, "ARK")
    assert not certificate.is_signed_by(certificate)
    good = parse_certificate(SNPScenario().ark.build(), "ARK")
    assert good.is_signed_by(good)


@pytest.mark.parametrize(
    "text",
    [
        "junk" + pem(Scenario().root.build()),
        pem(Scenario().root.build()) + "junk",
        pem(Scenario().root.build()).replace("-----END", "\x1f-----END"),
        pem(Scenario().root.build()).replace("-----END", "====-----END"),
        pem(Scenario().root.build()).replace("CERTIFICATE", "X509 CRL"),
        "-----BEGIN CERTIFICATE----------END CERTIFICATE-----",
        pem(Scenario().root.build())[:-30],
        "-----BEGIN CERTIFICATE-----\nQUJD=\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nQR==\n-----END CERTIFICATE-----\n",
        "\u2028" + pem(Scenario().root.build()),
        pem(Scenario().root.build()) * 11,
    ],
)
def test_pem_that_is_not_strict_is_refused(text: str) -> None:
    """Only blocks, white space between them, and NUL or white space behind them."""
    with pytest.raises(MalformedQuote):
        split_pem(text, "chain")


def test_pem_with_white_space_and_nul_behind_is_read() -> None:
    """Intel's quotes end their chain with NUL."""
    raw = Scenario().root.build()
    assert split_pem(b"\n" + pem(raw, raw).replace("\n", "\r\n").encode() + b"\r\n\x00", "chain") == [raw, raw]


def test_chain_of_another_length_is_refused() -> None:
    """Exactly as many certificates as have a name."""
    with pytest.raises(MalformedQuote) as caught:
        parse_chain(pem(Scenario().root.build()), ("leaf", "root"), "chain")
    assert caught.value.check == "length of the chain"


def _crl(*, extension: x509.ExtensionType | None = None, critical: bool = False) -> bytes:
    builder = x509.CertificateRevocationListBuilder(name("x"), NOW, NOW.replace(month=2))
    if extension is not None:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key("x"), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_crl_that_is_not_complete_is_refused() -> None:
    """A delta CRL or one with a critical restriction does not list all that is revoked."""
    assert parse_crl(_crl(), "CRL").revoked == frozenset()
    with pytest.raises(MalformedQuote):
        parse_crl(_crl(extension=x509.DeltaCRLIndicator(1), critical=True), "CRL")
    point = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    with pytest.raises(MalformedQuote):
        parse_crl(_crl(extension=point, critical=True), "CRL")


def test_crl_has_its_entries_number_and_validity() -> None:
    """Serial numbers, CRL number and validity are read."""
    crl = parse_crl(Revocations("x", "x", serials=[5, 2**150]).build(), "CRL")
    assert crl.revoked == {5, 2**150}
    assert crl.number == 7
    assert crl.window.not_before < datetime.now(UTC).replace(year=2026, month=1, day=15) < crl.window.not_after


def test_crl_is_decoded_by_its_content() -> None:
    """DER, PEM and hex, as the services deliver them."""
    raw = _crl()
    text = x509.load_der_x509_crl(raw).public_bytes(serialization.Encoding.PEM)
    for form in (raw, text, raw.hex().encode(), raw.hex().upper().encode()):
        assert decode_crl(form) == raw
    for bad in (b"", b"hello", b"0x3030", text + text):
        with pytest.raises(MalformedQuote):
            decode_crl(bad)


def test_point_off_the_curve_is_no_key() -> None:
    """An attestation key that is no point of P-256 gives no key instead of an exception."""
    assert load_p256(bytes(64)) is None
    assert load_p256(b"\xff" * 64) is None
