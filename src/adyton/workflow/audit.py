"""The audit record: list, verify, export and prune."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.atomic_file import atomic_target, sync_file_system, write_file
from adyton.dates import parse_start
from adyton.errors import AuditError, UsageError
from adyton.keystore.audit import sign_checkpoint, verify_chain, verify_checkpoint
from adyton.keystore.audit_export import checkpoints_of, read_export
from adyton.keystore.audit_key import audit_private_key, audit_public_key
from adyton.keystore.clock import now_ms
from adyton.keystore.home import actor
from adyton.keystore.prune import missing, named
from adyton.keystore.prune import prune as prune_evidence
from adyton.manifest.signed import read_capped
from adyton.workflow.owner import chosen_home, owner_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adyton.keystore.audit import Checkpoint, Entry
    from adyton.keystore.audit_export import Export

MAX_GRANTS_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of the record. On request `gone` names the missing evidence of each."""

    entries: tuple[Entry, ...]
    gone: Mapping[int, Mapping[str, str]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton audit list --json` and `show --json`."""
        if self.gone is None:
            return {"entries": [_document(entry) for entry in self.entries]}
        return {"entries": [{**_document(entry), "gone": dict(self.gone[entry.seq])} for entry in self.entries]}


def list_entries(*, kind: str | None = None, limit: int = 20, home: Path | None = None) -> Entries:
    """The newest entries, the newest last, as `adyton audit list` does."""
    with owner_store(home) as (_, store), store.read() as view:
        return Entries(tuple(view.newest_entries(limit, kinds=(kind,) if kind else ())[::-1]))


def show_entries(subject: str, *, home: Path | None = None) -> Entries:
    """All entries of an id, as `adyton audit show` does. Raises UsageError where there are none."""
    with owner_store(home) as (_, store), store.read() as view:
        entries = tuple(view.entries(subject=subject))
        gone = {entry.seq: missing(view, entry) for entry in entries}
    if not entries:
        raise UsageError(f"nothing is recorded under {subject[:60]!r}", check="id", expected="d-…, g-…, a-… or a key")
    return Entries(entries, gone)


@dataclass(frozen=True, slots=True)
class VerifiedRecord:
    """The number of verified entries, the hash of the last, and the compared checkpoints."""

    entries: int
    head: bytes
    checkpoints: tuple[Checkpoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton audit verify --json`."""
        return {"entries": self.entries, "head": self.head.hex(), "checkpoints": len(self.checkpoints)}


def verify_record(
    *, checkpoints: Sequence[Path] = (), export: Path | None = None, home: Path | None = None
) -> VerifiedRecord:
    """Verify the record from its first entry to its last, or an export of it, as `adyton audit verify` does.

    Each file of `checkpoints` holds a checkpoint or the grants of a run. Raises AuditError.
    """
    given = {path: _read_checkpoints(path) for path in checkpoints}
    found = chosen_home(home)
    public = audit_public_key(found.path)

    def signed_here(store_id: bytes, own: Checkpoint | None) -> list[Checkpoint]:
        chosen = [item for path, items in given.items() for item in _of_store(path, items, store_id)]
        for item in (*chosen, *((own,) if own else ())):
            verify_checkpoint(item, public)
        return [*chosen, *((own,) if own else ())]

    if export is not None:
        record = _read_export(export)
        signed = signed_here(record.store_id, record.checkpoint)
        head = verify_chain(record.store_id, record.entries, signed)
    else:
        with owner_store(home) as (_, store):
            signed = signed_here(store.id, found.kept_checkpoint())
            head = store.verify_audit(signed)
            store.verify_rest()
    return VerifiedRecord(head.seq, head.hash, tuple(signed))


def make_checkpoint(*, output: Path | None = None, home: Path | None = None) -> Checkpoint:
    """Write a signed checkpoint of the record to `output`, as `adyton audit checkpoint` does."""
    with owner_store(home) as (found, store):
        with store.read() as view:
            head = view.head()
        made = sign_checkpoint(audit_private_key(found.path), store.id, head, now_ms())
    if output is not None:
        write_file(output, json.dumps(made.to_dict()).encode() + b"\n")
    return made


@dataclass(frozen=True, slots=True)
class Exported:
    """The number of written entries, and of pieces of evidence that are missing."""

    entries: int
    gone: int


def export_record(output: Path, *, evidence: Path | None = None, home: Path | None = None) -> Exported:
    """Write the whole record with a signed checkpoint at its end, as `adyton audit export` does.

    `evidence` is the folder for the evidence and collateral that the entries name. Raises StorageFailed, StoreError.
    """
    count, named_there, gone = 0, set[bytes](), 0
    with (
        owner_store(home) as (found, store),
        store.read() as view,
        atomic_target(output, force=True, mode=0o666) as fd,
        open(fd, "w", encoding="utf-8", closefd=False) as stream,
    ):
        head = view.head()
        stream.write(json.dumps({"adyton_audit": 1, "store_id": store.id.hex()}) + "\n")
        for entry in view.entries():
            count += 1
            stream.write(json.dumps(_raw(entry)) + "\n")
            if evidence is not None:
                named_there.update(named(entry).values())
        last = sign_checkpoint(audit_private_key(found.path), store.id, head, now_ms())
        stream.write(json.dumps({"checkpoint": last.to_dict()}) + "\n")
        if evidence is not None:
            evidence.mkdir(parents=True, exist_ok=True)
            for kind, sha256, data in view.artifacts():
                write_file(evidence / f"{sha256.hex()}.{kind}", data, sync=False)
                named_there.discard(sha256)
            sync_file_system(evidence)
            gone = len(named_there)
    return Exported(count, gone)


@dataclass(frozen=True, slots=True)
class Pruned:
    """The number of removed pieces of evidence and collateral, and their size."""

    removed: int
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton audit prune --json`."""
        return {"removed": self.removed, "size_bytes": self.size_bytes}


def prune_record(before: str, *, home: Path | None = None) -> Pruned:
    """Remove evidence of old decisions, as `adyton audit prune` does. The entries stay. Raises UsageError."""
    before_ms = int(parse_start(before, "--before").timestamp() * 1000)
    if before_ms > now_ms():
        raise UsageError(
            "the time lies in the future",
            check="--before",
            expected="a time in the past",
            seen=before,
            remedy="name a date in the past",
        )
    with owner_store(home) as (_, store):
        done = prune_evidence(store, before_ms, actor=actor())
    return Pruned(done.count, done.size_bytes)


def _raw(entry: Entry) -> dict[str, Any]:
    return {"seq": entry.seq, "at_ms": entry.at_ms, "kind": entry.kind, "body": entry.body, "hash": entry.hash.hex()}


def _document(entry: Entry) -> dict[str, Any]:
    return {**_raw(entry), "body": json.loads(entry.body)}


def _read_checkpoints(path: Path) -> list[Checkpoint]:
    """The checkpoint of a file, or those of all grants in a run's file."""
    return checkpoints_of(read_capped(path, MAX_GRANTS_BYTES, "checkpoint"), str(path))


def _of_store(path: Path, items: list[Checkpoint], store_id: bytes) -> list[Checkpoint]:
    """The checkpoints of this store. A run may have grants of several owners."""
    chosen = [item for item in items if item.store_id == store_id]
    if not chosen:
        raise AuditError(
            f"the checkpoint in {path} belongs to another store",
            check="store of the checkpoint",
            expected=store_id.hex(),
            seen=", ".join(sorted({item.store_id.hex() for item in items})),
            remedy="take what a run was granted by this key server, or name the home that it belongs to (--home)",
        )
    return chosen


def _read_export(path: Path) -> Export:
    try:
        with path.open("rb") as file:
            return read_export(file)
    except OSError as error:
        raise AuditError(
            f"{path} cannot be read: {error.strerror}", check="export", expected="a readable file", seen=error.strerror
        ) from None
