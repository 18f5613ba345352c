"""`adyton platform`: make, show, change and serve a simulated TEE platform."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.output import note, say, say_json

if TYPE_CHECKING:
    from adyton.sim.platform import CAKind

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Simulated TEE platforms: the whole hierarchy of a real one under a root of its own. They protect nothing.",
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
AsJSON = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]


@app.command()
def new(
    directory: Folder,
    ca: Annotated[str, typer.Option(help="Which CA issues the PCK certificate: platform or processor.")] = "platform",
    without_chain: Annotated[
        bool, typer.Option("--without-chain", help="Quotes only name the platform (certification data type 3).")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Make a new simulated platform with fresh keys in an empty or new folder."""
    from adyton.errors import UsageError
    from adyton.sim.platform import SimPlatform

    if ca not in ("platform", "processor"):
        raise UsageError(f"no CA named {ca!r}", check="--ca", expected="platform or processor", seen=ca)
    kind: CAKind = "processor" if ca == "processor" else "platform"
    platform = SimPlatform.create(directory, ca=kind, carries_chain=not without_chain)
    _show(platform.directory, as_json=as_json)


@app.command()
def show(directory: UsualFolder = None, as_json: AsJSON = False) -> None:
    """Show a platform's root fingerprint, FMSPC and present TCB levels."""
    from adyton.sim.files import platform_directory

    _show(platform_directory(directory), as_json=as_json)


def _show(directory: Path, *, as_json: bool) -> None:
    from adyton.sim.machine import NOTICE
    from adyton.sim.platform import SimPlatform

    platform = SimPlatform.load(directory)
    publication = platform.publication()
    if as_json:
        say_json(
            {
                "simulated": True,
                "directory": str(directory),
                "root_fingerprint": platform.root_fingerprint.hex(),
                "tees": [f"sim:{platform.root_fingerprint}", f"sim-tdx:{platform.root_fingerprint}"],
                "fmspc": publication.fmspc.hex(),
                "evaluation_number": publication.evaluation_number,
                "levels": [
                    {"status": level.status, "date": level.date, "advisories": list(level.advisories)}
                    for level in publication.levels
                ],
                "revoked": len(publication.revoked_by_root) + len(publication.revoked_by_ca),
            }
        )
        return
    say(f"simulated platform  {directory}")
    say(f"root fingerprint    {platform.root_fingerprint}")
    say(f"names for a policy  sim:{platform.root_fingerprint}")
    say(f"                    sim-tdx:{platform.root_fingerprint}")
    say(f"FMSPC               {publication.fmspc.hex()}, TCB evaluation data {publication.evaluation_number}")
    for level in publication.levels:
        here = "this machine" if platform.has_machine and level.sgx == platform.machine.components else ""
        advisories = ", ".join(level.advisories)
        say(f"TCB level           {level.date[:10]} {level.status} {advisories} {here}".rstrip())
    if publication.revoked_by_root or publication.revoked_by_ca:
        count = len(publication.revoked_by_root) + len(publication.revoked_by_ca)
        say(f"revoked             {count} certificate{'s' if count > 1 else ''}")
    note(NOTICE)


@app.command("raise-tcb")
def raise_tcb(
    directory: Folder,
    status: Annotated[str, typer.Option(help="What the present level is called from now on.")] = "OutOfDate",
    part: Annotated[str, typer.Option(help="Whose levels: platform, qe, td-qe or module.")] = "platform",
    advisory: Annotated[list[str] | None, typer.Option(help="Advisory that the level gets (repeatable).")] = None,
    as_json: AsJSON = False,
) -> None:
    """Publish newer signed TCB info, after which this platform is no longer up to date."""
    from adyton.errors import UsageError
    from adyton.sim.platform import PARTS, SimPlatform

    platform = SimPlatform.load(directory)
    for known in PARTS:
        if part == known:
            platform.raise_tcb(part=known, status=status, advisories=tuple(advisory or ("SIM-SA-00001",)))
            break
    else:
        raise UsageError(f"no part named {part!r}", check="--part", expected=", ".join(PARTS), seen=part)
    _show(directory, as_json=as_json)


