"""The command line of `adyton run` as Typer has it: for its help, and for what is wrong with a command line.

`adyton.cli.run` gives the function that carries out a request as the context's object, so that this module need not
import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.verb import verb_app
from adyton.workflow.run import Request

app = verb_app()


@app.command()
def run(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="NAME.manifest, NAME.sig beside it; or a pack, NAME.adyton.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments for the program (after --), where its manifest takes them from here."),
    ] = None,
    tee: Annotated[
        str | None,
        typer.Option(
            metavar="TEE",
            help="sgx, tdx, snp, tpm, az-snp, az-tdx; sim, sim-tdx and sim-tpm protect nothing.",
        ),
    ] = None,
    key_server: Annotated[
        list[str] | None,
        typer.Option(metavar="[OWNER=]HOST:PORT", help="Where an owner's key server listens."),
    ] = None,
    sim_platform: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The simulated platform.  [ADYTON_SIM_PLATFORM, or ~/.adyton-sim]"),
    ] = None,
    provisioning: Annotated[
        str, typer.Option(help="How to ask for keys: adyton, or ra-tls (Gramine's secret provisioning).")
    ] = "adyton",
    grants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the grants here, with the key servers' checkpoints, for `adyton audit verify --checkpoint`.",
        ),
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a receipt of the run here: what it made of what, to be verified."),
    ] = None,
    receipt_plaintext: Annotated[
        bool,
        typer.Option("--receipt-plaintext", help="Have the receipt name SHA-256 of plaintexts, too."),
    ] = False,
    after: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Receipt of a run that made inputs of this one; several allowed."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When the program has ended, say how, as JSON on standard output.")
    ] = False,
) -> None:
    """Run the program of MANIFEST on its files, with the keys that their owners release to it.

    A pack is unpacked beside itself first, into NAME/, and its program runs in NAME/work/.
    Relative paths in the manifest are relative to the current folder. Standard output and error go to the encrypted
    log, unless the manifest says insecure__stdio. Exit code: the program's own; where Adyton failed, its error's.
    """
    request = Request(
        manifest=manifest,
        tee=tee,
        key_servers=tuple(key_server or ()),
        sim_platform=sim_platform,
        provisioning=provisioning,
        grants=grants,
        receipt=receipt,
        receipt_plaintext=receipt_plaintext,
        after=tuple(after or ()),
        arguments=tuple(arguments or ()),
    )
    context.obj(request, as_json)
