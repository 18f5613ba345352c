"""`adyton mount`: an encrypted folder as an ordinary one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import HomeOption, KeyFileOption, OpeningKeyOption
from adyton.cli.output import note
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def mount(
    source: Annotated[Path, typer.Argument(metavar="ENC_DIR", help="The folder of protected files; it may be empty.")],
    target: Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="An empty folder.")],
    key: OpeningKeyOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = None,
    sealed_as: Annotated[
        str | None,
        typer.Option("--as", metavar="PATH", help="The path the files are sealed under.  [ENC_DIR as written]"),
    ] = None,
    foreground: Annotated[bool, typer.Option("-f", "--foreground", help="Stay until it is unmounted.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Change nothing in it.")] = False,
) -> None:
    """Mount ENC_DIR at MOUNTPOINT; `adyton umount` or `fusermount3 -u` ends it, with everything flushed.

    What the host changed in a file is refused: reading says "Input/output error", and the system's log (or, with -f,
    standard error) says which block of which file.
    """
    from adyton.workflow.mount import mount as carry_out

    carry_out(
        source,
        target,
        key=key,
        key_file=key_file,
        home=home,
        sealed_as=sealed_as,
        foreground=foreground,
        read_only=read_only,
        notice=note,
    )
