"""How a run asks a party's key server whether an agreement is in force.

::

    enclave                                              that party's key server
      POST /adyton/v4/in-force    agreement, challenge ->
                                                       <-  200, with a signed statement (adyton.agreement.in_force)
                                                           409, without a reason

`challenge` is the one that another party's key server made for this run. The enclave takes the statement there, in
`in_force` of its request. This module is pure. Both sides use it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.agreement.document import ID_PATTERN
from adyton.agreement.in_force import MAX_STATEMENT_BYTES
from adyton.release.wire import PROTOCOL, b64, check_protocol, malformed, parse_object, to_bytes
from adyton.values import Nonce

if TYPE_CHECKING:
    from adyton.typed_document import TypedDocument

PATH_IN_FORCE: Final = "/adyton/v4/in-force"
MAX_QUESTION_BYTES: Final = 1024
MAX_ANSWER_BYTES: Final = 8 * 1024
_ID: Final = re.compile(ID_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class Question:
    """Is this agreement in force? The answer is signed over `challenge`."""

    agreement: str
    challenge: Nonce

    def to_bytes(self) -> bytes:
        """As JSON."""
        return to_bytes({"protocol": PROTOCOL, "agreement": self.agreement, "challenge": b64(self.challenge.raw)})


def parse_question(raw: bytes) -> Question:
    """Parse a question. Raises OutOfOrder, VersionMismatch."""
    document = parse_object(raw, MAX_QUESTION_BYTES)
    check_protocol(document)
    document.only({"protocol", "agreement", "challenge"})
    return Question(_agreement(document), Nonce(document.binary("challenge", 32, 32)))


def in_force_answer(statement: bytes | None) -> bytes:
    """The answer: a statement, or (None) one text for every reason why there is none."""
    if statement is None:
        return to_bytes({"protocol": PROTOCOL, "status": "unknown"})
    return to_bytes({"protocol": PROTOCOL, "status": "in force", "statement": b64(statement)})


def parse_in_force_answer(raw: bytes) -> bytes | None:
    """Parse an answer: the statement, unverified, or None. Raises OutOfOrder."""
    document = parse_object(raw, MAX_ANSWER_BYTES)
    check_protocol(document)
    if document.get("status") == "unknown":
        document.only({"protocol", "status"})
        return None
    if document.get("status") != "in force":
        raise malformed("status", "in force or unknown", "something else")
    document.only({"protocol", "status", "statement"})
    return document.binary("statement", 1, MAX_STATEMENT_BYTES)


def _agreement(document: TypedDocument) -> str:
    value = document.text("agreement", 40)
    if _ID.fullmatch(value) is None:
        raise document.wrong("agreement", "an agreement's id", "something else")
    return value
