"""`adyton audit`: read, verify and export the record of everything that the key server did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adyton.cli.output import note, say, say_json
from adyton.cli.owner_options import HomeOption, JSONOption, owner_store

if TYPE_CHECKING:
    from adyton.keystore.audit import Checkpoint, Entry
    from adyton.keystore.audit_export import Export

MAX_GRANTS_BYTES: Final = 1 << 20

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="The record of every request, decision and change: append-only, hash-chained, with signed checkpoints.",
)


@app.command("list")
def list_entries(
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: release, denial, policy, …", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest last.")] = 20,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the newest entries, one line each."""
    with owner_store(home) as (_, store), store.read() as view:
        entries = view.newest_entries(limit, kinds=(kind,) if kind else ())[::-1]
    if as_json:
        say_json({"entries": [_document(entry) for entry in entries]})
        return
    for entry in entries:
        say(summary(entry))


@app.command()
def show(
    subject: Annotated[str, typer.Argument(help="The id of a denial, grant or approval.")],
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show everything that is recorded under an id: what was checked, expected, seen, and what to do."""
    from adyton.errors import UsageError
    from adyton.keystore.prune import missing

    with owner_store(home) as (_, store), store.read() as view:
        entries = list(view.entries(subject=subject))
        gone = {entry.seq: missing(view, entry) for entry in entries}
    if not entries:
        raise UsageError(f"nothing is recorded under {subject[:60]!r}", check="id", expected="d-…, g-…, a-… or a key")
    if as_json:
        say_json({"entries": [{**_document(entry), "gone": gone[entry.seq]} for entry in entries]})
        return
    for entry in entries:
        say(summary(entry))
        _show_body(json.loads(entry.body), "  ")
        for name, why in gone[entry.seq].items():
            say(f"  {name} itself: {why}")


@app.command()
def verify(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="A checkpoint to hold the record against: of adyton audit checkpoint, or what a run was granted"
            " (adyton run --grants FILE, or its --json)."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Verify an export instead of the store (needs audit.crt).", show_default=False)
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Verify every entry's hash from the first to the last, and that every checkpoint lies on the chain."""
    from adyton.cli.owner_options import chosen_home
    from adyton.keystore.audit import verify_chain, verify_checkpoint
    from adyton.keystore.home import audit_public_key

    given = {path: _read_checkpoints(path) for path in checkpoint or ()}
    found = chosen_home(home)
    public = audit_public_key(found)

    def signed_here(store_id: bytes, own: Checkpoint | None) -> list[Checkpoint]:
        chosen = [item for path, items in given.items() for item in _of_store(path, items, store_id)]
        for item in (*chosen, *((own,) if own else ())):
            verify_checkpoint(item, public)
        return [*chosen, *((own,) if own else ())]

    if export is not None:
        record = _read_export(export)
        checkpoints = signed_here(record.store_id, record.checkpoint)
        head = verify_chain(record.store_id, record.entries, checkpoints)
    else:
        with owner_store(home) as (_, store):
            checkpoints = signed_here(store.id, found.kept_checkpoint())
            head = store.verify_audit(checkpoints)
            store.verify_rest()
    if as_json:
        say_json({"entries": head.seq, "head": head.hash.hex(), "checkpoints": len(checkpoints)})
        return
    say(f"{head.seq} entries, none altered or missing; head {head.hash.hex()}")
    for item in checkpoints:
        say(f"held against a checkpoint at entry {item.seq}")
    if not given and export is None:
        note("hold it against a checkpoint that a client got, too (--checkpoint): a cut tail shows only so")


@app.command("checkpoint")
def make_checkpoint(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it to this file.", show_default=False)
    ] = None,
    home: HomeOption = None,
) -> None:
    """Sign where the record stands now; keep it somewhere else."""
    from adyton.atomic_file import write_file
    from adyton.keystore.audit import sign_checkpoint
    from adyton.keystore.clock import now_ms
    from adyton.keystore.home import audit_private_key

    with owner_store(home) as (found, store):
        with store.read() as view:
            head = view.head()
        made = sign_checkpoint(audit_private_key(found), store.id, head, now_ms())
    if output is None:
        say_json(made.to_dict())
    else:
        write_file(output, json.dumps(made.to_dict()).encode() + b"\n")
        say(f"checkpoint of entry {made.seq} in {output}")


