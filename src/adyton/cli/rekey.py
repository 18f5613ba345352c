"""`adyton rekey`: protected files under another key, another embedded path, or in another version."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import ForceOption, HomeOption, JobsOption, JSONOption, KeyFileOption, OpeningKeyOption
from adyton.cli.output import progress, say_json, say_moved
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def rekey(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Protected files or directories.")],
    target: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DEST", help="Where to; otherwise in place.")
    ] = None,
    key: OpeningKeyOption = None,
    key_file: KeyFileOption = None,
    new_key: Annotated[
        str | None, typer.Option("--new-key", metavar="NAME", help="The new key.  [the old one]")
    ] = None,
    new_key_file: Annotated[Path | None, typer.Option("--new-key-file", metavar="FILE", help="16 raw bytes.")] = None,
    home: HomeOption = None,
    embedded: Annotated[
        str | None, typer.Option("--as", metavar="PATH", help="Embed this path.  [the old one]")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--format", min=1, max=2, help="Write this version.  [the old one]")
    ] = None,
    jobs: JobsOption = None,
    force: ForceOption = False,
    as_json: JSONOption = False,
) -> None:
    """Seal protected files again, every block under a new key; each is replaced in one step, at its end.

    Who had the old key can still read old copies; the new files he can neither read nor forge.  A
    directory that was interrupted continues when you say the same again.
    """
    from adyton.workflow.rekey import rekey as carry_out

    result = carry_out(
        sources,
        target,
        key=key,
        key_file=key_file,
        new_key=new_key,
        new_key_file=new_key_file,
        home=home,
        embedded=embedded,
        version=version,
        jobs=jobs,
        force=force,
        progress=partial(progress, quiet=as_json),
        done=None if as_json else say_moved,
    )
    if as_json:
        say_json(result.to_dict())
