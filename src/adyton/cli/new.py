"""`adyton new`: run a program once, natively, and write the manifest template that it needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.output import note, say, say_json
from adyton.errors import TargetExists, UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_OPTIONS = ("--name", "--python", "--key", "--force", "--json", "--tee", "--home", "--sim-platform")


def _note_misplaced(arguments: list[str]) -> None:
    """Say which of the program's arguments look as if they were meant for Adyton."""
    meant = [text for text in arguments if text.partition("=")[0] in _OPTIONS]
    if meant:
        note(f"{', '.join(meant)}: given to the program; options of Adyton stand before SCRIPT")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def new(
    script: Annotated[Path, typer.Argument(help="A Python script, or any program.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Its arguments, as it needs them for a real run.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the template.  [the script's]")] = None,
    python: Annotated[Path | None, typer.Option(help="Interpreter for a script.  [the one that runs Adyton]")] = None,
    key: Annotated[str, typer.Option(help="Name of the key of inputs and outputs.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Replace an older template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as JSON.")] = False,
) -> None:
    """Run SCRIPT once in the current folder, watch which files it reads and writes, and write NAME.manifest.template.

    The run is a real one: the program's outputs are written. Options of Adyton stand before SCRIPT.
    """
    from adyton.atomic_file import write_file
    from adyton.manifest.observe import observe
    from adyton.manifest.propose import propose

    if not script.is_file():
        raise UsageError(f"there is no file {script}", check="script", expected="a file", seen="nothing")
    name = name or script.stem
    template, listing = Path(f"{name}.manifest.template"), Path(f"{name}.trusted")
    for path in (template, listing):
        if path.exists() and not force:
            raise TargetExists(
                f"{path} exists already", check="target", expected="no such file", seen=str(path), remedy="give --force"
            )
    if script.suffix == ".py":
        command = [str(python or sys.executable), str(script), *(arguments or [])]
    else:
        command = [str(script.absolute()), *(arguments or [])]
    if not as_json:
        note(f"running {' '.join(command[:2])} once, natively")
    _note_misplaced(arguments or [])
    cpus = len(os.sched_getaffinity(0))
    seen = observe(command, Path.cwd())
    found = propose(seen, name=name, script=str(script), cpus=cpus, key_name=key, environment=os.environ)
    write_file(template, found.template.encode())
    write_file(listing, found.trusted_list.encode())
    if as_json:
        say_json(
            {
                "template": str(template),
                "list": str(listing),
                "trusted_files": len(found.trusted),
                "data": [
                    {
                        "path": mount.path,
                        "source": mount.source,
                        "encrypted": mount.encrypted,
                        "input": mount.is_input,
                        "output": mount.is_output,
                    }
                    for mount in found.data
                ],
                "left_out": list(found.left_out),
                "peak_bytes": seen.peak_bytes,
                "peak_threads": seen.peak_threads,
                "wall_s": seen.wall_s,
            }
        )
        return
    say(f"{template}: the manifest's template, to read and to change")
    say(f"{listing}: {len(found.trusted)} trusted files")
    for mount in found.data:
        role = "input and output" if mount.is_input and mount.is_output else "input" if mount.is_input else "output"
        say(f"encrypted {role}: {mount.source} -> {mount.encrypted}")
    if found.left_out:
        say(f"left out, the host's own state: {', '.join(found.left_out)}")
