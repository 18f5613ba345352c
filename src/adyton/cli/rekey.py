"""`adyton rekey`: protected files under another key, another embedded path, or in another version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.protected import AsJSON, Force, Home, Jobs, KeyFile, KeyName, label, plain_bytes, plan, summary, told

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def rekey(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Protected files or directories.")],
    target: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DEST", help="Where to; otherwise in place.")
    ] = None,
    key: KeyName = None,
    key_file: KeyFile = None,
    new_key: Annotated[
        str | None, typer.Option("--new-key", metavar="NAME", help="The new key.  [the old one]")
    ] = None,
    new_key_file: Annotated[Path | None, typer.Option("--new-key-file", metavar="FILE", help="16 raw bytes.")] = None,
    home: Home = None,
    embedded: Annotated[
        str | None, typer.Option("--as", metavar="PATH", help="Embed this path.  [the old one]")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--format", min=1, max=2, help="Write this version.  [the old one]")
    ] = None,
    jobs: Jobs = None,
    force: Force = False,
    as_json: AsJSON = False,
) -> None:
    """Seal protected files again, every block under a new key; each is replaced in one step, at its end.

    Who had the old key can still read old copies; the new files he can neither read nor forge.  A
    directory that was interrupted continues when you say the same again.
    """
    from adyton.cli.key_option import choose_key
    from adyton.cli.output import progress, say, say_json
    from adyton.storage.files import rekey_file
    from adyton.storage.trees import rekey_tree

    old = choose_key(key, key_file, home)
    new = old
    if new_key is not None or new_key_file is not None:
        new = choose_key(new_key, new_key_file, home, option="--new-key")
    done = []
    steps = [step for source in sources for step in plan([source], source)] if target is None else plan(sources, target)
    for step in steps:
        source, to = Path(step.source), Path(step.target)
        path = None if embedded is None else step.embedded(embedded)
        with progress(f"sealing {label(step)} again", plain_bytes(step), quiet=as_json) as advance:
            if step.is_tree:
                tree = rekey_tree(
                    source, to, old, new, new_path=path, version=version, jobs=jobs, force=force, advance=advance
                )
                done.append(summary(step, tree.size, tree.files, tree.resumed))
            else:
                one = rekey_file(
                    source,
                    to,
                    old,
                    new,
                    new_path=path,
                    version=version,
                    jobs=jobs,
                    force=force or target is None,
                    advance=advance,
                )
                done.append(summary(step, one.size))
        if not as_json:
            say(told(done[-1]))
    if as_json:
        say_json({"rekeyed": done})
