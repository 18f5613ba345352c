"""The audit record: append-only, hash-chained, with signed checkpoints. Pure: anyone can verify an export.

::

    entry k:  seq = k (from 1), at_ms, kind, body (canonical JSON)
    hash_k =  SHA-256( "adyton audit entry 1\\0" ‖ hash_{k-1} ‖ u64 seq ‖ u64 at_ms ‖ u32 len(kind) ‖ kind
                       ‖ u32 len(body) ‖ body )                                  (integers big-endian)
    hash_0 =  SHA-256( "adyton audit start 1\\0" ‖ store id (16 bytes) )
    checkpoint = store id, seq, hash, at_ms, and an Ed25519 signature over
                 "adyton audit checkpoint 1\\0" ‖ store id ‖ u64 seq ‖ hash ‖ u64 at_ms

A changed, reordered, inserted or missing entry breaks the chain. A chain whose tail was cut is still whole. But it
contradicts every checkpoint made after the cut, and every grant of Adyton's own protocol carries a checkpoint to its
client.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from adyton.errors import AuditError
from adyton.typed_document import TypedDocument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STORE_ID_BYTES: Final = 16
MAX_BODY_BYTES: Final = 256 * 1024
MAX_NUMBER: Final = (1 << 63) - 1
"""The largest entry number and the latest time, as a database column holds them."""
_ENTRY_LABEL: Final = b"adyton audit entry 1\0"
_START_LABEL: Final = b"adyton audit start 1\0"
_CHECKPOINT_LABEL: Final = b"adyton audit checkpoint 1\0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the record. `body` is canonical JSON text."""

    seq: int
    at_ms: int
    kind: str
    body: str
    hash: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: number (0: none yet) and hash of its last entry."""

    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement: the chain of this store had this head at this time."""

    store_id: bytes
    seq: int
    hash: bytes
    at_ms: int
    signature: bytes

    def signed_bytes(self) -> bytes:
        """The bytes that are signed."""
        return _checkpoint_bytes(self.store_id, self.seq, self.hash, self.at_ms)

    def to_dict(self) -> dict[str, Any]:
        """The checkpoint as JSON data, byte strings in hex."""
        return {
            "store_id": self.store_id.hex(),
            "seq": self.seq,
            "hash": self.hash.hex(),
            "at_ms": self.at_ms,
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Checkpoint:
        """Parse the data of `to_dict`. Raises AuditError where it is malformed."""
        found = TypedDocument(document, _no_checkpoint)
        found.only({"store_id", "seq", "hash", "at_ms", "signature"})
        return cls(
            store_id=found.hexadecimal("store_id", STORE_ID_BYTES),
            seq=found.number("seq", MAX_NUMBER),
            hash=found.hexadecimal("hash", 32),
            at_ms=found.number("at_ms", MAX_NUMBER),
            signature=found.hexadecimal("signature", 64),
        )


def _no_checkpoint(place: str, expected: str, seen: str) -> AuditError:
    return AuditError(
        f"this is not a checkpoint: {place}", check="form of the checkpoint", expected=expected, seen=seen[:120]
    )


def _checkpoint_bytes(store_id: bytes, seq: int, digest: bytes, at_ms: int) -> bytes:
    return _CHECKPOINT_LABEL + store_id + struct.pack(">Q", seq) + digest + struct.pack(">Q", at_ms)


def canonical(body: Mapping[str, Any]) -> str:
    """The canonical text of a JSON object: sorted names, no spaces, ASCII. Raises AuditError above 256 KiB."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    if len(text) > MAX_BODY_BYTES:
        raise AuditError(f"an audit entry has at most {MAX_BODY_BYTES} bytes, this one {len(text)}")
    return text


def start_hash(store_id: bytes) -> bytes:
    """The hash before the first entry. It binds a chain to one store."""
    return hashlib.sha256(_START_LABEL + store_id).digest()


def entry_hash(previous: bytes, seq: int, at_ms: int, kind: str, body: str) -> bytes:
    """The hash of an entry, over the previous hash and all bytes of the entry."""
    name, text = kind.encode(), body.encode()
    return hashlib.sha256(
        b"".join(
            (
                _ENTRY_LABEL,
                previous,
                struct.pack(">QQI", seq, at_ms, len(name)),
                name,
                struct.pack(">I", len(text)),
                text,
            )
        )
    ).digest()


def sign_checkpoint(key: Ed25519PrivateKey, store_id: bytes, head: Head, at_ms: int) -> Checkpoint:
    """Sign the head of the chain."""
    signature = key.sign(_checkpoint_bytes(store_id, head.seq, head.hash, at_ms))
    return Checkpoint(store_id, head.seq, head.hash, at_ms, signature)


def verify_checkpoint(checkpoint: Checkpoint, key: Ed25519PublicKey) -> None:
    """Check a checkpoint's signature. Raises AuditError."""
    try:
        key.verify(checkpoint.signature, checkpoint.signed_bytes())
    except InvalidSignature:
        raise AuditError(
            "the checkpoint was not signed by this owner's audit key",
            check="signature of the checkpoint",
            expected="a signature of the owner's audit key (audit.crt)",
            seen="a signature that does not verify",
            remedy="take checkpoints from grants of this key server, and audit.crt from its home",
        ) from None


def linked(start: Head, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield each entry after checking that it follows the one before it. The first must follow `start`.

    Raises AuditError at the first entry that was altered, is missing, or is out of place.
    """
    previous, seq = start.hash, start.seq
    for entry in entries:
        if entry.seq != seq + 1:
            raise AuditError(
                f"audit entry {seq + 1} is missing",
                check="sequence of the audit record",
                expected=f"entry {seq + 1}",
                seen=f"entry {entry.seq}",
                remedy="the record was altered: compare with a backup and with the checkpoints that clients hold",
            )
        seq += 1
        digest = entry_hash(previous, seq, entry.at_ms, entry.kind, entry.body)
        if digest != entry.hash:
            raise AuditError(
                f"audit entry {seq} was altered, or the one before it was",
                check=f"hash of audit entry {seq}",
                expected=digest.hex(),
                seen=entry.hash.hex(),
                remedy="the record was altered: compare with a backup and with the checkpoints that clients hold",
            )
        previous = digest
        yield entry


def verify_chain(store_id: bytes, entries: Iterable[Entry], checkpoints: Iterable[Checkpoint] = ()) -> Head:
    """Verify a whole record from its first entry, and that it contains every checkpoint. Returns its head.

    Raises AuditError at the first entry that was altered, is missing, or is out of place, and where a checkpoint names
    a head that this record does not have (its tail was cut, or another history was put in its place). Use
    `verify_checkpoint` for the signatures of the checkpoints.
    """
    wanted: dict[int, set[bytes]] = {}
    last_checkpoint = 0
    for checkpoint in checkpoints:
        if checkpoint.store_id != store_id:
            raise AuditError(
                "the checkpoint belongs to another store",
                check="store of the checkpoint",
                expected=store_id.hex(),
                seen=checkpoint.store_id.hex(),
                remedy="take a checkpoint that this key server made",
            )
        wanted.setdefault(checkpoint.seq, set()).add(checkpoint.hash)
        last_checkpoint = max(last_checkpoint, checkpoint.seq)
    head = Head(0, start_hash(store_id))
    _check_against(wanted.get(0, set()), 0, head.hash)
    for entry in linked(head, entries):
        head = Head(entry.seq, entry.hash)
        if entry.seq in wanted:
            _check_against(wanted[entry.seq], entry.seq, entry.hash)
    seq = head.seq
    if last_checkpoint > seq:
        raise AuditError(
            f"the audit record was cut: it ends at entry {seq}, and a checkpoint names entry {last_checkpoint}",
            check="tail of the audit record",
            expected=f"at least {last_checkpoint} entries",
            seen=f"{seq} entries",
            remedy="entries were removed, or an older copy of the store was put back: restore the newest one",
        )
    return head


def _check_against(wanted: set[bytes], seq: int, digest: bytes) -> None:
    if wanted - {digest}:
        raise AuditError(
            f"the audit record is not the one that the checkpoint of entry {seq} was made for",
            check=f"checkpoint of entry {seq}",
            expected=next(iter(wanted - {digest})).hex(),
            seen=digest.hex(),
            remedy="another history was put in this one's place: restore the store that made the checkpoint",
        )
