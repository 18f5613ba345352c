"""`adyton backup`: everything of an owner's home in one sealed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def backup(
    output: Annotated[Path, typer.Option("-o", "--output", help="The new file.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="Instead of a passphrase: M shares, any N of which open it.", metavar="N/M", show_default=False
        ),
    ] = None,
    shares: Annotated[
        Path | None, typer.Option(help="With --split: folder for the share files.", show_default=False)
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the passphrase from this file.  [ask]", show_default=False)
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Write keys, policies, audit record, certificates and configuration to one sealed file; serving goes on meanwhile.

    It is sealed with a passphrase, or (--split 2/3 --shares DIR) with a key of which each trusted person keeps a share.
    """
    from adyton.capped_read import read_private_file
    from adyton.errors import UsageError
    from adyton.keystore.passphrase import ask_passphrase
    from adyton.workflow.backup import backup as carry_out

    numbers: tuple[int, int] | None = None
    passphrase: bytes | None = None
    if split is not None:
        needed, slash, total = split.partition("/")
        if not slash or not needed.isdigit() or not total.isdigit() or shares is None or passphrase_file is not None:
            raise UsageError(
                "say how to split", check="--split", expected="--split N/M --shares DIR, no passphrase", seen=split[:40]
            )
        numbers = int(needed), int(total)
    elif passphrase_file is not None:
        passphrase = read_private_file(passphrase_file, "passphrase file").rstrip(b"\r\n")
    else:
        passphrase = ask_passphrase(confirm=True)
    made = carry_out(output, passphrase=passphrase, split=numbers, shares=None if split is None else shares, home=home)
    if as_json:
        say_json(made.to_dict())
        return
    say(f"backup  {made.backup} ({made.size_bytes / 1e6:.1f} MB)")
    for path in made.shares:
        say(f"share   {path}")
    if made.shares:
        say("give each share to another person; keep none of them with the backup")
