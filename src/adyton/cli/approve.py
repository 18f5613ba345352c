"""`adyton approve`: allow a program, on a platform, to have a key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import AllowOption, HomeOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from adyton.workflow.approve import Approved

app = verb_app()


@app.command()
def approve(
    manifest: Annotated[Path, typer.Argument(help="The final manifest (NAME.manifest, with NAME.sig beside it).")],
    key: Annotated[list[str], typer.Option(help="The key it may have; may be given several times.")],
    tee: Annotated[
        list[str], typer.Option(help="The platform: sgx, tdx, snp, sim:FINGERPRINT or sim-tdx:FINGERPRINT.")
    ],
    app_name: Annotated[
        str | None, typer.Option("--app", help="Name of the program.  [NAME]", show_default=False)
    ] = None,
    version: Annotated[str | None, typer.Option(help="Name of this version.  [v1, v2, …]", show_default=False)] = None,
    tcb: Annotated[
        list[str] | None, typer.Option(help="A TCB status to accept.  [UpToDate]", show_default=False)
    ] = None,
    advisory: Annotated[
        list[str] | None,
        typer.Option(
            help="An advisory to accept: ID, or ID=DATE for until the end of that day (UTC).",
            metavar="ID[=DATE]",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="adyton, or ra-tls (which has no freshness).  [adyton]", show_default=False)
    ] = None,
    guest: Annotated[
        list[str] | None,
        typer.Option(
            help="tdx: the guest's MRTD, together with the three following. With --guest-image: that of a cloud's own"
            " firmware, which starts the image from its disk.",
            show_default=False,
        ),
    ] = None,
    rtmr0: Annotated[
        str | None, typer.Option(help="tdx: the guest's RTMR0 (settings, ACPI tables).", show_default=False)
    ] = None,
    rtmr1: Annotated[str | None, typer.Option(help="tdx: the guest's RTMR1 (kernel).", show_default=False)] = None,
    rtmr2: Annotated[
        str | None, typer.Option(help="tdx: the guest's RTMR2 (command line, initrd).", show_default=False)
    ] = None,
    guest_image: Annotated[
        Path | None,
        typer.Option(
            help="tdx, snp: the document (image.json) of the guest image, which you built or measured yourself.",
            show_default=False,
        ),
    ] = None,
    pcr7: Annotated[
        str | None,
        typer.Option(help="tpm, az-snp, az-tdx: the guest's PCR 7 (Secure Boot), to pin it, too.", show_default=False),
    ] = None,
    paravisor: Annotated[
        list[str] | None,
        typer.Option(
            help="az-snp, az-tdx: launch digest or MRTD of Microsoft's paravisor, which must run below the guest.",
            metavar="HEX",
            show_default=False,
        ),
    ] = None,
    allow_host_acpi: Annotated[
        bool,
        typer.Option(
            "--allow-host-acpi", help="Accept that the host writes the guest's ACPI tables, hence code in it."
        ),
    ] = False,
    by_signer: Annotated[
        bool, typer.Option("--by-signer", help="Approve every version of this signer's product, from this SVN on.")
    ] = False,
    debug: Annotated[bool, typer.Option("--allow-debug", help="Accept a debug TEE, which the host can read.")] = False,
    allow: AllowOption = None,
    expires: Annotated[
        str | None,
        typer.Option(
            help="When the approval ends: a date (all of that day counts, UTC), or a time with its zone.",
            metavar="DATE",
            show_default=False,
        ),
    ] = None,
    max_runs: Annotated[
        int | None, typer.Option(help="How many runs may ever have the key.", show_default=False)
    ] = None,
    max_active: Annotated[
        int | None,
        typer.Option(
            help="How many may hold a lease at a time; it outlives its run.",
            show_default=False,
        ),
    ] = None,
    lease_s: Annotated[
        int | None, typer.Option("--lease", help="Length of a lease in seconds.", show_default=False)
    ] = None,
    require: Annotated[
        Path | None,
        typer.Option(help="Further requirements on the platform: TOML, as adyton verify --policy.", show_default=False),
    ] = None,
    agreement: Annotated[
        Path | None,
        typer.Option(
            help="The agreement on whose ground: its TOML, with the signatures of all parties beside it.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    pending: Annotated[bool, typer.Option("--pending", help="Only propose it: somebody approves it later.")] = False,
    remark: Annotated[str, typer.Option("--note", help="A remark for the record.")] = "",
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Approve MANIFEST's program for a key, and show what it leaves open and what its measurement does not cover.

    The measurement covers the manifest (with every trusted file's hash) and the Adyton that runs it: the one installed
    here. Nothing else ever gets the key. For sgx it is the MRENCLAVE of what `adyton build --gramine` prepared.
    What would expose the data (output in clear, what the host chooses, keys in the manifest, a CA that is not yours) is
    refused unless you name it with --allow; --allow-debug and --by-signer name what they open themselves.

    The guest of a confidential machine is pinned whole, by --guest-image. The manifest must be built for the Adyton in
    that image (adyton build --runtime image.json). A tdx guest may be pinned by --guest, --rtmr0, --rtmr1 and --rtmr2.
    """
    from adyton.workflow.approve import approve as carry_out
    from adyton.workflow.progress import unheard

    approved = carry_out(
        manifest,
        keys=key,
        tees=tee,
        app=app_name,
        version=version,
        tcb_statuses=tcb or ("UpToDate",),
        advisories=advisory or (),
        protocols=protocol or ("adyton",),
        guests=guest or (),
        rtmr0=rtmr0,
        rtmr1=rtmr1,
        rtmr2=rtmr2,
        guest_image=guest_image,
        pcr7=pcr7,
        paravisors=paravisor or (),
        allow_host_acpi=allow_host_acpi,
        by_signer=by_signer,
        allow_debug=debug,
        allow=allow or (),
        expires=expires,
        max_runs=max_runs,
        max_active=max_active,
        lease_s=lease_s,
        require=require,
        agreement=agreement,
        pending=pending,
        remark=remark,
        home=home,
        notice=unheard if as_json else note,
    )
    if as_json:
        say_json(approved.to_dict())
    else:
        show(approved)


def show(approved: Approved) -> None:
    """Say what was approved, and what the measurement does not cover."""
    for item in approved.approvals:
        say(f"{item.state} {item.id}: {item.approval.app} {item.approval.version} may have key {item.approval.key!r}")
    first = approved.approvals[0].approval
    say(f"  {first.identity()}")
    for image in first.guest_images:
        say(f"  guest image ({image.kind}): {image}")
    for below in first.guests:
        say(f"  paravisor below it: {below}")
    say(f"  on {', '.join(first.tees)}; TCB {', '.join(first.tcb_statuses)}")
    if any(item.startswith("sim") for item in first.tees):
        note("  a simulated platform protects nothing from whoever runs it")
    if any(image.host_acpi for image in first.guest_images):
        note("  warning: nothing pins the ACPI tables; the host writes them, and can attack the guest through them")
    if first.agreement:
        say(f"  on the ground of agreement {first.agreement}: start its runs with --agreement {first.agreement}")
    if first.allowed:
        say(f"  named: {', '.join(first.allowed)}")
    say("what the measurement does not cover:")
    for line in approved.not_covered:
        say(f"  - {line}")