@app.command()
def upgrade(directory: Folder, as_json: AsJSON = False) -> None:
    """Give the platform the newest firmware that its vendor published, under a new PCK certificate."""
    from adyton.sim.platform import SimPlatform

    SimPlatform.load(directory).upgrade()
    _show(directory, as_json=as_json)


@app.command()
def revoke(
    directory: Folder,
    what: Annotated[str, typer.Argument(help="pck, ca or signer.", metavar="WHAT")],
    as_json: AsJSON = False,
) -> None:
    """Revoke the platform's PCK certificate, the CA that issued it, or the signer of TCB info."""
    from adyton.errors import UsageError
    from adyton.sim.platform import REVOCABLE, SimPlatform

    platform = SimPlatform.load(directory)
    for known in REVOCABLE:
        if what == known:
            platform.revoke(known)
            break
    else:
        raise UsageError(f"nothing named {what!r} to revoke", expected=", ".join(REVOCABLE), seen=what)
    _show(directory, as_json=as_json)


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
    from adyton.atomic_file import write_file
    from adyton.errors import UsageError
    from adyton.sim.machine import NOTICE
    from adyton.sim.platform import SimPlatform
    from adyton.values import Measurement

    try:
        data = bytes.fromhex(report_data)
    except ValueError:
        raise UsageError("report data is not hex", check="--report-data", expected="128 hex digits") from None
    source = SimPlatform.load(directory).enclave(
        measurement=Measurement.from_hex(measurement), debug=debug, shape="tdx" if tdx else "sgx"
    )
    evidence = source.quote(data)
    write_file(output, evidence, 0o644)
    say(f"{output}: {len(evidence)} bytes of {source.tee} evidence")
    note(NOTICE)


@app.command()
def export(
    directory: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write (JSON).")],
    tdx: Annotated[bool, typer.Option("--tdx", help="Collateral for sim-tdx instead of sim.")] = False,
) -> None:
    """Write the collateral that verifying this platform's quotes needs, as it stands now."""
    import json
    from datetime import UTC, datetime

    from adyton.atomic_file import write_file
    from adyton.sim.platform import SimPlatform

    collateral = SimPlatform.load(directory).collateral_dict(datetime.now(UTC), tee="tdx" if tdx else "sgx")
    write_file(output, json.dumps(collateral, indent=1).encode() + b"\n", 0o644)
    say(str(output))


@app.command()
def name(
    directory: UsualFolder = None,
    tdx: Annotated[bool, typer.Option("--tdx", help="The name for sim-tdx instead of sim.")] = False,
) -> None:
    """Say what a policy calls this platform, for `adyton approve --tee "$(adyton platform name)"`."""
    from adyton.sim.files import platform_directory
    from adyton.sim.platform import SimPlatform

    say(f"{'sim-tdx' if tdx else 'sim'}:{SimPlatform.load(platform_directory(directory)).root_fingerprint}")


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
    import json

    from adyton.address import parse_listening_address
    from adyton.atomic_file import write_file
    from adyton.sim import pcs_server
    from adyton.sim.platform import SimPlatform

    platform = SimPlatform.load(directory)
    fingerprint = platform.root_fingerprint
    platform.publication()
    listening = pcs_server.bind(*parse_listening_address(listen, "--listen"))
    with listening:
        url = pcs_server.url_of(listening)
        say(f"listening {'pccs' if pccs else 'pcs'} {url}")
        say(f"simulated root {fingerprint}")
        sys.stdout.flush()
        if ready_file is not None:
            ready = {
                "url": url,
                "form": "pccs" if pccs else "pcs",
                "simulated": True,
                "root_fingerprint": f"{fingerprint}",
            }
            write_file(ready_file, json.dumps(ready).encode() + b"\n", 0o644)
        application = pcs_server.application(platform, form="pccs" if pccs else "pcs", per_minute=per_minute)
        pcs_server.serve(application, listening)
