"""`adyton new`: run a program once, natively, and write the manifest template that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import ClientOption, JSONOption, PinnedOption, ServeOption, WatchOption
from adyton.cli.output import note, results_alone, say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from adyton.workflow.new import Proposed

app = verb_app()

_OPTIONS = (
    "--name",
    "--python",
    "--key",
    "--force",
    "--json",
    "--tee",
    "--allow",
    "--home",
    "--sim-platform",
    "--serve",
    "--watch",
    "--client",
    "--pinned",
)


def note_misplaced(arguments: list[str]) -> None:
    """Say which of the program's arguments look as if they were meant for Adyton."""
    meant = [text for text in arguments if text.partition("=")[0] in _OPTIONS]
    if meant:
        note(f"{', '.join(meant)}: given to the program; options of Adyton stand before SCRIPT")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def new(
    script: Annotated[str, typer.Argument(help="A Python script, a folder with __main__.py, -m MODULE, any program.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Its arguments, as it needs them for a real run.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the template.  [the script's]")] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter of a script.  [the active environment's, else Adyton's]")
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the key of inputs and outputs.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Replace an older template.")] = False,
    serve: ServeOption = None,
    watch: WatchOption = None,
    client: ClientOption = None,
    pinned: PinnedOption = False,
    as_json: JSONOption = False,
) -> None:
    """Run SCRIPT once in the current folder, watch which files it reads and writes, and write NAME.manifest.template.

    The run is a real one: the program's outputs are written. Options of Adyton stand before SCRIPT.
    """
    from adyton.workflow.new import new as carry_out
    from adyton.workflow.progress import unheard

    words = arguments or []
    note_misplaced(words)
    with results_alone(alone=as_json):
        found = carry_out(
            script,
            *words,
            name=name,
            python=python,
            key=key,
            force=force,
            serve=serve,
            watch=watch,
            client=client,
            pinned=pinned,
            notice=unheard if as_json else note,
        )
    if as_json:
        say_json(found.to_dict())
        return
    say(f"{found.template}: the manifest's template, to read and to change")
    say(f"{found.trusted_list}: {found.trusted_files} trusted files")
    for mount in found.data:
        role = "input and output" if mount.is_input and mount.is_output else "input" if mount.is_input else "output"
        say(f"encrypted {role}: {mount.source} -> {mount.encrypted}")
    if found.left_out:
        say(f"left out, the host's own state: {', '.join(found.left_out)}")
    show_differences(found)


def show_differences(found: Proposed) -> None:
    """Say what the program will find otherwise than in the run that was watched."""
    for difference in found.differences:
        say(f"otherwise than in this run: {difference.what}")
        say(f"  remedy   {difference.remedy}")
