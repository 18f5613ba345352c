"""`adyton platform`: make, show, change and serve a simulated TEE platform."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

if TYPE_CHECKING:
    from adyton.workflow.platform import Platform

app = group_app(
    "Simulated TEE platforms: the whole hierarchy of a real one under a root of its own. They protect nothing."
)

Folder = Annotated[Path, typer.Argument(help="Folder of the simulated platform.", metavar="DIR")]
UsualFolder = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of the simulated platform.  [ADYTON_SIM_PLATFORM, or ~/.adyton-sim]",
        metavar="DIR",
        show_default=False,
    ),
]


@app.command()
def new(
    directory: Folder,
    ca: Annotated[str, typer.Option(help="Which CA issues the PCK certificate: platform or processor.")] = "platform",
    without_chain: Annotated[
        bool, typer.Option("--without-chain", help="Quotes only name the platform (certification data type 3).")
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Make a new simulated platform with fresh keys in an empty or new folder."""
    from adyton.workflow.platform import new_platform

    _say(new_platform(directory, ca=ca, carries_chain=not without_chain), as_json=as_json)


@app.command()
def show(directory: UsualFolder = None, as_json: JSONOption = False) -> None:
    """Show a platform's root fingerprint, FMSPC and present TCB levels."""
    from adyton.workflow.platform import show_platform

    _say(show_platform(directory), as_json=as_json)


def _say(platform: Platform, *, as_json: bool) -> None:
    if as_json:
        say_json(platform.to_dict())
    else:
        tell(platform)


def tell(platform: Platform) -> None:
    """Say what a platform is, and that it protects nothing."""
    from adyton.workflow.platform import NOTICE

    say(f"simulated platform  {platform.directory}")
    say(f"root fingerprint    {platform.root_fingerprint}")
    say(f"names for a policy  {platform.name()}")
    say(f"                    {platform.name(tdx=True)}")
    say(f"FMSPC               {platform.fmspc.hex()}, TCB evaluation data {platform.evaluation_number}")
    for level in platform.levels:
        here = "this machine" if level.here else ""
        advisories = ", ".join(level.advisories)
        say(f"TCB level           {level.date[:10]} {level.status} {advisories} {here}".rstrip())
    if platform.revoked:
        say(f"revoked             {platform.revoked} certificate{'s' if platform.revoked > 1 else ''}")
    note(NOTICE)


@app.command("raise-tcb")
def raise_tcb(
    directory: Folder,
    status: Annotated[str, typer.Option(help="What the present level is called from now on.")] = "OutOfDate",
    part: Annotated[str, typer.Option(help="Whose levels: platform, qe, td-qe or module.")] = "platform",
    advisory: Annotated[list[str] | None, typer.Option(help="Advisory that the level gets (repeatable).")] = None,
    as_json: JSONOption = False,
) -> None:
    """Publish newer signed TCB info, after which this platform is no longer up to date."""
    from adyton.workflow.platform import raise_tcb as carry_out

    advisories = advisory or ("SIM-SA-00001",)
    _say(carry_out(directory, status=status, part=part, advisories=advisories), as_json=as_json)


@app.command()
def upgrade(directory: Folder, as_json: JSONOption = False) -> None:
    """Give the platform the newest firmware that its vendor published, under a new PCK certificate."""
    from adyton.workflow.platform import upgrade as carry_out

    _say(carry_out(directory), as_json=as_json)


@app.command()
def revoke(
    directory: Folder,
    what: Annotated[str, typer.Argument(help="pck, ca or signer.", metavar="WHAT")],
    as_json: JSONOption = False,
) -> None:
    """Revoke the platform's PCK certificate, the CA that issued it, or the signer of TCB info."""
    from adyton.workflow.platform import revoke_certificate

    _say(revoke_certificate(directory, what), as_json=as_json)


@app.command()
def quote(
    directory: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.", metavar="FILE")],
    measurement: Annotated[
        str, typer.Option(help="What the enclave says it runs: 64 hex digits.", metavar="HEX")
    ] = "00" * 32,
    report_data: Annotated[
        str, typer.Option(help="What the evidence is bound to: 128 hex digits.", metavar="HEX")
    ] = "00" * 64,
    tdx: Annotated[bool, typer.Option("--tdx", help="A TDX quote (sim-tdx) instead of an SGX quote (sim).")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Of an enclave that a debugger may read.")] = False,
) -> None:
    """Write a simulated quote over these values, to try `adyton verify` and policies with."""
    from adyton.errors import UsageError
    from adyton.values import Measurement
    from adyton.workflow.platform import NOTICE, write_quote

    try:
        data = bytes.fromhex(report_data)
    except ValueError:
        raise UsageError("report data is not hex", check="--report-data", expected="128 hex digits") from None
    program = Measurement.from_hex(measurement)
    made = write_quote(directory, output, measurement=program, report_data=data, tdx=tdx, debug=debug)
    say(f"{made.path}: {made.size_bytes} bytes of {made.tee} evidence")
    note(NOTICE)


@app.command()
def export(
    directory: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write (JSON).")],
    tdx: Annotated[bool, typer.Option("--tdx", help="Collateral for sim-tdx instead of sim.")] = False,
) -> None:
    """Write the collateral that verifying this platform's quotes needs, as it stands now."""
    from adyton.workflow.platform import export_platform

    say(str(export_platform(directory, output, tdx=tdx)))


@app.command()
def gpus(
    directory: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle of their collateral to write.")],
    count: Annotated[int, typer.Option(help="How many, where the platform has none so far.", min=1, max=8)] = 1,
    as_json: JSONOption = False,
) -> None:
    """Give a platform simulated GPUs for --tee sim-tdx, and write what their evidence is judged by."""
    from adyton.workflow.platform import platform_gpus

    made = platform_gpus(directory, output, count=count)
    if as_json:
        say_json(made.to_dict())
        return
    for ueid in made.ueids:
        say(f"GPU {ueid}")
    say(f"root {made.root} (in a policy: gpus.simulated_roots)")
    say(f"collateral: {made.collateral}")


@app.command()
def name(
    directory: UsualFolder = None,
    tdx: Annotated[bool, typer.Option("--tdx", help="The name for sim-tdx instead of sim.")] = False,
) -> None:
    """Say what a policy calls this platform, for `adyton approve --tee "$(adyton platform name)"`."""
    from adyton.workflow.platform import show_platform

    say(show_platform(directory).name(tdx=tdx))


@app.command()
def serve(
    directory: Folder,
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen at; port 0 is any free one.")] = "127.0.0.1:0",
    pccs: Annotated[bool, typer.Option("--pccs", help="Answer as a PCCS does, instead of as Intel's PCS.")] = False,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Answer at most so many requests in a minute; 429 to the others.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written once the service listens: JSON with its address.")
    ] = None,
) -> None:
    """Serve the platform's collateral over HTTP as Intel's PCS API v4 does, until interrupted."""
    from adyton.workflow.platform_server import serve_platform

    def say_where(url: str, fingerprint: str) -> None:
        say(f"listening {'pccs' if pccs else 'pcs'} {url}")
        say(f"simulated root {fingerprint}")
        sys.stdout.flush()

    serve_platform(
        directory, listen=listen, pccs=pccs, per_minute=per_minute, ready_file=ready_file, listening=say_where
    )
