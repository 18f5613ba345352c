"""`adyton diff`: which file, mount or key makes two manifests measure differently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A manifest, as `adyton build` wrote it.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: JSONOption = False,
) -> None:
    """Say what differs between two manifests, and hence their measurements. Exit code 0: nothing; 1: something.

    Where both signatures lie beside them, a changed runtime (Adyton itself) is named as well.
    """
    from adyton.workflow.diff import diff as carry_out

    found = carry_out(before, after)
    if as_json:
        say_json(found.to_dict())
    else:
        for item in found.differences:
            say(str(item))
        if found.runtime_differs:
            say("runtime: the manifests are the same, so they were built by different versions of Adyton or Python")
        if found.signer_differs:
            say(f"signer: {found.signers[0]} -> {found.signers[1]}")
        if len(set(found.measurements)) == 2:
            say(f"measurement: {found.measurements[0]} -> {found.measurements[1]}")
    if not found.same:
        raise typer.Exit(1)
