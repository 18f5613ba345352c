"""`adyton pack`: one file that carries an approved program to the machine that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import ForceOption, HomeOption, JSONOption, RuntimeOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from adyton.workflow.pack import Packed

app = verb_app()


@app.command()
def pack(
    manifest: Annotated[Path, typer.Argument(help="NAME.manifest as `adyton build` wrote it, NAME.sig beside it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The pack.  [NAME.adyton]", show_default=False)
    ] = None,
    no_system: Annotated[
        bool, typer.Option("--no-system", help="Leave out what lies in /usr, /lib, /etc and their like.")
    ] = False,
    force: ForceOption = False,
    runtime: RuntimeOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Write manifest, signature, trusted files and ciphertext into one file, for `adyton run FILE` elsewhere.

    Start it in the folder where the manifest was built. No key and no secret goes into it, and nothing is believed
    because it comes from it. With --no-system the other machine needs the same release of the system.
    """
    from adyton.workflow.pack import pack as carry_out

    packed = carry_out(manifest, output, system=not no_system, force=force, runtime=runtime, home=home)
    if as_json:
        say_json(packed.to_dict())
        return
    show(packed)


def show(packed: Packed) -> None:
    """Say what was packed, and what the other machine must have beside it."""
    say(f"{packed.pack}: {packed.files} files, {packed.size_bytes / 1e6:.1f} MB, measurement {packed.measurement}")
    if packed.left_out:
        say(f"left out: {packed.left_out} files of the system, which the other machine must have")
    for source in packed.absent:
        say(f"not on this machine: {source}; its owner brings it into the folder work/ of the unpacked program")
