"""A statement that an agreement is in force: made by a party's key server, over a challenge of another one. Pure.

::

    signed = "adyton in force/1\\0" ‖ lp(agreement id) ‖ lp(challenge) ‖ lp(SHA-256 of the party's CA, DER)
    lp(x)  = length of x as u32, big-endian, then x

The challenge is the one that the other key server made for this very request. It lives two minutes and is answered
once. So a statement is never older than that, and nobody can keep one for later.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature

from adyton.agreement.document import ID_PATTERN
from adyton.errors import Denied, Error, OutOfOrder
from adyton.purpose_certificate import IN_FORCE, certified_key
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object
from adyton.values import Digest, Nonce

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT: Final = "adyton-in-force/1"
MAX_STATEMENT_BYTES: Final = 4096
MAX_CERTIFICATE_BYTES: Final = 1280
SIGNATURE_BYTES: Final = 64
_LABEL: Final = b"adyton in force/1\0"
_ID: Final = re.compile(ID_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class InForce:
    """A verified fact: the owner of this CA (SHA-256 of the DER) says that this agreement is in force."""

    agreement: str
    owner: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A statement, unverified."""

    agreement: str
    challenge: Nonce
    ca: bytes
    certificate: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As JSON."""
        document = {
            "format": FORMAT,
            "agreement": self.agreement,
            "challenge": base64.b64encode(self.challenge.raw).decode(),
            "ca": base64.b64encode(self.ca).decode(),
            "certificate": base64.b64encode(self.certificate).decode(),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(document, separators=(",", ":")).encode()


def parse_statement(raw: bytes) -> Statement:
    """Parse a statement. Raises OutOfOrder."""
    what = "in-force statement"
    document = parse_json_object(raw, what=what, refuse=OutOfOrder, limit_bytes=MAX_STATEMENT_BYTES, max_depth=2)
    found = TypedDocument(document, _malformed)
    found.only({"format", "agreement", "challenge", "ca", "certificate", "signature"})
    if found.text("format", 64) != FORMAT:
        raise found.wrong("format", FORMAT, "another format")
    agreement = found.text("agreement", 40)
    if _ID.fullmatch(agreement) is None:
        raise found.wrong("agreement", "an agreement's id", "something else")
    return Statement(
        agreement=agreement,
        challenge=Nonce(found.binary("challenge", 32, 32)),
        ca=found.binary("ca", 1, MAX_CERTIFICATE_BYTES),
        certificate=found.binary("certificate", 1, MAX_CERTIFICATE_BYTES),
        signature=found.binary("signature", SIGNATURE_BYTES, SIGNATURE_BYTES),
    )


def make_statement(
    agreement: str, challenge: Nonce, key: Ed25519PrivateKey, certificate: bytes, ca: bytes
) -> Statement:
    """Say that an agreement is in force, over a challenge. `certificate` is that of the key, `ca` her CA's (DER)."""
    owner = Digest(hashlib.sha256(ca).digest())
    signature = key.sign(_signed(agreement, challenge, owner))
    return Statement(agreement=agreement, challenge=challenge, ca=ca, certificate=certificate, signature=signature)


def verify_statement(raw: bytes, challenge: Nonce, now: datetime) -> InForce:
    """The fact that a statement proves to whoever made this challenge. Raises Denied or OutOfOrder."""
    statement = parse_statement(raw)
    if statement.challenge != challenge:
        raise _false("challenge of the statement", "the challenge of this very request", "another one")
    key = certified_key(statement.certificate, statement.ca, IN_FORCE, now, _false)
    owner = Digest(hashlib.sha256(statement.ca).digest())
    try:
        key.verify(statement.signature, _signed(statement.agreement, challenge, owner))
    except InvalidSignature:
        raise _false("signature of the statement", "one over agreement and challenge", "another") from None
    return InForce(statement.agreement, owner)


def proved(
    statements: Iterable[bytes], challenge: Nonce, now: datetime
) -> tuple[frozenset[InForce], tuple[Error, ...]]:
    """What these statements prove, and why the others prove nothing."""
    found: set[InForce] = set()
    refused: list[Error] = []
    for raw in statements:
        try:
            found.add(verify_statement(raw, challenge, now))
        except Error as error:
            refused.append(error)
    return frozenset(found), tuple(refused)


def _signed(agreement: str, challenge: Nonce, owner: Digest) -> bytes:
    parts = (agreement.encode(), challenge.raw, owner.raw)
    return _LABEL + b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _false(check: str, expected: str, seen: str) -> Error:
    return Denied(
        "this is no statement of a party that the agreement is in force",
        check=check,
        expected=expected,
        seen=seen,
        remedy="start the run again; if it persists, that party's key server has another home than the one that signed",
    )


def _malformed(path: str, expected: str, seen: str) -> Error:
    return OutOfOrder(
        f"the in-force statement is malformed: {path}",
        check=f"{path} of the in-force statement",
        expected=expected,
        seen=seen,
        remedy="use an Adyton of the same version on all key servers",
    )
