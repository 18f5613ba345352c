"""`adyton audit`: read, verify and export the record of everything that the key server did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

if TYPE_CHECKING:
    from adyton.keystore.audit import Entry

app = group_app("The record of every request, decision and change: append-only, hash-chained, with signed checkpoints.")


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
    from adyton.workflow.audit import list_entries as carry_out

    found = carry_out(kind=kind, limit=limit, home=home)
    if as_json:
        say_json(found.to_dict())
        return
    for entry in found.entries:
        say(summary(entry))


@app.command()
def show(
    subject: Annotated[str, typer.Argument(help="The id of a denial, grant or approval.")],
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show everything that is recorded under an id: what was checked, expected, seen, and what to do."""
    from adyton.workflow.audit import show_entries

    found = show_entries(subject, home=home)
    if as_json:
        say_json(found.to_dict())
        return
    for entry in found.entries:
        say(summary(entry))
        _show_body(json.loads(entry.body), "  ")
        for name, why in (found.gone or {})[entry.seq].items():
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
    from adyton.workflow.audit import verify_record

    found = verify_record(checkpoints=checkpoint or (), export=export, home=home)
    if as_json:
        say_json(found.to_dict())
        return
    say(f"{found.entries} entries, none altered or missing; head {found.head.hex()}")
    for item in found.checkpoints:
        say(f"held against a checkpoint at entry {item.seq}")
    if not checkpoint and export is None:
        note("hold it against a checkpoint that a client got, too (--checkpoint): a cut tail shows only so")


@app.command("checkpoint")
def make_checkpoint(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it to this file.", show_default=False)
    ] = None,
    home: HomeOption = None,
) -> None:
    """Sign where the record stands now; keep it somewhere else."""
    from adyton.workflow.audit import make_checkpoint as carry_out

    made = carry_out(output=output, home=home)
    if output is None:
        say_json(made.to_dict())
    else:
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
    from adyton.workflow.audit import export_record

    done = export_record(output, evidence=evidence, home=home)
    say(f"{done.entries} entries in {output}")
    if done.gone:
        what = f"{done.gone} pieces of evidence that the entries name"
        note(f"{what} are not there any more: adyton audit show ID says why")


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
    from adyton.workflow.audit import prune_record

    done = prune_record(before, home=home)
    if as_json:
        say_json(done.to_dict())
        return
    say(f"removed {done.removed} pieces of evidence and collateral ({done.size_bytes / 1e6:.1f} MB)")


def summary(entry: Entry) -> str:
    """An entry in one line."""
    from adyton.keystore.audit_words import entry_words
    from adyton.keystore.clock import moment

    words = entry_words(entry)
    said = [words.title] if words.title != entry.kind else []
    text = "; ".join([*said, words.detail])
    subject = f"{words.subject}: " if words.subject else ""
    return f"{entry.seq:>6}  {moment(entry.at_ms):%Y-%m-%d %H:%M:%S}  {entry.kind:<10}  {subject}{text}"


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
