"""`adyton backup`: everything of an owner's home in one sealed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.output import say, say_json
from adyton.cli.owner_options import HomeOption, JSONOption, owner_store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    from adyton.atomic_file import write_private_file
    from adyton.capped_read import read_private_file
    from adyton.errors import UsageError
    from adyton.keystore.backup import back_up
    from adyton.keystore.home import actor, ask_passphrase

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
    with owner_store(home) as (found, store):
        made = back_up(found, store, output, passphrase=passphrase, split=numbers, actor=actor())
    files = []
    if shares is not None and made:
        shares.mkdir(parents=True, exist_ok=True, mode=0o700)
        for share in made:
            path = shares / f"share-{share.backup}-{share.number}-of-{share.total}.txt"
            write_private_file(path, share.to_text().encode())
            files.append(str(path))
    if as_json:
        say_json({"backup": str(output), "size_bytes": output.stat().st_size, "shares": files})
        return
    say(f"backup  {output} ({output.stat().st_size / 1e6:.1f} MB)")
    for path_text in files:
        say(f"share   {path_text}")
    if files:
        say("give each share to another person; keep none of them with the backup")
