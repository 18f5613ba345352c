"""The file of a receipt: a DSSE envelope, with what it takes to verify it beside it.

The file is the envelope itself, with one further member, `adyton`. Tools for DSSE and in-toto ignore it. It has one
form: canonical JSON and a newline. ::

    payload, payloadType, signatures      the statement, signed by the run, and by each key server that counter-signed
    adyton
      format               adyton-receipt/1
      requests             for each owner of the statement: the request for keys, with the first evidence
      end                  the evidence at the end of the run, over the statement's digest
      counter_signatures   for each owner at most one: her entry in the audit record, and its signed checkpoint
      collateral           what the evidence is verified against: SHA-256 -> zlib of one document
      listings             inputs and outputs: SHA-256 -> zlib of one listing
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.bundle import MAX_CPU_BYTES, MAX_EVENT_LOG_BYTES
from adyton.errors import MalformedQuote
from adyton.receipt.dsse import Envelope, Signature
from adyton.receipt.statement import MAX_LISTING_BYTES, MAX_MOUNTS, MAX_OWNERS, canonical, refuse
from adyton.release.messages import MAX_REQUEST_BYTES
from adyton.release.wire import b64
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT: Final = "adyton-receipt/1"
MAX_RECEIPT_BYTES: Final = 8 << 20
MAX_COLLATERAL_BYTES: Final = 4 << 20
_MAX_ENTRY_BYTES: Final = 64 * 1024
_MAX_CERTIFICATE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class EndEvidence:
    """The evidence at the end of the run, unverified."""

    cpu: bytes
    event_log: bytes | None = None

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        found = {"cpu": b64(self.cpu)}
        return found if self.event_log is None else {**found, "event_log": b64(self.event_log)}

    @classmethod
    def from_dict(cls, document: TypedDocument) -> EndEvidence:
        """Read the members."""
        document.only({"cpu"}, {"event_log"})
        log = document.binary("event_log", 1, MAX_EVENT_LOG_BYTES) if "event_log" in document else None
        return cls(document.binary("cpu", 1, MAX_CPU_BYTES), log)


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterSignature:
    """What a key server says of a statement: its entry in the owner's audit record, and a signed checkpoint of it.

    The entry's hash chains it to all that came before. So the owner cannot take it back, and its time is hers.
    """

    owner: str
    seq: int
    at_ms: int
    body: str
    """The entry's canonical text (`counter.entry_body`)."""
    previous: bytes
    """The hash of the entry before it."""
    checkpoint: Mapping[str, Any]
    certificate: bytes
    """Of the audit key, DER."""
    ca: bytes
    """The owner's CA, DER."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "owner": self.owner,
            "seq": self.seq,
            "at_ms": self.at_ms,
            "body": self.body,
            "previous": self.previous.hex(),
            "checkpoint": dict(self.checkpoint),
            "certificate": b64(self.certificate),
            "ca": b64(self.ca),
        }

    @classmethod
    def from_dict(cls, document: TypedDocument) -> CounterSignature:
        """Read the members. The checkpoint is parsed where it is verified."""
        document.only({"owner", "seq", "at_ms", "body", "previous", "checkpoint", "certificate", "ca"})
        previous = document.hexadecimal("previous", 32)
        if document["previous"] != previous.hex():
            raise document.wrong("previous", "lower-case hex digits", "others")
        return cls(
            owner=document.text("owner", 128),
            seq=document.number("seq", (1 << 63) - 1),
            at_ms=document.number("at_ms", (1 << 43) - 1),
            body=document.text("body", _MAX_ENTRY_BYTES),
            previous=previous,
            checkpoint=dict(document.inner("checkpoint")),
            certificate=document.binary("certificate", 1, _MAX_CERTIFICATE_BYTES),
            ca=document.binary("ca", 1, _MAX_CERTIFICATE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A receipt as it stands in its file, unverified."""

    envelope: Envelope
    requests: tuple[bytes, ...]
    """For each owner of the statement, in the same order: the request for keys, as it was sent."""
    end: EndEvidence
    counter_signatures: tuple[CounterSignature, ...] = ()
    collateral: Mapping[str, bytes] = field(default_factory=dict)
    """By SHA-256 (hex): documents, uncompressed."""
    listings: Mapping[str, bytes] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file."""
        beside = {
            "format": FORMAT,
            "requests": [b64(zlib.compress(request, 9)) for request in self.requests],
            "end": self.end.to_dict(),
            "counter_signatures": [each.to_dict() for each in self.counter_signatures],
            "collateral": _packed(self.collateral),
            "listings": _packed(self.listings),
        }
        return canonical({**self.envelope.to_dict(), "adyton": beside}) + b"\n"

    def with_counter_signature(
        self, signature: Signature, signed: CounterSignature, collateral: Sequence[bytes]
    ) -> Receipt:
        """The receipt with one more counter-signature, and the collateral that came with it."""
        more = {hashlib.sha256(each).hexdigest(): each for each in collateral}
        return replace(
            self,
            envelope=replace(self.envelope, signatures=(*self.envelope.signatures, signature)),
            counter_signatures=(*self.counter_signatures, signed),
            collateral={**self.collateral, **more},
        )


def parse_receipt(raw: bytes) -> Receipt:
    """Parse the file of a receipt, without verifying it. Raises MalformedQuote for any other form."""
    found = parse_json_object(raw, what="receipt", refuse=MalformedQuote, limit_bytes=MAX_RECEIPT_BYTES, max_depth=8)
    if canonical(found) + b"\n" != raw:
        raise refuse("form of the file", "canonical JSON and a newline", "another form")
    document = TypedDocument(found, refuse)
    document.only({"payload", "payloadType", "signatures", "adyton"})
    beside = document.inner("adyton")
    beside.only({"format", "requests", "end", "counter_signatures", "collateral", "listings"})
    if beside.text("format", 64) != FORMAT:
        raise beside.wrong("format", FORMAT, "another format")
    packed = beside.binaries("requests", MAX_OWNERS, 1, MAX_REQUEST_BYTES)
    return Receipt(
        envelope=Envelope.from_dict(document),
        requests=tuple(unpack(item, MAX_REQUEST_BYTES, "requests") for item in packed),
        end=EndEvidence.from_dict(beside.inner("end")),
        counter_signatures=tuple(
            CounterSignature.from_dict(item) for item in beside.inner_list("counter_signatures", MAX_OWNERS)
        ),
        collateral=_unpacked(beside.inner("collateral"), 2 * MAX_OWNERS, MAX_COLLATERAL_BYTES),
        listings=_unpacked(beside.inner("listings"), 2 * MAX_MOUNTS, MAX_LISTING_BYTES),
    )


def _packed(documents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: b64(zlib.compress(raw, 9)) for name, raw in documents.items()}


def _unpacked(document: TypedDocument, most: int, limit: int) -> dict[str, bytes]:
    """Documents by their SHA-256, each compared with its name."""
    if len(document) > most:
        raise refuse("documents beside the statement", f"at most {most}", f"{len(document)}")
    found: dict[str, bytes] = {}
    total_bytes = 0
    for name in document:
        raw = unpack(document.binary(name, 1, MAX_RECEIPT_BYTES), limit, name[:64])
        total_bytes += len(raw)
        if hashlib.sha256(raw).hexdigest() != name or total_bytes > 2 * limit:
            raise refuse("document beside the statement", "the SHA-256 that names it, within the limits", "another")
        found[name] = raw
    return found


def unpack(packed: bytes, limit: int, what: str) -> bytes:
    """The content of one whole zlib stream of at most `limit` bytes."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, limit)
    except zlib.error:
        raise refuse(what, "zlib data", "something else") from None
    if not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise refuse(what, f"one zlib stream of at most {limit} bytes", "more, or an unfinished one")
    return raw
