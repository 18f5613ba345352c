"""`adyton image`: build a guest image, say what hardware reports of it, boot it, and take it to a cloud."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import ForceOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    gpu: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put NVIDIA's driver in: a folder with its files and their SHA256SUMS."),
    ] = None,
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
    image = carry_out(output, lock_file=lock or OWN_LOCK, pool=pool, mirrors=mirrors, gpu=gpu, note=note)
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
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="In the place of --share: a disk as `adyton image disk` wrote it."),
    ] = None,
    output_disk: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The disk for outputs, for `adyton image outputs`. Made where it is missing."
        ),
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
        inputs=inputs,
        output_disk=output_disk,
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


@app.command()
def disk(
    source: Annotated[Path, typer.Argument(help="A pack, NAME.adyton; or a folder of files, adyton-guest.json too.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The disk.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments for the program (after --), where its manifest takes them from here."),
    ] = None,
    tee: Annotated[
        str | None,
        typer.Option(metavar="TEE", help="Where the guest will run: tdx, snp, tpm, az-snp, az-tdx, nitrotpm."),
    ] = None,
    key_server: Annotated[
        list[str] | None,
        typer.Option(metavar="[OWNER=]HOST:PORT", help="Where an owner's key server listens."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ADDRESS", help="The address of a name, which the guest then asks nobody for."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="A.B.C.D/N", help="The guest's fixed address.  [the network's DHCP server gives it one]"),
    ] = None,
    gateway: Annotated[str | None, typer.Option(metavar="A.B.C.D", help="With --address: the gateway.")] = None,
    name_server: Annotated[
        list[str] | None,
        typer.Option(metavar="A.B.C.D", help="A name server.  [those that DHCP names]"),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="All settings of the guest, in the form of adyton-guest.json."),
    ] = None,
    force: ForceOption = False,
    as_json: JSONOption = False,
) -> None:
    """Write the raw disk that brings a program to a guest without a shared folder, as in a cloud.

    It holds settings, manifest, trusted files and ciphertext, and no key. Whoever has it can read names and ciphertext.
    """
    from adyton.workflow.guest_disks import MEMORY_FACTOR, GuestNetwork, settings_for, write_input_disk

    network = GuestNetwork(address=address, gateway=gateway, name_servers=tuple(name_server or ()))
    wanted = settings_for(
        source,
        settings,
        tee=tee,
        key_servers=tuple(key_server or ()),
        arguments=tuple(arguments or ()),
        network=None if network == GuestNetwork() else network,
        hosts=_pairs(host or ()),
    )
    size = write_input_disk(source, output, wanted, force=force)
    if as_json:
        say_json({"disk": str(output), "size_bytes": size, "manifest": wanted.manifest, "tee": wanted.tee})
        return
    say(f"{output}: {size / 1e6:.1f} MB, for a guest on {wanted.tee} that runs {wanted.manifest}")
    say(f"the guest needs {max(2.0, MEMORY_FACTOR * size / 1e9):.0f} GB of memory or more")


def _pairs(words: Iterable[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, address = word.partition("=")
        if not equals or name in found:
            raise typer.BadParameter(f"--host takes NAME=ADDRESS, each name once: {word}")
        found[name] = address
    return found


@app.command()
def outputs(
    source: Annotated[
        Path, typer.Argument(metavar="DISK", help="The disk for outputs, or a copy of it from its start; - is a pipe.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new or empty folder.")],
    as_json: JSONOption = False,
) -> None:
    """Unpack what a guest wrote to its disk for outputs: ciphertext, and adyton-status.json with the exit code.

    Nothing of it is believed. `adyton decrypt` says whether a result is the program's.
    """
    from adyton.workflow.guest_disks import open_output_disk, read_output_disk

    with open_output_disk(source, sys.stdin.buffer) as stream:
        names = read_output_disk(stream, output)
    if as_json:
        say_json({"folder": str(output), "files": names})
        return
    for name in names:
        say(name)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Folder of an image, or a disk as `adyton image disk` wrote it.")],
    cloud: Annotated[str, typer.Option(metavar="CLOUD", help="azure, gcp or aws.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for what is uploaded.")],
    force: ForceOption = False,
    as_json: JSONOption = False,
) -> None:
    """Write an image, or a disk with inputs, in the form in which a cloud takes it. Nothing is uploaded.

    For an image: its disk, an empty disk for outputs, and export.json, which says what the cloud has to be told.
    Azure: fixed VHD. Google Cloud: tar.gz. AWS: raw.
    """
    from adyton.workflow.image_export import export as carry_out

    found = carry_out(source, cloud, output, force=force)
    if as_json:
        say_json(found.to_dict())
        return
    for item in found.files:
        say(f"{output / item.name}: {item.size_bytes / 1e6:.1f} MB, a disk of {item.disk_bytes / 1e6:.0f} MB")
