"""`adyton decrypt`: protected files back into plain ones."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from adyton.cli.options import ForceOption, HomeOption, JobsOption, JSONOption, KeyFileOption, OpeningKeyOption
from adyton.cli.output import progress, say_json, say_moved
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def decrypt(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Protected files, directories; - is a pipe.")],
    target: Annotated[
        str, typer.Option("--output", "-o", metavar="DEST", help="Plain file or directory; - is a pipe.")
    ],
    key: OpeningKeyOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = None,
    check_path: Annotated[
        str | None, typer.Option("--check-path", metavar="PATH", help="Refuse a file sealed under another path.")
    ] = None,
    jobs: JobsOption = None,
    force: ForceOption = False,
    all_links: Annotated[
        bool, typer.Option("--all-links", help="In directories, make links that lead out of them, too.")
    ] = False,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Take nothing but what lies in a pinned folder, which is checked.")
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Decrypt protected files; nothing stands under the target's name unless all of it was verified.

    A file that was sealed under another name than it has now is refused, as somebody may have swapped two files;
    --check-path says which path it is to have instead.

    To a pipe every block is verified before it is written, but a later block may still be refused: then
    the exit status is the only word of it.
    """
    from adyton.workflow.decrypt import decrypt as carry_out
    from adyton.workflow.sources import Pipes, check_only_output

    check_only_output(target, as_json=as_json)
    result = carry_out(
        sources,
        target,
        key=key,
        key_file=key_file,
        home=home,
        check_path=check_path,
        jobs=jobs,
        force=force,
        all_links=all_links,
        pinned=pinned,
        pipes=Pipes(0, sys.stdout.buffer.write),
        progress=partial(progress, quiet=as_json),
        done=None if as_json else say_moved,
    )
    sys.stdout.flush()
    if as_json:
        say_json(result.to_dict())
