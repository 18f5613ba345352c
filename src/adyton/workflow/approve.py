"""Approve a program: allow it to have a key on a platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.attest.guest import REGISTER_BYTES, TDXGuest, confidential_kind
from adyton.attest.policy.judge_boot import PARAVISOR_EXPECTED
from adyton.dates import parse_end
from adyton.errors import BadSignature, UsageError
from adyton.image.guests import guests_of, left_out
from adyton.keyserver.consent import mine, propose, shown
from adyton.keystore.approval import APPROVED, DEFAULT_LEASE_S, PENDING, Approval
from adyton.keystore.approval_gaps import EXPECTED, GUEST_LINE, REMEDY
from adyton.keystore.home import actor
from adyton.manifest.findings import check_tee, finding, findings, not_covered
from adyton.manifest.host import find_gramine
from adyton.manifest.model import MAX_MANIFEST_BYTES
from adyton.manifest.signed import read_capped, read_signed
from adyton.runtime.gramine_backend import is_rendered_from, measure_for, read_prepared, stem_of
from adyton.sim.chip import simulated_guest
from adyton.untrusted import parse_toml
from adyton.values import Digest, Measurement
from adyton.workflow.agreement_files import read_signed_agreement
from adyton.workflow.guest_image import read_image, runtime_of
from adyton.workflow.owner import owner_store
from adyton.workflow.progress import unheard

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from adyton.attest.guest import Guest
    from adyton.image.document import GuestImage
    from adyton.keystore.approval import StoredApproval
    from adyton.manifest.findings import Finding
    from adyton.manifest.signed import SignedManifest
    from adyton.workflow.progress import Notice


@dataclass(frozen=True, slots=True)
class Approved:
    """The approvals, one for each key, their findings, and the facts that the measurement does not cover."""

    approvals: tuple[StoredApproval, ...]
    measurement: Measurement
    findings: tuple[Finding, ...]
    not_covered: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton approve --json`."""
        tees = self.approvals[0].approval.tees
        return {
            "approvals": [{"id": item.id, "state": item.state, **item.approval.to_dict()} for item in self.approvals],
            "measurement": str(self.measurement),
            "findings": [
                {"name": item.name, "exposes": item.exposes_on(tees), "key": item.key, "what": item.what}
                for item in self.findings
            ],
            "not_covered": list(self.not_covered),
        }


