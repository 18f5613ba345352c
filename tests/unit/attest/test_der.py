"""The strict reader of DER, Intel's extension by it, and the caps before anything is parsed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adyton.attest import certificates, der
from adyton.attest.layout import MAX_CHAIN_BYTES, MAX_CRL_BYTES
from adyton.attest.pck import parse_sgx_extension
from adyton.errors import MalformedQuote
from tests.support.evidence_factory import FMSPC, sgx_extension

GOOD = sgx_extension(
    {"components": [5] * 16, "pce_svn": 13, "ppid": bytes(16), "pce_id": bytes(2), "fmspc": FMSPC},
)


@pytest.mark.parametrize(
    "raw",
    ["", "02", "1f8100", "0280", "0285000000000100", "028101ff", "02820001ff", "020201", "0282"],
    ids=["nothing", "tag", "long-tag", "indefinite", "long-length", "not-minimal", "zeros", "beyond", "cut"],
)
def test_element_that_is_not_strict_der_is_refused(raw: str) -> None:
    """One-byte tags; definite, minimal lengths; every element inside its parent."""
    content = bytes.fromhex(raw)
    with pytest.raises(MalformedQuote):
        der.element(content, 0, len(content))
    if content:
        with pytest.raises(MalformedQuote):
            der.children(content)


@pytest.mark.parametrize("raw", ["020100", "0401000401", "04020001ff"], ids=["tag", "two", "more"])
def test_only_takes_one_element_with_its_tag(raw: str) -> None:
    """Another tag, a second element or a byte behind it is refused."""
    with pytest.raises(MalformedQuote):
        der.only(bytes.fromhex(raw), der.OCTET_STRING)


@pytest.mark.parametrize("raw", ["", "0001", "ff", "0100"], ids=["empty", "not-minimal", "negative", "above"])
def test_unsigned_takes_the_shortest_form_within_its_limit(raw: str) -> None:
    """A number has one encoding, and a bound."""
    with pytest.raises(MalformedQuote):
        der.unsigned(bytes.fromhex(raw), 255)
    assert der.unsigned(bytes.fromhex("00ff"), 255) == 255


@pytest.mark.parametrize("raw", ["", "01", "ffff"])
def test_boolean_is_00_or_ff(raw: str) -> None:
    """DER knows two of 256 values."""
    with pytest.raises(MalformedQuote):
        der.boolean(bytes.fromhex(raw))
    assert (der.boolean(b"\x00"), der.boolean(b"\xff")) == (False, True)


def wrap(items: list[bytes]) -> bytes:
    """A SEQUENCE of these elements."""
    content = b"".join(items)
    return bytes((der.SEQUENCE, 0x82)) + len(content).to_bytes(2, "big") + content


def elements() -> list[bytes]:
    """The items of a good extension, whole."""
    return [
        bytes((tag,)) + (bytes((len(content),)) if len(content) < 0x80 else b"\x81" + bytes((len(content),))) + content
        if len(content) < 0x100
        else bytes((tag, 0x82)) + len(content).to_bytes(2, "big") + content
        for tag, content in der.children(der.only(GOOD, der.SEQUENCE))
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: [*items, items[0]], "twice"),
        (lambda items: items[1:], "no PPID"),
        (lambda items: [b"\x02\x01\x05", *items], "no pair"),
        (lambda items: [b"\x30\x06\x06\x01\x2a\x04\x01\x00", *items], "OID bytes"),
        (lambda items: [items[0].replace(b"\x04\x10", b"\x0c\x10"), *items[1:]], "another type or size"),
    ],
    ids=["twice", "missing", "no-pair", "foreign-oid", "type"],
)
def test_sgx_extension_has_each_item_once_and_no_other(
    change: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    """Where an item stood twice, two readers could take two platforms from one certificate."""
    assert wrap(elements()) == GOOD
    assert parse_sgx_extension(GOOD).fmspc == FMSPC
    with pytest.raises(MalformedQuote, match=message):
        parse_sgx_extension(wrap(change(elements())))


@pytest.mark.parametrize(
    ("parse", "size"),
    [
        (lambda raw: certificates.parse_certificate(raw, "certificate"), MAX_CHAIN_BYTES),
        (lambda raw: certificates.split_pem(raw, "chain"), MAX_CHAIN_BYTES),
        (lambda raw: certificates.parse_crl(raw, "CRL"), MAX_CRL_BYTES),
        (certificates.decode_crl, 2 * MAX_CRL_BYTES),
    ],
    ids=["certificate", "chain", "crl", "crl-text"],
)
def test_size_is_capped_before_anything_is_parsed(parse: Callable[[bytes], object], size: int) -> None:
    """One byte above the cap is refused for its size."""
    with pytest.raises(MalformedQuote, match=str(size + 1)):
        parse(b"0" * (size + 1))
