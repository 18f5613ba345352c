"""`adyton key`: make, list, import, export and rotate keys and secrets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

if TYPE_CHECKING:
    from adyton.workflow.keys import NewKey

app = group_app("The keys of protected files, and other secrets that programs may be given.")

Name = Annotated[str, typer.Argument(help="Name of the key, as manifests call it.")]


@app.command()
def new(
    name: Name,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", help="Take the 16 bytes of this file instead of drawing a key.", show_default=False),
    ] = None,
    secret: Annotated[
        Path | None,
        typer.Option(help="Store this file's content as a secret (for [adyton.secrets]).", show_default=False),
    ] = None,
    nul: Annotated[
        bool,
        typer.Option("--nul", help="End the secret in a NUL byte, as Gramine's SECRET_PROVISION_CONSTRUCTOR wants it."),
    ] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make a new key and keep it in the store; nobody gets it until a program is approved for it."""
    from adyton.workflow.keys import new_key

    _say(new_key(name, from_file=from_file, secret=secret, nul=nul, home=home), as_json=as_json)


@app.command("list")
def list_keys(home: HomeOption = None, as_json: JSONOption = False) -> None:
    """List keys and secrets with how many approvals each has; never their values."""
    from adyton.workflow.keys import list_keys as carry_out

    found = carry_out(home=home)
    if as_json:
        say_json(found.to_dict())
        return
    if not found.keys:
        note("no keys yet: adyton key new NAME")
    width = max((len(key.name) for key in found.keys), default=0)
    for key in found.keys:
        count = key.approvals
        whom = "nobody may have it" if not count else f"{count} approval{'s' if count > 1 else ''}"
        say(f"{key.name:<{width}}  {key.kind:<6}  version {key.version}  {key.created_at:%Y-%m-%d}  {whom}")


@app.command()
def export(
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="The new file: 16 raw bytes, mode 0600.")],
    version: Annotated[int | None, typer.Option(help="An older version of the key.", show_default=False)] = None,
    home: HomeOption = None,
) -> None:
    """Write a key to a new file that only you can read."""
    from adyton.workflow.keys import export_key

    size = export_key(name, output, version=version, home=home)
    say(f"wrote {output} ({size} bytes, mode 0600)")


@app.command()
def rotate(name: Name, home: HomeOption = None, as_json: JSONOption = False) -> None:
    """Make a new version of a key, which is released from now on; old versions stay for your own use.

    Approvals stay: they name the key, not its version. Files encrypted under the old version need
    `adyton rekey` before programs can read them again.
    """
    from adyton.workflow.keys import rotate_key

    made = rotate_key(name, home=home)
    if as_json:
        say_json(made.to_dict())
        return
    old = f"{name}@{made.version - 1}"
    say(f"key {name}, version {made.version}; approvals of {name} stay, and release this version from now on")
    say(f"seal your files again, so that programs can read them: adyton rekey FILES --key {old} --new-key {name}")


@app.command("rotate-store")
def rotate_store(
    master: Annotated[bool, typer.Option("--master", help="Make a new master key too (kind: file).")] = False,
    home: HomeOption = None,
) -> None:
    """Wrap every key anew under a new data key (and, with --master, that one under a new master key)."""
    from adyton.workflow.keys import rotate_store as carry_out

    done = carry_out(master=master, home=home)
    say(f"data key version {done.data_key_version}")
    if done.master_file is not None:
        say(f"new master key in {done.master_file}; keys and policies are unchanged")


def _say(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        say_json(made.to_dict())
    else:
        show(made)


def show(made: NewKey) -> None:
    """Say which key there is now."""
    say(f"{made.kind} {made.name}, version {made.version}; nobody may have it until you approve a program for it")