@app.command()
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="The new file (JSON lines).")],
    evidence: Annotated[
        Path | None,
        typer.Option(help="Folder for the evidence and collateral that the entries name.", show_default=False),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write the whole record, with a signed checkpoint at its end, for somebody else to verify."""
    from adyton.atomic_file import atomic_target, sync_file_system, write_file
    from adyton.keystore.audit import sign_checkpoint
    from adyton.keystore.clock import now_ms
    from adyton.keystore.home import audit_private_key
    from adyton.keystore.prune import named

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
        last = sign_checkpoint(audit_private_key(found), store.id, head, now_ms())
        stream.write(json.dumps({"checkpoint": last.to_dict()}) + "\n")
        if evidence is not None:
            evidence.mkdir(parents=True, exist_ok=True)
            for kind, sha256, data in view.artifacts():
                write_file(evidence / f"{sha256.hex()}.{kind}", data, sync=False)
                named_there.discard(sha256)
            sync_file_system(evidence)
            gone = len(named_there)
    say(f"{count} entries in {output}")
    if gone:
        note(f"{gone} pieces of evidence that the entries name are not there any more: adyton audit show ID says why")


@app.command()
def prune(
    before: Annotated[
        str,
        typer.Option(
            help="Remove what only entries before this name: a date (its start, UTC), or a time with its zone.",
            metavar="DATE",
        ),
    ],
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Remove evidence and collateral of old decisions to make room; entries stay, and one says that it was done.

    Such decisions cannot be verified again. In SQLite the file keeps its size, and the room in it is used again.
    """
    from adyton.errors import UsageError
    from adyton.keystore.clock import now_ms
    from adyton.keystore.home import actor
    from adyton.keystore.prune import prune as prune_evidence
    from adyton.rfc3339 import parse_start

    before_ms = int(parse_start(before, "--before").timestamp() * 1000)
    if before_ms > now_ms():
        raise UsageError(
            "evidence of what has not happened yet cannot be pruned",
            check="--before",
            expected="a time in the past",
            seen=before,
            remedy="name a date in the past",
        )
    with owner_store(home) as (_, store):
        done = prune_evidence(store, before_ms, actor=actor())
    if as_json:
        say_json({"removed": done.count, "size_bytes": done.size_bytes})
        return
    say(f"removed {done.count} pieces of evidence and collateral ({done.size_bytes / 1e6:.1f} MB)")


def _raw(entry: Entry) -> dict[str, Any]:
    return {"seq": entry.seq, "at_ms": entry.at_ms, "kind": entry.kind, "body": entry.body, "hash": entry.hash.hex()}


def _document(entry: Entry) -> dict[str, Any]:
    return {**_raw(entry), "body": json.loads(entry.body)}


def summary(entry: Entry) -> str:
    """An entry in one line."""
    from adyton.keystore.clock import moment

    body = json.loads(entry.body)
    if entry.kind == "release":
        keys = ", ".join(f"{item['key']} to {item['app']} {item['app_version']}" for item in body["keys"])
        text = f"{body['grant']}: {keys}; {body['tee']}, {body['status']}, from {body['peer']}"
    elif entry.kind == "denial":
        reason = body.get("reason", body["told"])  # an older entry has one text for both sides
        text = f"{body['denial']}: {reason['message']}; from {body['peer']}"
    elif entry.kind == "policy":
        policy = body["policy"]
        what = f"{policy['app']} {policy['version']} for {policy['key']}"
        text = f"{body['approval']}: {body['state']}, {what}, by {body['actor']}"
    else:
        text = ", ".join(f"{name} {value}" for name, value in body.items() if isinstance(value, str | int))[:160]
    return f"{entry.seq:>6}  {moment(entry.at_ms):%Y-%m-%d %H:%M:%S}  {entry.kind:<10}  {text}"


def _show_body(value: Any, indent: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                say(f"{indent}{name}:")
                _show_body(inner, indent + "  ")
            elif inner not in ("", [], {}):
                say(f"{indent}{name}: {inner}")
    else:
        for inner in value:
            if isinstance(inner, dict):
                _show_body(inner, indent)
                say("")
            else:
                say(f"{indent}- {inner}")


def _read_checkpoints(path: Path) -> list[Checkpoint]:
    """The checkpoint in a file, or those of all grants in what a run wrote."""
    from adyton.keystore.audit_export import checkpoints_of
    from adyton.manifest.signed import read_capped

    return checkpoints_of(read_capped(path, MAX_GRANTS_BYTES, "checkpoint"), str(path))


def _of_store(path: Path, items: list[Checkpoint], store_id: bytes) -> list[Checkpoint]:
    """Those that belong to this store: a run may have had grants of several owners."""
    from adyton.errors import AuditError

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
    from adyton.errors import AuditError
    from adyton.keystore.audit_export import read_export

    try:
        with path.open("rb") as file:
            return read_export(file)
    except OSError as error:
        raise AuditError(
            f"{path} cannot be read: {error.strerror}", check="export", expected="a readable file", seen=error.strerror
        ) from None
