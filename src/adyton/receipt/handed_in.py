"""What a run hands in to a key server to have its receipt counter-signed, and what comes back.

::

    payload of the message   {"envelope": DSSE with the run's signature, "end": {"cpu": base64}}
    answer                   {"signature": of the envelope, "counter_signature": …, "collateral": …,
                              "first_collateral": …}

The event log of the boot is not handed in again. The server has it from the request for keys. Collateral is zlib of one
document, in base64.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.errors import MalformedQuote
from adyton.receipt.document import (
    MAX_COLLATERAL_BYTES,
    MAX_RECEIPT_BYTES,
    CounterSignature,
    EndEvidence,
    Receipt,
    unpack,
)
from adyton.receipt.dsse import Envelope, Signature
from adyton.receipt.statement import canonical, refuse
from adyton.release.run_messages import MAX_PAYLOAD_BYTES
from adyton.release.wire import b64
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class HandedIn:
    """A statement with the run's signature, and the evidence over it."""

    envelope: Envelope
    end: EndEvidence

    def to_bytes(self) -> bytes:
        """The payload of the message."""
        return canonical({"envelope": self.envelope.to_dict(), "end": self.end.to_dict()})


def parse_handed_in(raw: bytes) -> HandedIn:
    """Parse the payload of a message. Raises MalformedQuote."""
    found = parse_json_object(raw, what="receipt", refuse=MalformedQuote, limit_bytes=MAX_PAYLOAD_BYTES, max_depth=6)
    document = TypedDocument(found, refuse)
    document.only({"envelope", "end"})
    envelope = document.inner("envelope")
    envelope.only({"payload", "payloadType", "signatures"})
    return HandedIn(Envelope.from_dict(envelope), EndEvidence.from_dict(document.inner("end")))


def answer(
    signature: Signature, signed: CounterSignature, collateral: bytes, first_collateral: bytes
) -> dict[str, Any]:
    """The members of the server's answer."""
    return {
        "signature": signature.to_dict(),
        "counter_signature": signed.to_dict(),
        "collateral": b64(zlib.compress(collateral, 9)),
        "first_collateral": b64(zlib.compress(first_collateral, 9)),
    }


def with_answer(receipt: Receipt, members: Mapping[str, Any]) -> Receipt:
    """The receipt with a server's answer, which is not verified here. Raises MalformedQuote for another form."""
    document = TypedDocument(members, refuse)
    document.only({"signature", "counter_signature", "collateral", "first_collateral"})
    signature = Signature.from_dict(document.inner("signature"))
    signed = CounterSignature.from_dict(document.inner("counter_signature"))
    documents = [
        unpack(document.binary(name, 1, MAX_RECEIPT_BYTES), MAX_COLLATERAL_BYTES, name)
        for name in ("collateral", "first_collateral")
    ]
    return receipt.with_counter_signature(signature, signed, documents)
