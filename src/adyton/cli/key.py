"""`adyton key`: make, list, import, export and rotate keys and secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.output import note, say, say_json
from adyton.cli.owner_options import HomeOption, JSONOption, owner_store

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="The keys of protected files, and other secrets that programs may be given.",
)

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
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make a new key and keep it in the store; nobody gets it until a program is approved for it."""
    from adyton.capped_read import read_private_file
    from adyton.errors import UsageError
    from adyton.keystore.home import actor
    from adyton.keystore.reader import KEY, SECRET
    from adyton.keystore.transaction import MAX_SECRET_BYTES
    from adyton.values import Key128

    if from_file is not None and secret is not None:
        raise UsageError("--from and --secret exclude each other", check="source of the key")
    if secret is not None:
        value, kind = read_private_file(secret, "secret", limit_bytes=MAX_SECRET_BYTES), SECRET
    elif from_file is not None:
        value, kind = Key128(read_private_file(from_file, "key file")).reveal(), KEY
    else:
        value, kind = Key128.generate().reveal(), KEY
    with owner_store(home) as (_, store), store.write() as change:
        made = change.add_key(name, value, kind, actor=actor())
    _show(made.name, made.kind, made.version, as_json=as_json)


@app.command("list")
def list_keys(home: HomeOption = None, as_json: JSONOption = False) -> None:
    """List keys and secrets with how many approvals each has; never their values."""
    from adyton.keystore.approval import APPROVED

    with owner_store(home) as (_, store), store.read() as view:
        keys = view.keys()
        standing = [item.approval.key for item in view.approvals() if item.state == APPROVED]
    if as_json:
        say_json(
            {
                "keys": [
                    {
                        "name": key.name,
                        "kind": key.kind,
                        "version": key.version,
                        "created_at": key.created_at.isoformat(),
                        "approvals": standing.count(key.name),
                    }
                    for key in keys
                ]
            }
        )
        return
    if not keys:
        note("no keys yet: adyton key new NAME")
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        count = standing.count(key.name)
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
    from adyton.atomic_file import write_private_file
    from adyton.keystore.clock import now_ms
    from adyton.keystore.home import actor

    with owner_store(home) as (_, store):
        with store.write() as change:
            info, value = change.reveal(name, version=version)
            body = {"key": name, "version": info.version, "actor": actor()}
            change.record("key-exported", name, body, now_ms())
        write_private_file(output, value)
    say(f"wrote {output} ({len(value)} bytes, mode 0600)")


@app.command()
def rotate(name: Name, home: HomeOption = None, as_json: JSONOption = False) -> None:
    """Make a new version of a key, which is released from now on; old versions stay for your own use.

    Files encrypted under the old version need `adyton rekey` before programs can read them again.
    """
    from adyton.keystore.home import actor
    from adyton.keystore.reader import KEY
    from adyton.values import Key128

    with owner_store(home) as (_, store), store.write() as change:
        made = change.add_key(name, Key128.generate().reveal(), KEY, actor=actor(), new_version=True)
    _show(made.name, made.kind, made.version, as_json=as_json)


@app.command("rotate-store")
def rotate_store(
    master: Annotated[bool, typer.Option("--master", help="Make a new master key too (kind: file).")] = False,
    home: HomeOption = None,
) -> None:
    """Wrap every key anew under a new data key (and, with --master, that one under a new master key)."""
    from adyton.keystore.home import actor, rotate_master_file

    with owner_store(home) as (found, store):
        with store.write() as change:
            version = change.rotate_data_key(actor=actor())
        say(f"data key version {version}")
        if master:
            rotate_master_file(found, store)
            say(f"new master key in {found.path / 'master.key'}; keys and policies are unchanged")


def _show(name: str, kind: str, version: int, *, as_json: bool) -> None:
    if as_json:
        say_json({"name": name, "kind": kind, "version": version})
        return
    say(f"{kind} {name}, version {version}; nobody may have it until you approve a program for it")
