"""`adyton agreement`: several owners consent to one program by signing the same short text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import AllowOption, HomeOption, JSONOption, RuntimeOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

if TYPE_CHECKING:
    from adyton.workflow.agreement import ShownAgreement

app = group_app("Agreements: several owners sign one short text about a program, and each can end it.")

AgreementFile = Annotated[Path, typer.Argument(metavar="FILE", help="The agreement (TOML).")]


@app.command()
def draft(
    manifest: Annotated[Path, typer.Argument(help="The final manifest (NAME.manifest, with NAME.sig beside it).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new file.")],
    name: Annotated[str | None, typer.Option(help="Name of the agreement.  [NAME]", show_default=False)] = None,
    runs: Annotated[int, typer.Option(help="How many runs there may be.")] = 10,
    until: Annotated[
        str | None,
        typer.Option(
            help="When it ends: a date (all of that day counts, UTC), or a time with its zone.  [in 90 days]",
            metavar="DATE",
            show_default=False,
        ),
    ] = None,
    by_signer: Annotated[
        bool, typer.Option("--by-signer", help="Agree on every version of this signer's product, from this SVN on.")
    ] = False,
    runtime: RuntimeOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Write a first text of an agreement about MANIFEST's program.

    The parties are the owners whom the manifest pins (adyton.owners). Read the file, change runs and until, and send it
    to the others. Whoever changes it later makes another agreement, with another id.
    """
    from adyton.workflow.agreement import draft_agreement

    made = draft_agreement(
        manifest, output, name=name, runs=runs, until=until, by_signer=by_signer, runtime=runtime, home=home
    )
    if as_json:
        say_json(made.to_dict())
        return
    show_text(made)
    note(f"wrote {output}: each party reads it, and signs it with adyton agreement sign {output}")


@app.command()
def show(file: AgreementFile, as_json: JSONOption = False) -> None:
    """Show an agreement as it is signed, and which of the signatures beside it hold."""
    from adyton.workflow.agreement import show_agreement

    shown = show_agreement(file)
    if as_json:
        say_json(shown.to_dict())
    else:
        show_text(shown)


@app.command()
def sign(
    file: AgreementFile,
    manifest: Annotated[
        Path | None,
        typer.Option(help="The program's final manifest.  [the store's own copy]", show_default=False),
    ] = None,
    runtime: RuntimeOption = None,
    allow: AllowOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Sign an agreement in your name, and write your signature beside it.

    The manifest of its program is compared with it: the measurement, whose CA is pinned for which key, and who can read
    what is written. What it opens is shown, and refused unless you name it with --allow: output in clear, keys in the
    manifest, debug, the network, clients. Send the file NAME.PARTY.sig to the other parties.
    """
    from adyton.workflow.agreement import sign_agreement
    from adyton.workflow.progress import unheard

    signed = sign_agreement(
        file, manifest=manifest, runtime=runtime, allow=allow or (), home=home, notice=unheard if as_json else note
    )
    if as_json:
        say_json(signed.to_dict())
        return
    show_text(signed.shown)
    if signed.named:
        say(f"  named: {', '.join(signed.named)}")
    note(f"wrote {signed.signature}: send it to the other parties, who put it beside their copy of {file.name}")


@app.command("list")
def list_signed(home: HomeOption = None, as_json: JSONOption = False) -> None:
    """List the agreements that you signed, with their state and the runs that had a key."""
    from adyton.workflow.agreement import list_agreements

    found = list_agreements(home=home)
    if as_json:
        say_json(found.to_dict())
        return
    if not found.agreements:
        note("no agreement was signed in this home: adyton agreement sign FILE")
    for item in found.agreements:
        agreement = item.stored.agreement
        parties = ", ".join(party.name for party in agreement.parties)
        say(
            f"{item.stored.id}  {item.stored.state:<8}  {agreement.name}: {parties};"
            f" {item.runs} of {agreement.runs} runs; until {agreement.until:%Y-%m-%d %H:%M} UTC"
        )


@app.command()
def revoke(
    agreement: Annotated[str, typer.Argument(metavar="ID", help="Its id (adyton agreement list).")],
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """End an agreement: your keys stop at once, and every other party's key server refuses the next run.

    A key that a running program already has stays with it; rotate the key if that matters. It cannot be taken back.
    """
    from adyton.workflow.agreement import revoke_agreement

    ended = revoke_agreement(agreement, home=home)
    if as_json:
        say_json(ended.to_dict())
    else:
        say(f"revoked {ended.stored.id}: {ended.stored.agreement.name} is no ground for any key any more")


def show_text(shown: ShownAgreement) -> None:
    """Say what an agreement says, and who signed it."""
    agreement = shown.agreement
    say(f"{agreement.id}: {agreement.name}")
    say(f"  {agreement.program}")
    say(f"  at most {agreement.runs} runs, until {agreement.until:%Y-%m-%d %H:%M:%S} UTC")
    refused = dict(shown.refused)
    for party in agreement.parties:
        signed = "signed" if party.name in shown.signed else "not signed"
        if party.name in refused:
            signed = f"a signature that does not hold: {refused[party.name].message}"
        say(f"  {party.name}: {signed}")
        say(f"    CA {party.owner}")
        say(f"    brings {', '.join(party.inputs) or 'nothing'}; receives {', '.join(party.receives) or 'nothing'}")
