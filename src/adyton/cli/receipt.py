"""`adyton receipt`: verify, show and connect the receipts of runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import group_app
from adyton.dates import parse_end
from adyton.errors import UsageError

app = group_app("Receipts of runs: what a program made of what, on which machine, under whose approvals.")

PolicyOption = Annotated[
    Path | None, typer.Option(help="What evidence to accept, TOML or JSON, as for `adyton verify`.", show_default=False)
]
CollateralOption = Annotated[
    list[Path] | None,
    typer.Option(help="Collateral where the receipt has none; several allowed. Default: the owner's store."),
]
WithoutOption = Annotated[
    bool,
    typer.Option("--without-counter-signature", help="Accept it although nobody but the host says when it was made."),
]


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The receipt.", metavar="FILE")],
    output: Annotated[
        list[Path] | None, typer.Option(help="File or folder that must be output of the run; several allowed.")
    ] = None,
    input_: Annotated[
        list[Path] | None,
        typer.Option("--input", help="Protected file or folder that must be input of the run; several allowed."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Judge evidence as at this time, not at those that the key servers signed: a time with its zone, Unix"
            " seconds, or a date."
        ),
    ] = None,
    policy: PolicyOption = None,
    ca: Annotated[
        list[Path] | None, typer.Option(help="CA of an owner who must be among those of the run; several allowed.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="The manifest that must have run.")] = None,
    collateral: CollateralOption = None,
    key: Annotated[
        str | None, typer.Option(help="Key of the outputs in the owner's store, to compare plaintexts.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="Or a file of its 16 bytes.")] = None,
    home: HomeOption = None,
    without_counter_signature: WithoutOption = False,
    as_json: JSONOption = False,
) -> None:
    """Verify a receipt, and that files are outputs and inputs of its run.

    Exit code 0: every step holds. 90 to 96: refused. 110 to 114: it could not be checked.
    """
    from adyton.workflow.receipt import verify_receipt

    found = verify_receipt(
        file,
        outputs=output or (),
        inputs=input_ or (),
        at=None if at is None else _time(at),
        policy=policy,
        ca=ca or (),
        manifest=manifest,
        collateral=collateral or (),
        key=key,
        key_file=key_file,
        home=home,
        without_counter_signature=without_counter_signature,
    )
    if as_json:
        say_json(found.to_dict())
    else:
        say(found.to_text())


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="The receipt.", metavar="FILE")],
    as_json: JSONOption = False,
) -> None:
    """Show what a receipt says, without verifying it."""
    from adyton.workflow.receipt import show_receipt

    found = show_receipt(file)
    if as_json:
        say_json(found.to_dict())
    else:
        say(found.to_text())


@app.command()
def graph(
    folder: Annotated[Path, typer.Argument(help="Folder of receipts, *.json.", metavar="DIR")],
    policy: PolicyOption = None,
    collateral: CollateralOption = None,
    home: HomeOption = None,
    without_counter_signature: WithoutOption = False,
    as_json: JSONOption = False,
) -> None:
    """Verify all receipts of a folder, and show which run took what another made.

    Exit code 0: every receipt holds, and no predecessor is missing.
    """
    from adyton.workflow.receipt import receipt_graph

    found = receipt_graph(
        folder,
        policy=policy,
        collateral=collateral or (),
        home=home,
        without_counter_signature=without_counter_signature,
    )
    if as_json:
        say_json(found.to_dict())
    else:
        say(found.to_text())
    found.require()


def _time(at: str) -> datetime:
    if not at.isdecimal():
        return parse_end(at, "--at")
    try:
        return datetime.fromtimestamp(int(at), UTC)
    except (ValueError, OverflowError, OSError):
        wanted = "2026-01-31T12:00:00Z, or Unix seconds"
        raise UsageError(f"no time: {at[:80]!r}", check="--at", expected=wanted, seen=at[:80]) from None
