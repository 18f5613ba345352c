"""The command line of `adyton run` as Typer has it: for its help, and for what is wrong with a command line.

`adyton.cli.run` gives the function that carries out a request as the context's object, so that this module need not
import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from adyton.cli.output import note, say, say_json
from adyton.cli.verb import verb_app
from adyton.workflow.run import Request

app = verb_app()

BOOT_TIMEOUT_S: Final = 600.0


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
            help="sgx, tdx, snp, tpm, az-snp, az-tdx, nitrotpm; sim, sim-tdx and sim-tpm protect nothing.",
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
    gpu_collateral: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="For a program with GPUs: RIMs and OCSP answers to verify them with (adyton collateral export).",
        ),
    ] = None,
    agreement: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="The agreement that approvals rest on: every other owner's server is asked."),
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
    vm: Annotated[
        Path | None,
        typer.Option(
            "--vm",
            metavar="DIR",
            help="Run it in this guest image, in QEMU: with --tee tdx or snp on such a host, with sim-tpm anywhere.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="With --vm: print QEMU's command line, and start nothing.")
    ] = False,
    firmware: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --vm: firmware.  [OVMF.fd of the image]")
    ] = None,
    kvm: Annotated[bool, typer.Option("--kvm", help="With --vm: use KVM for sim-tpm, where it works.")] = False,
    memory: Annotated[
        int | None,
        typer.Option(metavar="MIB", min=512, help="With --vm: memory.  [2 GiB and four times the program's files]"),
    ] = None,
    vcpus: Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="With --vm: processors.")] = 1,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="With --vm: how long the guest may take to the program.")
    ] = BOOT_TIMEOUT_S,
) -> None:
    """Run the program of MANIFEST on its files, with the keys that their owners release to it.

    A pack is unpacked beside itself first, into NAME/, and its program runs in NAME/work/.
    Relative paths in the manifest are relative to the current folder. Standard output and error go to the encrypted
    log, unless the manifest says insecure__stdio. Exit code: the program's own; where Adyton failed, its error's.

    With --vm the program runs in a guest image, and its outputs come back to the same places. The guest's console goes
    to standard error, and what the program prints under insecure__stdio to standard output.
    """
    request = Request(
        manifest=manifest,
        tee=tee,
        key_servers=tuple(key_server or ()),
        sim_platform=sim_platform,
        provisioning=provisioning,
        grants=grants,
        gpu_collateral=gpu_collateral,
        agreements=tuple(agreement or ()),
        receipt=receipt,
        receipt_plaintext=receipt_plaintext,
        after=tuple(after or ()),
        arguments=tuple(arguments or ()),
    )
    if vm is None:
        if show or firmware is not None or kvm or memory is not None or vcpus != 1 or timeout != BOOT_TIMEOUT_S:
            raise typer.BadParameter("--print, --firmware, --kvm, --memory, --vcpus and --timeout need --vm DIR")
        context.obj(request, as_json)
        return
    from adyton.workflow.run_vm import GuestRun, printed_run, require, run_in_guest

    wanted = GuestRun(
        request=request,
        image=vm,
        firmware=firmware,
        kvm=kvm,
        memory_mib=memory,
        vcpus=vcpus,
        timeout_s=timeout,
    )
    if show:
        say(printed_run(wanted))
        return
    ran = run_in_guest(wanted, lambda text: note(f"adyton: {text}"), console=note, printed=say)
    if as_json:
        say_json(ran.to_dict())
    require(ran)
    if ran.log is not None:
        note(f"adyton: done; what the program printed: {ran.log_command}")