def approve(
    manifest: str | Path,
    *,
    keys: Sequence[str],
    tees: Sequence[str],
    app: str | None = None,
    version: str | None = None,
    tcb_statuses: Sequence[str] = ("UpToDate",),
    advisories: Sequence[str] = (),
    protocols: Sequence[str] = ("adyton",),
    guests: Sequence[str] = (),
    rtmr0: str | None = None,
    rtmr1: str | None = None,
    rtmr2: str | None = None,
    guest_image: Path | None = None,
    pcr7: str | None = None,
    paravisors: Sequence[str] = (),
    allow_host_acpi: bool = False,
    by_signer: bool = False,
    allow_debug: bool = False,
    allow: Sequence[str] = (),
    expires: str | None = None,
    max_runs: int | None = None,
    max_active: int | None = None,
    lease_s: int | None = None,
    require: Path | None = None,
    agreement: Path | None = None,
    pending: bool = False,
    remark: str = "",
    home: Path | None = None,
    notice: Notice = unheard,
) -> Approved:
    """Approve a manifest's program for keys on platforms, as `adyton approve` does.

    `allow` names each accepted finding that exposes the data. `notice` is called with every finding before anything is
    stored. `advisories` are ID, or ID=DATE with the end of the acceptance. `guest_image` is an image.json: its guests
    are approved, and the manifest must be built for the Adyton in it (`build(runtime=…)`). Where a TPM measures, `pcr7`
    (hex) pins the state of Secure Boot, too. `paravisors` are the launch digests or MRTDs (hex) of an Azure machine's
    paravisor, one of which must run below the guest. Without an image `guests` and the registers pin a TDX guest (hex).
    With one, `guests` is the MRTD of a cloud's firmware, which starts the image from its disk.
    `allow_host_acpi` accepts that the host writes the guest's ACPI tables. `agreement` is the file of the agreement on
    whose ground the keys are released, with the signatures of all parties beside it. Raises UsageError where a finding
    is not named or a signature is missing, ManifestError and its subclasses, UnknownKey, and StoreError.
    """
    manifest = Path(manifest)
    keys, tees, protocols = _several("--key", keys), _several("--tee", tees), _several("--protocol", protocols)
    image = None if guest_image is None else read_image(guest_image)
    runtime = runtime_of(image)
    signed = read_signed(manifest, runtime.digest)
    ground = None if agreement is None else read_signed_agreement(agreement, signed, tees)
    under_gramine = "sgx" in tees
    further: tuple[Finding, ...] = ()
    measurement = signed.measurement
    if under_gramine:
        measurement, further = _mrenclave(manifest, signed, tees, protocols)
    for name in tees:
        check_tee(signed.manifest, name)
    given = {"guest": guests[0] if len(guests) == 1 else None, "rtmr0": rtmr0, "rtmr1": rtmr1, "rtmr2": rtmr2}
    if len(guests) > 1:
        raise _left_open(["--guest"] * len(guests))
    registers = {name: Measurement.from_hex(value) for name, value in given.items() if value is not None}
    secure_boot = None if pcr7 is None else Digest.from_hex(pcr7)
    images = _guest_images(tees, image, registers, secure_boot, allow_host_acpi=allow_host_acpi)
    if image is not None and "guest" not in registers and "tdx" in map(confidential_kind, tees):
        for name in left_out(image, rtmr0=registers.get("rtmr0"), allow_host_acpi=allow_host_acpi):
            notice(f"note: not approved: the guest under the firmware {name}: nothing pins its ACPI tables (--rtmr0)")
    below = _paravisors(tees, paravisors)
    uncovered = tuple(not_covered(signed.manifest))
    until_when: dict[str, datetime | None] = {}
    for written in advisories:
        name, equals, until = written.partition("=")
        until_when[name] = parse_end(until, f"end of {name}") if equals else None
    required = (
        parse_toml(read_capped(require, 256 * 1024, "requirements"), what=f"requirements {require}", refuse=UsageError)
        if require
        else {}
    )
    program = app or manifest.name.removesuffix(".manifest")
    named = [
        *allow,
        *(("debug",) if allow_debug else ()),
        *(("any-version",) if by_signer else ()),
        *(("host-acpi",) if any(guest.host_acpi for guest in images) else ()),
    ]
    with owner_store(home) as (found, store), store.write() as change:
        owner = mine(found)
        if ground is not None:
            change.complete_agreement(ground.agreement, ground.signatures, actor=actor())
        label = version or _next_version(
            [(item.approval.app, item.approval.version) for item in change.approvals()], program
        )
        wanted = [
            Approval(
                key=name,
                app=program,
                version=label,
                tees=tuple(dict.fromkeys(tees)),
                measurement=None if by_signer else measurement,
                guests=below,
                guest_images=images,
                mrsigner=signed.mrsigner if by_signer else None,
                isv_prod_id=signed.manifest.sgx.isv_prod_id if by_signer else None,
                min_isv_svn=signed.manifest.sgx.isv_svn if by_signer else None,
                tcb_statuses=tuple(tcb_statuses),
                advisories=until_when,
                allow_debug=allow_debug,
                raw_report_data=signed.manifest.adyton.raw_report_data,
                protocols=tuple(dict.fromkeys(protocols)),
                expires_at=None if expires is None else parse_end(expires, "--expires"),
                max_runs=max_runs,
                max_active=max_active,
                lease_s=DEFAULT_LEASE_S if lease_s is None else lease_s,
                manifest_sha256=None if by_signer or under_gramine else signed.manifest_sha256,
                evidence=required,
                not_covered=uncovered,
                note=remark,
                agreement="" if ground is None else ground.agreement.id,
            )
            for name in dict.fromkeys(keys)
        ]
        left_open = {
            item.name: item for approval in wanted for item in shown(change, approval, owner, signed.manifest, further)
        }
        show_findings(left_open.values(), wanted[0].tees, notice)
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
    return Approved(tuple(made), measurement, tuple(left_open.values()), uncovered)


