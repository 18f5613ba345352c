"""`adyton protect`: everything that the owner does before a run, each step said as the command that does it alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import AllowOption, ClientOption, HomeOption, JSONOption, PinnedOption, ServeOption, WatchOption
from adyton.cli.output import note, progress, results_alone, say, say_json, say_moved
from adyton.cli.verb import verb_app
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.workflow.protect import StepResult

app = verb_app()


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def protect(
    script: Annotated[str, typer.Argument(help="A Python script, a folder with __main__.py, -m MODULE, any program.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Its arguments, as it needs them for a real run.")
    ] = None,
    tee: Annotated[
        str | None,
        typer.Option(help="Where it may run: sgx, tdx, snp, sim:FINGERPRINT; sim makes a simulated platform here."),
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the key of inputs and outputs; made if there is none.")] = "default",
    name: Annotated[str | None, typer.Option(help="Name of the program.  [the script's]", show_default=False)] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter of a script.  [the active environment's, else Adyton's]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an older template and older encrypted inputs.")
    ] = False,
    allow: AllowOption = None,
    pack: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the program into FILE (NAME.adyton) too, as `adyton pack` does."),
    ] = None,
    serve: ServeOption = None,
    watch: WatchOption = None,
    client: ClientOption = None,
    pinned: PinnedOption = False,
    home: HomeOption = None,
    sim_platform: Annotated[
        Path | None,
        typer.Option(envvar="ADYTON_SIM_PLATFORM", help="Folder of the simulated platform.  [~/.adyton-sim]"),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Run SCRIPT once as it is, and make of it a program that may run on a machine that you do not trust.

    Makes your identity and key where there are none, finds the files that the script needs, encrypts its inputs, builds
    and signs the manifest, and approves it for the key. Each step is shown as the command that does it alone.
    Options of Adyton stand before SCRIPT.
    """
    if tee is None:
        raise UsageError(
            "say where the program may run",
            check="--tee",
            expected="sgx, tdx, snp, sim:FINGERPRINT, or sim for a simulated platform on this machine",
            seen="nothing",
            remedy="adyton protect --tee sim …, to try it here",
        )
    from adyton.cli.new import note_misplaced
    from adyton.workflow.protect import protect as carry_out

    note_misplaced(arguments or [])
    with results_alone(alone=as_json):
        made = carry_out(
            script,
            *(arguments or ()),
            tee=tee,
            key=key,
            name=name,
            python=python,
            force=force,
            allow=allow or (),
            pack_to=pack,
            serve=serve,
            watch=watch,
            client=client,
            pinned=pinned,
            home=home,
            sim_platform=sim_platform,
            notice=note,
            progress=progress,
            begun=lambda command: None if as_json else say(f"$ {command}"),
            ended=lambda result: None if as_json else _show(result),
        )
    if as_json:
        say_json(made.to_dict())
        return
    say("")
    say("next, the key server on your machine, and the program on the other one:")
    for command in made.next_steps:
        say(f"  {command}")
    if made.pack is not None:
        say(f"before you decrypt, bring {made.pack.stem}/work/encrypted/ of the other machine into encrypted/ here")


def _show(result: StepResult) -> None:
    """Say what came of a step as its own verb does; of the native run, what will be otherwise."""
    from adyton.cli import approve, build, collateral, init, key, new, pack, pin, platform
    from adyton.workflow import protect as steps

    match result:
        case steps.Initialized():
            init.show(result)
        case steps.NewKey():
            key.show(result)
        case steps.Platform():
            platform.tell(result)
        case Path():
            say(str(result))
        case steps.Taken():
            collateral.show_taken(result)
        case steps.Encrypted():
            for item in result.sources:
                say_moved(item)
        case steps.Pinned():
            pin.show(result)
        case steps.Built():
            build.show(result)
        case steps.Approved():
            approve.show(result)
        case steps.Packed():
            pack.show(result)
        case steps.Proposed():
            new.show_differences(result)
