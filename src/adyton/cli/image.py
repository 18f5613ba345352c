"""`adyton image`: build a guest image, say what hardware reports of it, boot it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

app = group_app("Guest images: a confidential machine that runs Adyton and nothing else.")

ImageArgument = Annotated[Path, typer.Argument(help="Folder of an image, as `adyton image build` wrote it.")]
MirrorOption = Annotated[
    list[str] | None,
    typer.Option("--mirror", metavar="URL", help="A mirror of Debian.  [those of this machine's apt]"),
]


@app.command()
def build(
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for the image.")] = None,
    lock: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The lock file.  [that of this release of Adyton]")
    ] = None,
    update_lock: Annotated[
        bool, typer.Option("--update-lock", help="First write the lock file anew, with the newest packages.")
    ] = False,
    requirements: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --update-lock: a file of pip with the hashes of the wheels."),
    ] = None,
    pool: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where packages are kept.  [below XDG_CACHE_HOME]")
    ] = None,
    mirror: MirrorOption = None,
    as_json: JSONOption = False,
) -> None:
    """Build a guest image from a lock file. The same lock file and the same Adyton give the same bytes."""
    from adyton.workflow.image import OWN_LOCK
    from adyton.workflow.image import build_image as carry_out
    from adyton.workflow.image import update_lock as renew

    mirrors = tuple(mirror or ())
    if update_lock:
        if lock is None or requirements is None:
            raise typer.BadParameter("--update-lock needs --lock FILE and --requirements FILE")
        found = renew(lock, requirements, mirrors=mirrors, note=note)
        note(f"{lock}: kernel {found.kernel}, {len(found.packages)} packages, {len(found.wheels)} wheels")
    if output is None:
        if update_lock:
            return
        raise typer.BadParameter("give the image's folder with -o DIR")
    image = carry_out(output, lock_file=lock or OWN_LOCK, pool=pool, mirrors=mirrors, note=note)
    if as_json:
        say_json(image.to_dict())
    else:
        say(f"{output}: image of Adyton {image.version}, root hash {image.verity.root_hash}")


@app.command()
def measure(
    folder: ImageArgument,
    firmware: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Firmware to compute TDX and SEV-SNP values for.")
    ] = None,
    vcpus: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, max=4096, help="Processors, for SEV-SNP's launch digest.")
    ] = None,
    acpi_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Event log (CCEL) of a boot on your own TDX host: pins its ACPI tables."),
    ] = None,
    qemu: Annotated[str | None, typer.Option(metavar="TEXT", help="With --acpi-log: that host's QEMU.")] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --acpi-log: the shape of that machine, in your words.")
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Compute from an image's files what hardware will report. Exit code 1: image.json says something else.

    It does not tell what is in the image. Approve only an image that you built, or that has the bytes of your build.
    """
    from adyton.workflow.image import HostBoot, measure_image

    if len({acpi_log is None, qemu is None, machine is None}) != 1:
        raise typer.BadParameter("--acpi-log, --qemu and --machine belong together")
    host_boot = None
    if acpi_log is not None and qemu is not None and machine is not None:
        host_boot = HostBoot(log=acpi_log, qemu=qemu, machine=machine)
    found = measure_image(folder, firmware_files=tuple(firmware or ()), vcpus=tuple(vcpus or ()), host_boot=host_boot)
    for text in found.differences:
        note(f"adyton: {text}")
    for name in found.unchecked:
        note(f"adyton: the entries for the firmware {name} were not checked: give it with --firmware")
    if found.tables_unchecked:
        note("adyton: image.json pins ACPI tables; they were not checked, and are left out: give --acpi-log")
    if host_boot is not None:
        note("adyton: the ACPI tables are those of the machine that made this log: it must be yours")
    if found.image is not None and as_json:
        say_json(found.image.to_dict())
    elif found.image is not None:
        for boot, banks in found.image.pcrs.items():
            for bank, values in banks.items():
                for number, value in values.items():
                    say(f"{boot}  {bank}  PCR {number:<2}  {value.hex()}")
        for tdx in found.image.tdx:
            say(f"tdx  {tdx.firmware.name}  {tdx.page_order}  {tdx.boot}")
            say(f"  MRTD   {tdx.mrtd}\n  RTMR1  {tdx.rtmr1}\n  RTMR2  {tdx.rtmr2}")
            if tdx.acpi is not None:
                say(f"  RTMR0  {tdx.acpi.rtmr0}  ({tdx.acpi.qemu}; {tdx.acpi.machine})")
                for table, digest in (tdx.acpi.tables or {}).items():
                    say(f"    ACPI {table:<6} {digest}")
        for snp in found.image.snp:
            say(f"snp  {snp.firmware.name}  {snp.vcpus} x {snp.vcpu_type}  {snp.launch_digest}")
    if found.differences:
        raise typer.Exit(1)
    note("adyton: this says what the image measures, and not what is in it: if you did not build it, compare it with")
    note("adyton: an image that you build from the same lock file and the same Adyton, before you approve it")


@app.command()
def boot(
    folder: ImageArgument,
    share: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Files for the guest, with adyton-guest.json among them. Outputs go there."),
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where outputs go.  [the folder of --share]")
    ] = None,
    tpm: Annotated[bool, typer.Option("--tpm", help="Give the guest a software TPM (swtpm).")] = False,
    sim_platform: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --tpm: have this simulated platform certify the TPM's key."),
    ] = None,
    from_disk: Annotated[
        bool, typer.Option("--from-disk", help="Start the disk's boot entry, and not the kernel image directly.")
    ] = False,
    firmware: Annotated[Path | None, typer.Option(metavar="FILE", help="Firmware.  [OVMF.fd of the image]")] = None,
    tee: Annotated[str | None, typer.Option(metavar="TEE", help="tdx or snp, on such a host.")] = None,
    kvm: Annotated[bool, typer.Option("--kvm", help="Use KVM, where it works. Without it QEMU emulates.")] = False,
    memory: Annotated[int, typer.Option(metavar="MIB", min=512, help="Memory of the guest.")] = 2048,
    vcpus: Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="Processors of the guest.")] = 1,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="When to give the guest up.")] = 600.0,
    show: Annotated[bool, typer.Option("--print", help="Print QEMU's command line, and start nothing.")] = False,
) -> None:
    """Boot an image in QEMU, and wait until it powers off. Its console goes to standard error."""
    from adyton.workflow.image import Boot, boot_image, printed_boot

    wanted = Boot(
        folder=folder,
        share=share,
        outputs=outputs,
        tpm=tpm,
        sim_platform=sim_platform,
        from_disk=from_disk,
        firmware=firmware,
        tee=tee,
        kvm=kvm,
        memory_mib=memory,
        vcpus=vcpus,
        timeout_s=timeout,
    )
    if show:
        say(printed_boot(wanted))
        return
    for name in boot_image(wanted, note):
        say(name)
