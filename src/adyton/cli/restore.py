"""`adyton restore`: make an owner's home again from a backup."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def restore(
    backup: Annotated[Path, typer.Argument(help="The file that adyton backup made.")],
    share: Annotated[
        list[Path] | None, typer.Option(help="A recovery share; as many as are needed.", show_default=False)
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the passphrase from this file.  [ask]", show_default=False)
    ] = None,
    store_url: Annotated[
        str | None,
        typer.Option(help="Database for the store; '' is SQLite in the home.  [as it was]", show_default=False),
    ] = None,
    master_command: Annotated[
        str | None,
        typer.Option(help="The command that prints the master key, where the backup names one.", show_default=False),
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Share the store that the database holds already, as a second key server.")
    ] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make a home from BACKUP, on this machine or another; verified whole before it is put in place."""
    from adyton.capped_read import read_private_file
    from adyton.keystore.passphrase import ask_passphrase
    from adyton.workflow.backup import restore as carry_out

    def passphrase() -> bytes:
        if passphrase_file is not None:
            return read_private_file(passphrase_file, "passphrase file").rstrip(b"\r\n")
        return ask_passphrase(confirm=False)

    made = carry_out(
        backup,
        passphrase=passphrase,
        shares=share or (),
        store_url=store_url,
        master_command=shlex.split(master_command) if master_command else (),
        join=join,
        home=home,
    )
    if as_json:
        say_json(made.to_dict())
        return
    say(f"restored {made.home}: {made.keys} keys, {made.approvals} approvals, {made.entries} audit entries")
    if not join:
        say("stop the key server of the lost home for good before you start this: two would each count their own runs")
