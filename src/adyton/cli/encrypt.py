"""`adyton encrypt`: files and directories into protected files."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from adyton.cli.options import ForceOption, HomeOption, JobsOption, JSONOption, KeyFileOption, KeyOption
from adyton.cli.output import progress, say_json, say_moved
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def encrypt(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Files, directories, patterns; - is a pipe.")],
    target: Annotated[
        str, typer.Option("--output", "-o", metavar="DEST", help="Protected file or directory; - is a pipe.")
    ],
    key: KeyOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = None,
    embedded: Annotated[str | None, typer.Option("--as", metavar="PATH", help="Embed this path, not DEST's.")] = None,
    version: Annotated[int, typer.Option("--format", min=1, max=2, help="1: for Gramine 1.8 and older.")] = 2,
    jobs: JobsOption = None,
    force: ForceOption = False,
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", "-L", help="In directories, take what symbolic links lead to, not the links."),
    ] = False,
    all_links: Annotated[
        bool, typer.Option("--all-links", help="In directories, keep links that lead out of them, too.")
    ] = False,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Pin each encrypted directory: nothing older is taken (adyton pin).")
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Encrypt files, so that only who has the key can read them, and only under the embedded path.

    The embedded path is DEST as you write it (for directories, each file's place below it): a program finds
    the file only under a mount that makes the same path of it, so write DEST as the manifest's URI does.
    A directory that was interrupted continues when you say the same again.
    """
    from adyton.workflow.encrypt import encrypt as carry_out
    from adyton.workflow.sources import Pipes, check_only_output

    check_only_output(target, as_json=as_json)
    result = carry_out(
        sources,
        target,
        key=key,
        key_file=key_file,
        home=home,
        embedded=embedded,
        version=version,
        jobs=jobs,
        force=force,
        follow_links=follow_links,
        all_links=all_links,
        pinned=pinned,
        pipes=Pipes(0, sys.stdout.buffer.write),
        progress=partial(progress, quiet=as_json),
        done=None if as_json else say_moved,
    )
    sys.stdout.flush()
    if as_json:
        say_json(result.to_dict())