def _several(what: str, given: Sequence[str]) -> tuple[str, ...]:
    """Names that are looked at more than once; raises UsageError for a bare name, whose letters they would be."""
    found = () if isinstance(given, str) else tuple(given)
    if not found:
        raise UsageError(f"{what} takes one name or several", check=what, expected="a sequence", seen=repr(given)[:80])
    return found


def show_findings(found: Iterable[Finding], tees: Collection[str], notice: Notice) -> None:
    """Call `notice` with each finding and its name. Those that must be named come first."""
    for item in sorted(found, key=lambda item: not item.exposes_on(tees)):
        kind = "exposes" if item.exposes_on(tees) else "note"
        notice(f"{kind}: {item.name}: {item.what} ({item.key})")


def _guest_images(
    tees: Sequence[str],
    image: GuestImage | None,
    registers: Mapping[str, Measurement],
    pcr7: Digest | None,
    *,
    allow_host_acpi: bool,
) -> tuple[Guest, ...]:
    """The guests that a confidential machine may have booted. A simulated domain boots the simulated guest."""
    kinds = sorted({kind for kind in map(confidential_kind, tees) if kind is not None})
    given = [f"--{name}" for name in registers]
    given += ["--guest-image"] * (image is not None) + ["--pcr7"] * (pcr7 is not None)
    given += ["--allow-host-acpi"] * allow_host_acpi
    if not kinds and given:
        raise UsageError(
            f"{given[0]} is for confidential machines",
            check="--tee",
            expected="tdx, snp, tpm, az-snp, az-tdx or nitrotpm",
            seen=", ".join(tees)[:160],
            remedy=f"leave {', '.join(given)} out",
        )
    simulated = [tee for tee in tees if confidential_kind(tee) == "tdx" and tee.startswith("sim")]
    if simulated and image is not None:
        raise UsageError(
            "a simulated trust domain boots the simulated guest, not this image",
            check="--guest-image",
            expected="a real TEE",
            seen=", ".join(simulated)[:160],
            remedy="approve the simulated platform in a command of its own, without --guest-image",
        )
    if image is not None:
        rtmr0 = registers.get("rtmr0")
        others = [name for name in given if name in ("--rtmr1", "--rtmr2")]
        if others:
            raise UsageError(
                "the guest image document says itself what these are",
                check=others[0],
                expected="--guest-image alone, or with --guest and --rtmr0",
                seen=", ".join(given),
                remedy=f"leave {', '.join(others)} out",
            )
        if pcr7 is not None and "tpm" not in kinds:
            raise _only_for_tpm(tees)
        if (rtmr0 is not None or "guest" in registers) and "tdx" not in kinds:
            raise _only_for_tdx(tees, "--rtmr0" if rtmr0 is not None else "--guest")
        return tuple(
            guest
            for kind in kinds
            for guest in guests_of(
                image,
                kind,
                rtmr0=rtmr0 if kind == "tdx" else None,
                mrtd=registers.get("guest") if kind == "tdx" else None,
                pcr7=pcr7 if kind == "tpm" else None,
                allow_host_acpi=allow_host_acpi,
            )
        )
    if pcr7 is not None:
        raise _only_for_tpm(tees)
    by_tpm = next((kind for kind in ("tpm", "nitrotpm") if kind in kinds), None)
    if by_tpm is not None:
        raise UsageError(
            "a guest that a TPM measures is approved by its image document",
            check=GUEST_LINE,
            expected=EXPECTED[by_tpm],
            seen=", ".join(given) or "none",
            remedy=REMEDY[by_tpm],
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
    if not given and len(simulated) == len([tee for tee in tees if confidential_kind(tee) is not None]):
        return (simulated_guest(),)
    open_by_name = {"rtmr0"} if allow_host_acpi and "rtmr0" not in registers else set()
    if set(registers) | open_by_name != {"guest", "rtmr0", "rtmr1", "rtmr2"}:
        raise _left_open(given)
    return (
        TDXGuest(
            mrtd=registers["guest"],
            rtmr0=registers.get("rtmr0"),
            rtmr1=registers["rtmr1"],
            rtmr2=registers["rtmr2"],
        ),
    )


def _paravisors(tees: Sequence[str], given: Sequence[str]) -> tuple[Measurement, ...]:
    """What may run below the guest of an Azure machine. No other machine has a paravisor."""
    found = tuple(dict.fromkeys(map(Measurement.from_hex, given)))
    others = [tee for tee in tees if tee not in PARAVISOR_EXPECTED]
    if found and others:
        raise UsageError(
            "--paravisor is for Azure's confidential machines",
            check="--paravisor",
            expected=f"--tee {' or '.join(PARAVISOR_EXPECTED)}, and no other",
            seen=", ".join(others)[:160],
            remedy="leave --paravisor out, or approve the Azure machine in a command of its own",
        )
    if any(len(item.raw) != REGISTER_BYTES or not any(item.raw) for item in found):
        raise UsageError(
            "this is no paravisor's measurement",
            check="--paravisor",
            expected=f"{2 * REGISTER_BYTES} hex digits, not zeros",
            seen=", ".join(map(str, found))[:160],
            remedy="take it from Microsoft, or from a machine that you checked: adyton verify shows it",
        )
    return found


def _only_for_tpm(tees: Sequence[str]) -> UsageError:
    return UsageError(
        "--pcr7 is for a guest image that a TPM measures",
        check="--pcr7",
        expected="--guest-image, and --tee tpm, az-snp or az-tdx",
        seen=", ".join(tees)[:160],
        remedy="leave --pcr7 out",
    )


def _only_for_tdx(tees: Sequence[str], option: str) -> UsageError:
    return UsageError(
        f"{option} is for a TDX guest",
        check=option,
        expected="--tee tdx",
        seen=", ".join(tees)[:160],
        remedy=f"leave {option} out",
    )


def _left_open(given: Sequence[str]) -> UsageError:
    firmware_only = " (MRTD: the firmware only; a host boots another kernel under it)"
    return UsageError(
        "this leaves a part of the guest open",
        check=GUEST_LINE,
        expected=EXPECTED["tdx"],
        seen=(", ".join(given) + (firmware_only if list(given) == ["--guest"] else "")) or "none",
        remedy=REMEDY["tdx"],
    )


def _mrenclave(
    manifest: Path, signed: SignedManifest, tees: Sequence[str], protocols: Sequence[str]
) -> tuple[Measurement, tuple[Finding, ...]]:
    """SGX's measurement of the manifest that was prepared for Gramine, and the findings about that manifest.

    Without an installed Gramine nobody can check that it was made from the owner's manifest.
    """
    if set(tees) != {"sgx"}:
        raise UsageError(
            "under SGX the program has another measurement than elsewhere: approve it in a command of its own",
            check="--tee",
            expected="sgx alone",
            seen=", ".join(tees),
        )
    if set(protocols) != {"ra-tls"}:
        raise UsageError(
            "under SGX the program asks with Gramine's own library, whose protocol has no freshness",
            check="--protocol",
            expected="ra-tls, allowed by name",
            seen=", ".join(protocols),
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
