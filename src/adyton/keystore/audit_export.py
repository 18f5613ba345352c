"""Strict reader of an exported audit record: a head line, a line for each entry, and a signed checkpoint at the end.

The export is untrusted. This module checks its form only. `verify_chain` and `verify_checkpoint` check that it is the
record of its key server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import AuditError
from adyton.keystore.audit import MAX_BODY_BYTES, STORE_ID_BYTES, Checkpoint, Entry
from adyton.untrusted import parse_json, parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

MAX_LINE_BYTES: Final = 8 * MAX_BODY_BYTES
MAX_KIND_CHARS: Final = 64
_TOP: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Export:
    """The content of an export, unverified. Its checkpoint names its last entry."""

    store_id: bytes
    entries: tuple[Entry, ...]
    checkpoint: Checkpoint


def read_export(file: BinaryIO) -> Export:
    """Read an export. Raises AuditError for another format, and for an export that was cut or extended.

    Anyone can extend a chain of hashes. So the checkpoint must name the last entry: entries after it would be unsigned.
    """
    lines = _lines(file)
    head = next(lines, {})
    store_id = _hex(head.get("store_id"), STORE_ID_BYTES)
    if set(head) != {"adyton_audit", "store_id"} or head["adyton_audit"] != 1 or store_id is None:
        raise _malformed("its first line names no store")
    entries: list[Entry] = []
    for document in lines:
        if "checkpoint" in document:
            checkpoint = _checkpoint(document)
            if next(lines, None) is not None:
                raise _malformed("there are lines after its checkpoint")
            if checkpoint.seq != len(entries):
                raise AuditError(
                    "the export and its checkpoint are not of one length",
                    check="entries of the export",
                    expected=f"{checkpoint.seq} entries, which the checkpoint covers",
                    seen=f"{len(entries)} entries",
                    remedy="entries were added or taken away: ask for another export",
                )
            return Export(store_id, tuple(entries), checkpoint)
        entries.append(_entry(document, len(entries) + 1))
    raise AuditError(
        "the export was cut: it has no checkpoint at its end", check="end of the export", expected="a checkpoint"
    )


def checkpoints_of(raw: bytes, name: str) -> list[Checkpoint]:
    """The checkpoint of a document, or those of all grants in a run's file. Raises AuditError where there is none."""
    document = parse_json(raw, what=f"checkpoint {name}", refuse=AuditError)
    grants = document.get("grants") if isinstance(document, dict) else None
    written = [document] if grants is None else grants if isinstance(grants, list) else [None]
    if grants is not None:
        written = [grant.get("checkpoint") if isinstance(grant, dict) else None for grant in written]
    found = [Checkpoint.from_dict(item) for item in written if isinstance(item, dict)]
    if not found:
        raise AuditError(
            f"{name} holds no checkpoint",
            check="form of the checkpoint",
            expected="a checkpoint as a JSON object, or the file of adyton run --grants",
            seen=f"{len(written)} grants without one" if grants is not None else "something else",
            remedy="a run that was refused, or over ra-tls, gets none; use what adyton audit checkpoint wrote",
        )
    return found


def _malformed(what: str) -> AuditError:
    return AuditError(
        f"this is no export of an audit record: {what}",
        check="form of the export",
        expected="what adyton audit export wrote",
        seen=what,
    )


def _lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    while raw := file.readline(MAX_LINE_BYTES + 1):
        yield parse_json_object(raw, what="export of an audit record", refuse=AuditError, limit_bytes=MAX_LINE_BYTES)


def _entry(document: dict[str, Any], number: int) -> Entry:
    seq, at_ms, kind, body = (document.get(name) for name in ("seq", "at_ms", "kind", "body"))
    digest = _hex(document.get("hash"), 32)
    if (
        set(document) != {"seq", "at_ms", "kind", "body", "hash"}
        or type(seq) is not int
        or type(at_ms) is not int
        or not 0 <= seq < _TOP
        or not 0 <= at_ms < _TOP
        or not isinstance(kind, str)
        or not isinstance(body, str)
        or len(kind) > MAX_KIND_CHARS
        or len(body) > MAX_BODY_BYTES
        or digest is None
    ):
        raise _malformed(f"line {number + 1} is no entry")
    return Entry(seq, at_ms, kind, body, digest)


def _checkpoint(document: dict[str, Any]) -> Checkpoint:
    if len(document) != 1 or not isinstance(document["checkpoint"], dict):
        raise _malformed("its checkpoint is none")
    return Checkpoint.from_dict(document["checkpoint"])


def _hex(value: object, size_bytes: int) -> bytes | None:
    try:
        raw = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return None
    return raw if len(raw) == size_bytes and raw.hex() == value else None
