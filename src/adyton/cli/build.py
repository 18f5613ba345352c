"""`adyton build`: a manifest template becomes the final manifest, hashed, measured and signed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption, RuntimeOption
from adyton.cli.output import note, progress, say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from adyton.workflow.build import Built

app = verb_app()


@app.command()
def build(
    template: Annotated[Path, typer.Argument(help="The manifest template (Gramine's TOML with Jinja).")],
    define: Annotated[
        list[str] | None, typer.Option("-D", "--define", metavar="NAME=VALUE", help="A variable of the template.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="An environment variable that the template may read: env.NAME."),
    ] = None,
    program: Annotated[
        list[str] | None,
        typer.Option("--program", metavar="PATH", help="A program whose libraries the template may list: ldd(PATH)."),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            "--python",
            metavar="PATH",
            help="A Python that the template may ask about: python.get_sys_path(PATH), which runs it, and ldd(PATH).",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.manifest and NAME.sig.")] = Path(),
    home: HomeOption = None,
    signer: Annotated[Path | None, typer.Option(help="Signing key, RSA-3072 with e = 3.  [HOME/signer.pem]")] = None,
    date: Annotated[str, typer.Option(help="Date in the signature (YYYY-MM-DD).")] = "0000-00-00",
    gramine: Annotated[bool, typer.Option("--gramine", help="Also prepare NAME.gramine.* for --tee sgx.")] = False,
    gramine_defaults: Annotated[
        bool,
        typer.Option(
            "--gramine-defaults",
            help="Where the template does not say: output in clear, input from the host, and the host's network, as"
            " under Gramine.",
        ),
    ] = False,
    runtime: RuntimeOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what would only be warned of.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Hash every file again.")] = False,
    as_json: JSONOption = False,
) -> None:
    """Render TEMPLATE, hash every trusted file, sign, and print the measurement that the owner approves.

    The measurement names the Adyton that will run the manifest: the one installed here, or with --runtime the one in a
    guest image. Relative paths in the template are relative to the current folder, as they will be for `adyton run`.
    """
    from adyton.workflow.build import build as carry_out

    built = carry_out(
        template,
        define=define or (),
        env=env or (),
        programs=program or (),
        pythons=python or (),
        output=output,
        home=home,
        signer=signer,
        date=date,
        gramine=gramine,
        gramine_defaults=gramine_defaults,
        runtime=runtime,
        strict=strict,
        use_cache=not no_cache,
        progress=partial(progress, quiet=as_json),
    )
    if as_json:
        say_json(built.to_dict())
    else:
        show(built)


def show(built: Built) -> None:
    """Say what was built, and warn of what it leaves open."""
    megabytes = built.trusted_bytes / 1e6
    say(f"manifest     {built.manifest}  ({built.trusted_files} trusted files, {megabytes:.1f} MB)")
    say(f"signature    {built.signature}")
    say(f"measurement  {built.measurement}")
    say(f"MRSIGNER     {built.mrsigner}")
    say(f"runtime      {built.runtime}")
    say(f"keys         {', '.join(built.keys) or 'none'}")
    for name, server in built.owners.items():
        say(f"owner        {name}: {server}")
    for line in built.notes:
        note(line)
    for finding in built.warnings:
        about = f"{finding.key}: {finding.what}; {finding.remedy}"
        note(f"warning ({finding.danger.name.lower()}): {about} [{finding.name}]")
    for key, reason in built.refused_by_the_runtime:
        note(f"warning: Adyton's runtime refuses {key}: {reason} (only under sgx)")
    for tee, key, reason in built.refused_by_tees:
        note(f"warning: {tee} refuses {key}: {reason}")
    if built.gramine is not None:
        say(f"MRENCLAVE    {built.gramine.measurement}  (--tee sgx, under Gramine)")
        for line in built.gramine.notes:
            note(f"gramine: {line}")
    say("the measurement does not cover:")
    for line in built.not_covered:
        say(f"  - {line}")
