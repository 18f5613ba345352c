"""Strict reader of an exported audit record: a head line, a line for each entry, and a signed checkpoint at the end.

The export is untrusted. This module checks its form only. `verify_chain` and `verify_checkpoint` check that it is the
record of its key server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import AuditError
from adyton.keystore.audit import MAX_BODY_BYTES, MAX_NUMBER, STORE_ID_BYTES, Checkpoint, Entry
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json, parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

MAX_LINE_BYTES: Final = 8 * MAX_BODY_BYTES
MAX_KIND_CHARS: Final = 64


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
    head = _typed(next(lines, {}), "its first line names no store")
    head.only({"adyton_audit", "store_id"})
    store_id = _lower_case_hex(head, "store_id", STORE_ID_BYTES)
    if head["adyton_audit"] != 1:
        raise head.wrong("adyton_audit", "1")
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
    found = _typed(document, f"line {number + 1} is no entry")
    found.only({"seq", "at_ms", "kind", "body", "hash"})
    return Entry(
        found.number("seq", MAX_NUMBER),
        found.number("at_ms", MAX_NUMBER),
        found.text("kind", MAX_KIND_CHARS),
        found.text("body", MAX_BODY_BYTES),
        _lower_case_hex(found, "hash", 32),
    )


def _checkpoint(document: dict[str, Any]) -> Checkpoint:
    if len(document) != 1 or not isinstance(document["checkpoint"], dict):
        raise _malformed("its checkpoint is none")
    return Checkpoint.from_dict(document["checkpoint"])


def _typed(document: dict[str, Any], otherwise: str) -> TypedDocument:
    return TypedDocument(document, lambda place, expected, _seen: _malformed(f"{otherwise}: {place} is not {expected}"))


def _lower_case_hex(found: TypedDocument, name: str, size_bytes: int) -> bytes:
    raw = found.hexadecimal(name, size_bytes)
    if raw.hex() != found[name]:
        raise found.wrong(name, f"{size_bytes} bytes in lower-case hex")
    return raw
