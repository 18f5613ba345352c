"""Statements that an agreement is in force: each over one challenge, by the right key, for one agreement."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from adyton.agreement.in_force import (
    MAX_STATEMENT_BYTES,
    InForce,
    make_statement,
    parse_statement,
    proved,
    verify_statement,
)
from adyton.errors import Denied, Error, OutOfOrder
from adyton.values import Nonce
from tests.support.agreement_factory import MADE_AT, make_signer

VENDOR, OTHER = make_signer("vendor"), make_signer("other")
ID = "ag-" + "ab" * 16
CHALLENGE = Nonce(b"c" * 32)
NOW = MADE_AT + timedelta(days=1)
STATEMENT = VENDOR.says(ID, CHALLENGE)


def check_of(raw: bytes, *, challenge: Nonce = CHALLENGE, days: int = 1) -> str | None:
    """The check by which a statement is refused."""
    with pytest.raises(Denied) as refused:
        verify_statement(raw, challenge, MADE_AT + timedelta(days=days))
    return refused.value.check


def test_statement_proves_who_says_what() -> None:
    """Its owner's fingerprint and the agreement, and it is small."""
    assert verify_statement(STATEMENT, CHALLENGE, NOW) == InForce(ID, VENDOR.owner)
    assert len(STATEMENT) < MAX_STATEMENT_BYTES * 3 // 4


def test_old_statement_is_refused() -> None:
    """It answers one challenge: one that was kept answers another."""
    assert check_of(STATEMENT, challenge=Nonce(b"d" * 32)) == "challenge of the statement"
    moved = json.loads(STATEMENT) | {"challenge": json.loads(VENDOR.says(ID, Nonce(b"d" * 32)))["challenge"]}
    assert check_of(json.dumps(moved).encode(), challenge=Nonce(b"d" * 32)) == "signature of the statement"


def test_statement_about_another_agreement_is_refused() -> None:
    """The id is signed."""
    moved = json.loads(STATEMENT) | {"agreement": "ag-" + "cd" * 16}
    assert check_of(json.dumps(moved).encode()) == "signature of the statement"


def test_statement_under_another_ca_is_refused() -> None:
    """A stranger cannot speak for a party."""
    moved = json.loads(OTHER.says(ID, CHALLENGE)) | {"ca": json.loads(STATEMENT)["ca"]}
    assert check_of(json.dumps(moved).encode()) == "issuer of the statement's certificate"


def test_key_for_agreements_makes_no_statement() -> None:
    """And so the key of a server is enough to end one, and not enough to make one."""
    raw = make_statement(ID, CHALLENGE, VENDOR.agreement, VENDOR.agreement_certificate, VENDOR.ca).to_bytes()
    assert check_of(raw) == "purpose of the statement's certificate"


def test_certificate_counts_for_its_time() -> None:
    """After its end a party says nothing any more."""
    assert check_of(STATEMENT, days=826) == "validity of the statement's certificate"


def test_what_proves_nothing_spoils_nothing() -> None:
    """A bad statement beside a good one is named, and the good one counts."""
    found, refused = proved([b"{}", STATEMENT, b"\xff"], CHALLENGE, NOW)
    assert found == {InForce(ID, VENDOR.owner)}
    assert len(refused) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        STATEMENT + b" " * MAX_STATEMENT_BYTES,
        STATEMENT.replace(b"adyton-in-force/1", b"adyton-in-force/2"),
        STATEMENT.replace(b'"agreement":"ag-', b'"agreement":"xx-'),
        STATEMENT.replace(b"}", b',"extra":1}'),
        STATEMENT.replace(b"}", b',"format":"adyton-in-force/1"}'),
    ],
)
def test_malformed_statement_is_refused(raw: bytes) -> None:
    """Exact members, each once, within 4 KiB."""
    with pytest.raises(Error) as refused:
        parse_statement(raw)
    assert isinstance(refused.value, OutOfOrder)
