"""`adyton approve`: allow a program, on a platform, to have a key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.output import note, say, say_json
from adyton.cli.owner_options import AllowOption, HomeOption, JSONOption, owner_store

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from adyton.attest.guest import Guest
    from adyton.manifest.findings import Finding
    from adyton.manifest.signed import SignedManifest
    from adyton.values import Measurement

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
        typer.Option(help="tdx: the guest's MRTD, together with the three following.", show_default=False),
    ] = None,
    rtmr0: Annotated[
        str | None, typer.Option(help="tdx: the guest's RTMR0 (settings, ACPI tables).", show_default=False)
    ] = None,
    rtmr1: Annotated[str | None, typer.Option(help="tdx: the guest's RTMR1 (kernel).", show_default=False)] = None,
    rtmr2: Annotated[
        str | None, typer.Option(help="tdx: the guest's RTMR2 (command line, initrd).", show_default=False)
    ] = None,
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

    A tdx guest is pinned whole: --guest, --rtmr0, --rtmr1 and --rtmr2. Nothing can be approved for snp yet.
    """
    from adyton.errors import UsageError
    from adyton.keyserver.consent import mine, propose, shown
    from adyton.keystore.approval import APPROVED, DEFAULT_LEASE_S, PENDING, Approval
    from adyton.keystore.home import actor
    from adyton.manifest.findings import check_tee, not_covered
    from adyton.manifest.signed import read_capped, read_signed
    from adyton.rfc3339 import parse_end
    from adyton.runtime.identity import runtime_identity
    from adyton.untrusted import parse_toml

    runtime = runtime_identity()
    signed = read_signed(manifest, runtime.digest)
    under_gramine = "sgx" in tee
    further: tuple[Finding, ...] = ()
    measurement = signed.measurement
    if under_gramine:
        measurement, further = _mrenclave(manifest, signed, tee, protocol)
    for name in tee:
        check_tee(signed.manifest, name)
    images = _guest_images(tee, guest or [], {"rtmr0": rtmr0, "rtmr1": rtmr1, "rtmr2": rtmr2})
    uncovered = tuple(not_covered(signed.manifest))
    advisories: dict[str, datetime | None] = {}
    for written in advisory or ():
        name, equals, until = written.partition("=")
        advisories[name] = parse_end(until, f"end of {name}") if equals else None
    required = (
        parse_toml(read_capped(require, 256 * 1024, "requirements"), what=f"requirements {require}", refuse=UsageError)
        if require
        else {}
    )
    program = app_name or manifest.name.removesuffix(".manifest")
    named = [*(allow or ()), *(("debug",) if debug else ()), *(("any-version",) if by_signer else ())]
    with owner_store(home) as (found, store), store.write() as change:
        owner = mine(found)
        label = version or _next_version(
            [(item.approval.app, item.approval.version) for item in change.approvals()], program
        )
        wanted = [
            Approval(
                key=name,
                app=program,
                version=label,
                tees=tuple(dict.fromkeys(tee)),
                measurement=None if by_signer else measurement,
                guest_images=images,
                mrsigner=signed.mrsigner if by_signer else None,
                isv_prod_id=signed.manifest.sgx.isv_prod_id if by_signer else None,
                min_isv_svn=signed.manifest.sgx.isv_svn if by_signer else None,
                tcb_statuses=tuple(tcb or ("UpToDate",)),
                advisories=advisories,
                allow_debug=debug,
                raw_report_data=signed.manifest.adyton.raw_report_data,
                protocols=tuple(dict.fromkeys(protocol or ("adyton",))),
                expires_at=None if expires is None else parse_end(expires, "--expires"),
                max_runs=max_runs,
                max_active=max_active,
                lease_s=DEFAULT_LEASE_S if lease_s is None else lease_s,
                manifest_sha256=None if by_signer or under_gramine else signed.manifest_sha256,
                evidence=required,
                not_covered=uncovered,
                note=remark,
            )
            for name in dict.fromkeys(key)
        ]
        left_open = {
            item.name: item for approval in wanted for item in shown(change, approval, owner, signed.manifest, further)
        }
        if not as_json:
            show_findings(left_open.values(), wanted[0].tees)
        made = [
            propose(
                change,
                approval,
                owner=owner,
                named=named,
                actor=actor(),
                state=PENDING if pending else APPROVED,
                manifest=signed.manifest,
                further=further,
            )
            for approval in wanted
        ]
        if not under_gramine:
            parts = {part: digest.hex() for part, digest in runtime.parts.items()}
            change.remember(measurement, signed.manifest_bytes, parts)
    if as_json:
        say_json(
            {
                "approvals": [{"id": item.id, "state": item.state, **item.approval.to_dict()} for item in made],
                "measurement": str(measurement),
                "findings": [
                    {"name": item.name, "exposes": item.exposes_on(wanted[0].tees), "key": item.key, "what": item.what}
                    for item in left_open.values()
                ],
                "not_covered": list(uncovered),
            }
        )
        return
    for item in made:
        say(f"{item.state} {item.id}: {program} {label} may have key {item.approval.key!r}")
    say(f"  {made[0].approval.identity()}")
    for image in made[0].approval.guest_images:
        say(f"  guest image ({image.kind}): {image}")
    say(f"  on {', '.join(made[0].approval.tees)}; TCB {', '.join(made[0].approval.tcb_statuses)}")
    if any(item.startswith("sim") for item in made[0].approval.tees):
        note("  a simulated platform protects nothing from whoever runs it")
    if made[0].approval.allowed:
        say(f"  named: {', '.join(made[0].approval.allowed)}")
    say("what the measurement does not cover:")
    for line in uncovered:
        say(f"  - {line}")


