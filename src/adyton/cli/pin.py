"""`adyton pin`: hold an encrypted folder to its newest state from now on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from adyton.workflow.pin import Pinned

app = verb_app()


@app.command()
def pin(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The encrypted folder.", show_default=False)],
    key: Annotated[
        str, typer.Option("--key", metavar="NAME", help="The key of its files, in your store.", show_default=False)
    ],
    sealed_as: Annotated[
        str | None,
        typer.Option("--as", metavar="PATH", help="The path that its files were sealed under.  [FOLDER]"),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take what is there now as the newest, after a loss that you looked at.")
    ] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Pin an encrypted folder: your key server keeps its newest root, and programs refuse anything older.

    A folder that is pinned already is checked. An empty folder can be pinned, too, before a program writes to it. The
    file FOLDER.adyton-roots beside it belongs to it: copy both together. A manifest says `pinned = true` at the mount.
    """
    from adyton.workflow.pin import pin as carry_out

    result = carry_out(folder, key=key, sealed_as=sealed_as, accept=accept, home=home)
    if as_json:
        say_json(result.to_dict())
    else:
        show(result)


def show(result: Pinned) -> None:
    """Say what was pinned."""
    root = result.root
    count = "1 file or folder" if root.entries == 1 else f"{root.entries} files and folders"
    say(f"{result.source} is pinned as {result.folder}: commit {root.sequence}, {count}")
