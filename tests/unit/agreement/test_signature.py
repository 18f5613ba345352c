"""Signatures of agreements: each by the key of a party, over this very text."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from adyton.agreement.signature import (
    Signature,
    missing,
    parse_signature_file,
    sign_agreement,
    signed_by,
    verify_signature,
)
from adyton.errors import BadSignature, UsageError
from tests.support.agreement_factory import MADE_AT, agreement_of, make_signer

HOSPITAL, VENDOR, STRANGER = make_signer("hospital"), make_signer("vendor"), make_signer("stranger")
AGREEMENT = agreement_of(HOSPITAL.owner, VENDOR.owner)
NOW = MADE_AT + timedelta(days=1)
SIGNATURE = HOSPITAL.sign(AGREEMENT)


def check_of(signature: Signature, *, days: int = 1) -> str | None:
    """The check by which a signature is refused."""
    with pytest.raises(BadSignature) as refused:
        verify_signature(AGREEMENT, signature, MADE_AT + timedelta(days=days))
    return refused.value.check


def test_signatures_of_all_parties_are_found() -> None:
    """Each by the fingerprint of its CA; who has not signed is named."""
    assert verify_signature(AGREEMENT, SIGNATURE, NOW).name == "hospital"
    assert missing(AGREEMENT, signed_by(AGREEMENT, [SIGNATURE], NOW)) == ("vendor",)
    both = signed_by(AGREEMENT, [SIGNATURE, VENDOR.sign(AGREEMENT)], NOW)
    assert missing(AGREEMENT, both) == ()


def test_signature_travels_in_a_file() -> None:
    """What is written is read as it was."""
    assert parse_signature_file(SIGNATURE.to_bytes()) == SIGNATURE


def test_signature_of_another_text_does_not_count() -> None:
    """Neither under its own id, nor under this one."""
    other = HOSPITAL.sign(replace(AGREEMENT, runs=21))
    assert check_of(other) == "agreement of the signature"
    assert check_of(replace(other, agreement=AGREEMENT.id)) == "signature of hospital"


def test_signature_of_a_stranger_does_not_count() -> None:
    """An owner whose CA the agreement does not name, and one who shows the hospital's CA."""
    assert check_of(STRANGER.sign(AGREEMENT)) == "owner of the signature"
    assert check_of(replace(STRANGER.sign(AGREEMENT), ca=HOSPITAL.ca)) == "issuer of the agreement key's certificate"


def test_key_of_another_purpose_signs_no_agreement() -> None:
    """The key that a server uses for in-force statements cannot consent."""
    signature = sign_agreement(AGREEMENT, HOSPITAL.in_force, HOSPITAL.in_force_certificate, HOSPITAL.ca)
    assert check_of(signature) == "purpose of the agreement key's certificate"


def test_certificate_counts_for_its_time() -> None:
    """Neither before nor after."""
    assert check_of(SIGNATURE, days=-1) == "validity of the agreement key's certificate"
    assert check_of(SIGNATURE, days=826) == "validity of the agreement key's certificate"


def test_two_signatures_of_one_party_are_refused() -> None:
    """The second one is nobody else's."""
    with pytest.raises(BadSignature) as refused:
        signed_by(AGREEMENT, [SIGNATURE, SIGNATURE], NOW)
    assert refused.value.check == "signatures of the agreement"


@pytest.mark.parametrize("at", range(0, 64, 7))
def test_flipped_bit_of_a_signature_is_refused(at: int) -> None:
    """Ed25519 notices each."""
    raw = bytearray(SIGNATURE.signature)
    raw[at] ^= 1
    assert check_of(replace(SIGNATURE, signature=bytes(raw))) == "signature of hospital"


@pytest.mark.parametrize(
    ("member", "value"),
    [("extra", "1"), ("format", "x"), ("agreement", "ag-1"), ("ca", "!"), ("signature", "AA=="), ("certificate", 1)],
)
def test_malformed_file_of_a_signature_is_refused(member: str, value: object) -> None:
    """Exact members, exact types, the one form of base64."""
    document = {**SIGNATURE.to_dict(), member: value}
    with pytest.raises(UsageError):
        parse_signature_file(json.dumps(document).encode())
