"""SIGSTRUCT: every byte, both ways, and against what Gramine's own signer wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.errors import BadSignature, UsageError
from adyton.manifest.sigstruct import (
    SIGSTRUCT_BYTES,
    Attributes,
    generate_signer,
    load_signer,
    mrsigner_of,
    parse_sigstruct,
    sign,
)
from adyton.values import Measurement

CASES = {
    "m_default": ("516d73c305d7cf8c10d192abfe2210945f3c6630057391173b611eafd6df8aa4", Attributes.of(debug=False), 0, 0),
    "m_16M1thr": ("878579b537930ff94ba91a538c48762f5a341649c73ad772c81d519e7f57522b", Attributes.of(debug=False), 0, 0),
    "m_512M32": (
        "2a0efb6072b9345f8462dd7df19b883a2725a9a770a8c85a0358e911bc443f32",
        Attributes.of(debug=True),
        7,
        65535,
    ),
    "m_edmm": ("cf176af6ba10cd362b1b2e00c77ac8255a2d360b2016f93d8cb443da036c2b02", Attributes.of(debug=False), 0, 0),
    "m_edmm1G": (
        "961204540fbc9f66be69719751618d979df3225b08b9a165ff748ea3e0200aa5",
        Attributes.of(debug=False, use_exinfo=True),
        0,
        0,
    ),
    "m_cpu": (
        "e2ab3127d50c39b5a633c10628d6bb9b6c10382628eaf3de8fa6945e86581e7b",
        Attributes.of(
            debug=False,
            cpu_features={
                "avx": "required",
                "avx512": "disabled",
                "amx": "disabled",
                "mpx": "required",
                "pkru": "required",
            },
        ),
        0,
        0,
    ),
}


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """One signing key for the module: making one takes a while."""
    return load_signer(generate_signer())


@pytest.mark.shared_vectors
@pytest.mark.parametrize("name", CASES)
def test_sigstruct_by_gramine_is_read_and_written_byte_for_byte(shared_vectors: Path, name: str) -> None:
    """What gramine-sgx-sign wrote verifies, says what its manifest said, and is written again the same."""
    raw = (shared_vectors / "gramine" / "measurement" / f"{name}.sig").read_bytes()
    sigstruct = parse_sigstruct(raw)
    measurement, attributes, prod_id, svn = CASES[name]
    assert sigstruct.verify() == sigstruct.mrsigner
    assert str(sigstruct.measurement) == measurement
    assert sigstruct.attributes == attributes
    assert (sigstruct.isv_prod_id, sigstruct.isv_svn, sigstruct.date) == (prod_id, svn, "2024-02-29")
    assert sigstruct.to_bytes() == raw


def test_signature_of_the_same_input_is_the_same_bytes(key: rsa.RSAPrivateKey) -> None:
    """Signing is deterministic, and the result verifies and reads back."""
    signed = [
        sign(
            Measurement(bytes(range(32))),
            key,
            attributes=Attributes.of(debug=True),
            isv_prod_id=3,
            isv_svn=4,
            date=date,
        )
        for date in ("0000-00-00", "0000-00-00", "2024-02-29")
    ]
    assert signed[0] == signed[1]
    assert signed[0].to_bytes() != signed[2].to_bytes()
    read = parse_sigstruct(signed[2].to_bytes())
    assert read == signed[2]
    assert read.debug
    assert read.verify() == mrsigner_of(key)
    assert signed[2].to_bytes()[20:24] == bytes.fromhex("29022420")


@pytest.mark.parametrize("offset", [*range(900, 1028, 7), 23, 40 + 4, 516, 899, 1040, 1423, 1424, 1807])
def test_signature_over_any_changed_byte_is_refused(key: rsa.RSAPrivateKey, offset: int) -> None:
    """A flipped bit in any field, the signature or the quotients is refused."""
    raw = bytearray(sign(Measurement(bytes(32)), key, attributes=Attributes.of(debug=False)).to_bytes())
    raw[offset] ^= 1
    with pytest.raises(BadSignature):
        parse_sigstruct(bytes(raw)).verify()


@pytest.mark.parametrize(
    ("offset", "value", "check"),
    [
        (0, 7, "headers"),
        (24, 7, "headers"),
        (16, 1, "vendor"),
        (512, 17, "exponent"),
        (50, 1, "reserved"),
        (910, 1, "reserved"),
        (995, 1, "reserved"),
        (1030, 1, "reserved"),
        (20, 0xFA, "date"),
        (128, 0, "modulus"),
        (511, 0, "modulus"),
    ],
)
def test_sigstruct_with_a_wrong_fixed_field_is_refused_by_name(
    key: rsa.RSAPrivateKey, offset: int, value: int, check: str
) -> None:
    """Fields that can have one value only are checked before the signature is."""
    raw = bytearray(sign(Measurement(bytes(32)), key, attributes=Attributes.of(debug=False)).to_bytes())
    raw[offset] = value
    with pytest.raises(BadSignature) as refused:
        parse_sigstruct(bytes(raw))
    assert check in (refused.value.check or "")


@pytest.mark.parametrize("size", [0, 1807, 1809])
def test_sigstruct_of_another_length_is_refused(size: int) -> None:
    """It has 1808 bytes and no others."""
    assert size != SIGSTRUCT_BYTES
    with pytest.raises(BadSignature, match="length"):
        parse_sigstruct(bytes(size))


@pytest.mark.parametrize(
    ("size", "exponent"),
    [(2048, 3), (3072, 65537)],
)
def test_signer_of_another_shape_is_refused(size: int, exponent: int) -> None:
    """Only RSA-3072 with e = 3 can sign."""
    wrong = rsa.generate_private_key(public_exponent=exponent, key_size=size)
    pem = wrong.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(UsageError, match="cannot sign"):
        load_signer(pem)


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"-----BEGIN RSA PRIVATE KEY-----\n"])
def test_signer_that_is_no_key_is_refused(pem: bytes) -> None:
    """What is no key is said to be none."""
    with pytest.raises(UsageError, match="cannot sign"):
        load_signer(pem)


def test_signature_of_a_48_byte_measurement_is_refused(key: rsa.RSAPrivateKey) -> None:
    """A SIGSTRUCT has room for 32 bytes."""
    with pytest.raises(UsageError, match="32 bytes"):
        sign(Measurement(bytes(48)), key, attributes=Attributes.of(debug=False))


def test_signature_with_a_malformed_date_is_refused(key: rsa.RSAPrivateKey) -> None:
    """Dates have ten characters, YYYY-MM-DD."""
    with pytest.raises(UsageError, match="not a date"):
        sign(Measurement(bytes(32)), key, attributes=Attributes.of(debug=False), date="today")
