"""`adyton restore`: make an owner's home again from a backup."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.output import say, say_json
from adyton.cli.owner_options import HomeOption, JSONOption

if TYPE_CHECKING:
    from adyton.keystore.home import Home

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    from adyton.keystore.backup import restore as restore_home
    from adyton.keystore.backup_shares import read_share
    from adyton.keystore.home import ask_passphrase, default_home

    counts: dict[str, int] = {}

    def verify(made: Home) -> None:
        store = made.open_store()
        try:
            made.check_not_older(store)
            with store.read() as view:
                counts["entries"] = view.head().seq
                keys = view.keys()
                for key in keys:
                    view.reveal(key.name)
                counts["keys"], counts["approvals"] = len(keys), len(view.approvals())
        finally:
            store.close()

    def passphrase() -> bytes:
        if passphrase_file is not None:
            return read_private_file(passphrase_file, "passphrase file").rstrip(b"\r\n")
        return ask_passphrase(confirm=False)

    made = restore_home(
        backup,
        home if home is not None else default_home(),
        passphrase=passphrase,
        shares=[read_share(path) for path in share or ()],
        store_url=store_url,
        master_command=shlex.split(master_command) if master_command else (),
        join=join,
        verify=verify,
    )
    if as_json:
        say_json({"home": str(made.path), **counts})
        return
    what = f"{counts['keys']} keys, {counts['approvals']} approvals, {counts['entries']} audit entries"
    say(f"restored {made.path}: {what}")
    if not join:
        say("stop the key server of the lost home for good before you start this: two would each count their own runs")
