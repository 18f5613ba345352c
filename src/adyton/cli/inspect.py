"""`adyton inspect`: what a protected file is; it writes nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adyton.cli.options import HomeOption, JobsOption, JSONOption, KeyFileOption, OpeningKeyOption
from adyton.cli.output import progress, say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from collections.abc import Mapping

app = verb_app()


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Protected files.")],
    key: OpeningKeyOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify every node; needs the key.")] = False,
    jobs: JobsOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say version, size and state of protected files; with the key also embedded path, exact size and root.

    Without a key nothing that is said is authenticated.
    """
    from adyton.workflow.inspect import inspect as carry_out

    def show(facts: Mapping[str, Any]) -> None:
        width = max(map(len, facts))
        say("\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in facts.items()))
        if len(files) > 1:
            say("")

    result = carry_out(
        files,
        key=key,
        key_file=key_file,
        home=home,
        verify=verify,
        jobs=jobs,
        progress=partial(progress, quiet=as_json),
        done=None if as_json else show,
    )
    if as_json:
        say_json(result.to_dict())