def show_findings(found: Iterable[Finding], tees: Collection[str]) -> None:
    """Show what is left open, on standard error: what must be named first, each with its name."""
    for item in sorted(found, key=lambda item: not item.exposes_on(tees)):
        kind = "exposes" if item.exposes_on(tees) else "note"
        note(f"{kind}: {item.name}: {item.what} ({item.key})")


def _guest_images(tees: list[str], mrtds: list[str], registers: dict[str, str | None]) -> tuple[Guest, ...]:
    """The guest that a confidential machine must have booted; a simulated one boots the simulated guest."""
    from adyton.attest.guest import TDXGuest, confidential_kind
    from adyton.errors import UsageError
    from adyton.keystore.approval_gaps import EXPECTED, GUEST_LINE, REMEDY
    from adyton.sim.machine import simulated_guest
    from adyton.values import Measurement

    kinds = {confidential_kind(tee) for tee in tees} - {None}
    given = ["--guest"] * len(mrtds) + [f"--{name}" for name, value in registers.items() if value is not None]
    if not kinds and given:
        raise UsageError(
            f"{given[0]} is for confidential machines",
            check="--tee",
            expected="tdx",
            seen=", ".join(tees)[:160],
            remedy=f"leave {', '.join(given)} out",
        )
    if "snp" in kinds:
        raise UsageError(
            "a launch digest alone says nothing of the kernel, the initrd and the command line",
            check=GUEST_LINE,
            expected=EXPECTED["snp"],
            seen=f"{', '.join(given)}: a launch digest of the firmware, as far as Adyton can tell" if given else "none",
            remedy=REMEDY["snp"],
        )
    if not kinds:
        return ()
    if not given and "tdx" not in tees:
        return (simulated_guest(),)
    values = {name: value for name, value in registers.items() if value is not None}
    if len(mrtds) != 1 or len(values) != len(registers):
        firmware_only = " (MRTD: the firmware only; a host boots another kernel under it)"
        raise UsageError(
            "this leaves a part of the guest open",
            check=GUEST_LINE,
            expected=EXPECTED["tdx"],
            seen=(", ".join(given) + (firmware_only if set(given) == {"--guest"} else "")) or "none",
            remedy=REMEDY["tdx"],
        )
    image = {name: Measurement.from_hex(value) for name, value in {"mrtd": mrtds[0], **values}.items()}
    return (TDXGuest(**image),)


def _mrenclave(
    manifest: Path, signed: SignedManifest, tees: list[str], protocols: list[str] | None
) -> tuple[Measurement, tuple[Finding, ...]]:
    """What SGX measures of the manifest that was prepared for Gramine, and what is found of that one beside the other.

    Whether it comes from the manifest that the owner is shown can be told only where Gramine is installed.
    """
    from adyton.errors import BadSignature, UsageError
    from adyton.manifest.findings import finding, findings
    from adyton.manifest.host import find_gramine
    from adyton.manifest.model import MAX_MANIFEST_BYTES
    from adyton.manifest.signed import read_capped
    from adyton.runtime.gramine_backend import is_rendered_from, measure_for, read_prepared, stem_of

    if set(tees) != {"sgx"}:
        raise UsageError(
            "under SGX the program has another measurement than elsewhere: approve it in a command of its own",
            check="--tee",
            expected="sgx alone",
            seen=", ".join(tees),
        )
    if protocols is None or set(protocols) != {"ra-tls"}:
        raise UsageError(
            "under SGX the program asks with Gramine's own library, whose protocol has no freshness",
            check="--protocol",
            expected="ra-tls, allowed by name",
            seen=", ".join(protocols or ("adyton",)),
            remedy="add --protocol ra-tls",
        )
    prepared_path = stem_of(manifest).with_name(f"{stem_of(manifest).name}.manifest.sgx")
    if not prepared_path.exists():
        raise UsageError(
            "nothing was prepared for Gramine",
            check="manifest for Gramine",
            expected=str(prepared_path),
            seen="no such file",
            remedy="adyton build --gramine, where Gramine is installed",
        )
    prepared = read_prepared(manifest)
    measured, installation = prepared.measurement, find_gramine()
    if installation is not None:
        raw = read_capped(prepared_path, MAX_MANIFEST_BYTES, "Gramine manifest")
        measured = measure_for(installation, raw, prepared.manifest)
    for check, expected, seen in (
        ("signer of the manifest for Gramine", signed.mrsigner, prepared.mrsigner),
        ("MRENCLAVE in the signature", measured, prepared.measurement),
    ):
        if expected != seen:
            raise BadSignature(
                f"{prepared_path.name} is not what was built",
                check=check,
                expected=expected,
                seen=seen,
                remedy="build again with adyton build --gramine",
            )
    found = [item for item in findings(prepared.manifest) if not item.key.startswith("adyton.")]
    if installation is None or not is_rendered_from(signed.manifest_bytes, prepared, installation):
        found.append(finding("unchecked-rendition"))
    return prepared.measurement, tuple(found)


def _next_version(known: list[tuple[str, str]], program: str) -> str:
    taken = {version for app_name, version in known if app_name == program}
    return next(f"v{number}" for number in range(1, len(taken) + 2) if f"v{number}" not in taken)
