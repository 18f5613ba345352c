"""`adyton encrypt`: files and directories into protected files."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adyton.cli.protected import (
    STREAM,
    AsJSON,
    Force,
    Home,
    Jobs,
    KeyFile,
    KeyName,
    Step,
    label,
    plain_bytes,
    plan,
    summary,
    told,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def encrypt(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Files, directories, patterns; - is a pipe.")],
    target: Annotated[
        str, typer.Option("--output", "-o", metavar="DEST", help="Protected file or directory; - is a pipe.")
    ],
    key: KeyName = None,
    key_file: KeyFile = None,
    home: Home = None,
    embedded: Annotated[str | None, typer.Option("--as", metavar="PATH", help="Embed this path, not DEST's.")] = None,
    version: Annotated[int, typer.Option("--format", min=1, max=2, help="1: for Gramine 1.8 and older.")] = 2,
    jobs: Jobs = None,
    force: Force = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", "-L", help="In directories, take what symbolic links lead to.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Encrypt files, so that only who has the key can read them, and only under the embedded path.

    The embedded path is DEST as you write it (for directories, each file's place below it): a program finds
    the file only under a mount that makes the same path of it, so write DEST as the manifest's URI does.
    A directory that was interrupted continues when you say the same again.
    """
    from adyton.cli.key_option import choose_key
    from adyton.cli.output import progress, say, say_json

    wrap_key = choose_key(key, key_file, home)
    done = []
    steps = plan(sources, target)
    _check_output(steps, embedded, as_json=as_json)
    for step in steps:
        total = plain_bytes(step, follow_links=follow_links)
        with progress(f"encrypting {label(step)}", total, quiet=as_json) as advance:
            done.append(
                _encrypt(
                    step,
                    wrap_key,
                    path=step.embedded(embedded),
                    version=version,
                    jobs=jobs,
                    force=force,
                    follow_links=follow_links,
                    advance=advance,
                )
            )
        if not as_json and step.target != STREAM:
            say(told(done[-1]))
    if as_json:
        say_json({"encrypted": done})


def _check_output(steps: list[Step], embedded: str | None, *, as_json: bool) -> None:
    from adyton.errors import UsageError

    if steps[0].target != STREAM:
        return
    if embedded is None:
        raise UsageError(
            "what goes to standard output has no path of its own to embed",
            check="embedded path",
            expected="--as PATH",
            seen="none",
            remedy="say with --as under which path it will be read",
        )
    if as_json or steps[0].is_tree:
        raise UsageError("standard output takes one file, and nothing else", check="-o -", expected="one file")


def _encrypt(
    step: Step, key: Any, *, path: str, jobs: int | None, follow_links: bool, **options: Any
) -> dict[str, Any]:
    import sys
    import tempfile
    from pathlib import Path

    from adyton.storage.files import copy_out, encrypt_file, encrypt_stream
    from adyton.storage.trees import encrypt_tree

    source = Path(step.source)
    if step.is_tree:
        tree = encrypt_tree(source, Path(step.target), key, path=path, jobs=jobs, follow_links=follow_links, **options)
        return summary(step, tree.size, tree.files, tree.resumed)
    if step.target == STREAM:
        # node 0 comes first and is sealed last: the ciphertext waits in a file
        with tempfile.TemporaryDirectory(prefix="adyton-") as folder:
            part = Path(folder) / "sealed"
            options |= {"sync": False}
            if step.source == STREAM:
                done = encrypt_stream(0, part, key, path=path, **options)
            else:
                done = encrypt_file(source, part, key, path=path, jobs=jobs, **options)
            with part.open("rb") as sealed:
                copy_out(sealed.fileno(), sys.stdout.buffer.write)
            sys.stdout.buffer.flush()
        return summary(step, done.size)
    if step.source == STREAM:
        return summary(step, encrypt_stream(0, Path(step.target), key, path=path, **options).size)
    return summary(step, encrypt_file(source, Path(step.target), key, path=path, jobs=jobs, **options).size)
