"""A policy for the clients of a server, from its manifest: to be read, changed where needed, and pinned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tomli_w

from adyton.attest.evidence_policy import Policy
from adyton.attest.guest import confidential_kind
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.policy.profile import STRICT_2026
from adyton.errors import UsageError
from adyton.image.guests import guests_of
from adyton.keystore.approval import check_tee
from adyton.manifest.findings import check_tee as check_tee_of_manifest
from adyton.manifest.signed import read_signed
from adyton.sim.chip import simulated_guest
from adyton.values import Measurement
from adyton.workflow.guest_image import read_image, runtime_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adyton.attest.guest import Guest
    from adyton.image.document import GuestImage
    from adyton.manifest.ingress import Ingress

MAX_COLLATERAL_AGE_DAYS: Final = 7

_INTEL: Final = frozenset({"tdx", "az-tdx", "sim", "sim-tdx"})
_PROFILED: Final = frozenset({"tdx", "snp"})
_ATTESTED: Final = "connections are proved by adyton's own runtime: sim, tdx, snp, tpm, az-snp, az-tdx or nitrotpm"


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """What clients should accept. `manifest_sha256` is for TEEs whose evidence has no place for the program."""

    policy: Policy
    tee: str
    ingress: tuple[str, ...]
    measurement: Measurement
    manifest_sha256: str
    names_program: bool
    """Whether evidence of this TEE names the program itself. If not, the client gives the manifest's hash."""
    asked: tuple[str, ...] = ()
    """The options with which clients show what some ingress of the program asks of them."""

    @property
    def options(self) -> str:
        """The options of `adyton connect` that belong to it."""
        pinned = "" if self.names_program else f" --manifest-sha256 {self.manifest_sha256}"
        return " ".join((f"--policy FILE{pinned}", *self.asked))

    def to_toml(self) -> str:
        """The file."""
        lines = [
            f"# Policy for clients of {', '.join(self.ingress)}: adyton connect HOST:PORT {self.options}",
            "# Compare its values with a build of your own before you pin it. Not from the server, not from its host.",
        ]
        if not self.names_program:
            lines.append("# Evidence of this TEE names the machine only. --manifest-sha256 names the program on it.")
        lines.append("# What it leaves open: adyton policy check FILE")
        return "\n".join(lines) + "\n\n" + tomli_w.dumps(self.policy.to_dict())


def client_policy(
    manifest: str | Path,
    *,
    tee: str,
    image: Path | None = None,
    rtmr0: str | None = None,
    allow_host_acpi: bool = False,
) -> ClientPolicy:
    """The policy for clients of the server with this manifest, as `adyton connect --print-policy` writes it.

    `tee` is the one that it runs in, `sim:FINGERPRINT` where it is simulated. `image` is the image.json of the guest of
    a confidential machine. `rtmr0` (hex) and `allow_host_acpi` are as for `approve`. Raises UsageError, ManifestError.
    """
    kind = confidential_kind(check_tee(tee))
    name = tee.partition(":")[0]
    if kind is None and name != "sim":
        raise UsageError(f"no connection is proved under {name}", check="--tee", expected=_ATTESTED, seen=tee[:100])
    document = None if image is None else read_image(image)
    guests = _guests(tee, kind, document, rtmr0, allow_host_acpi=allow_host_acpi)
    signed = read_signed(Path(manifest), runtime_of(document).digest)
    check_tee_of_manifest(signed.manifest, tee)
    if not signed.manifest.adyton.ingress:
        raise UsageError(
            f"{manifest} has no ingress: no client can reach this program",
            check="adyton.ingress",
            expected="at least one",
            seen="none",
            remedy="protect it with --serve PORT, or write [[adyton.ingress]] in its template",
        )
    names_program = kind != "snp"
    policy = Policy(
        tees=frozenset({tee}),
        workloads=frozenset({signed.measurement}) if names_program else frozenset(),
        max_collateral_age_days=MAX_COLLATERAL_AGE_DAYS if name in _INTEL else None,
        profile=STRICT_2026 if name in _PROFILED else None,
        gpus=GPUPolicy(count=signed.manifest.adyton.gpus) if signed.manifest.adyton.gpus else None,
    )
    return ClientPolicy(
        policy=_with_guests(policy, guests),
        tee=tee,
        ingress=tuple(one.name for one in signed.manifest.adyton.ingress),
        measurement=signed.measurement,
        manifest_sha256=signed.manifest_sha256.hex(),
        names_program=names_program,
        asked=tuple(_asked(signed.manifest.adyton.ingress)),
    )


def _asked(ports: Sequence[Ingress]) -> Iterator[str]:
    if any(port.client_ca is not None for port in ports):
        yield "--certificate FILE --key FILE"
    if any(port.client_policy is not None for port in ports):
        yield "--prove TEE"


def _with_guests(policy: Policy, guests: tuple[Guest, ...]) -> Policy:
    """One guest becomes part of the policy itself, several its alternatives. Registers of two are never mixed."""
    if len(guests) != 1:
        return replace(policy, any_of=tuple(guest.policy() for guest in guests))
    return Policy.from_dict({**policy.to_dict(), **guests[0].policy().to_dict()})


def _guests(
    tee: str, kind: str | None, image: GuestImage | None, rtmr0: str | None, *, allow_host_acpi: bool
) -> tuple[Guest, ...]:
    simulated = tee.startswith("sim")
    given = [f"--{name}" for name, value in (("image", image), ("rtmr0", rtmr0)) if value is not None]
    given += ["--allow-host-acpi"] if allow_host_acpi else []
    if given and (simulated or kind is None) and kind != "tpm":
        raise UsageError(
            f"{given[0]} is for the guest of a real confidential machine",
            check=given[0],
            expected="--tee tdx, snp, tpm, az-snp, az-tdx or nitrotpm",
            seen=tee[:100],
            remedy=f"leave {', '.join(given)} out",
        )
    if kind is None:
        return ()
    if simulated and kind == "tdx":
        return (simulated_guest(),)
    if image is None:
        raise UsageError(
            "without the guest's values the host could boot another guest, and change the program",
            check="--image",
            expected="the image.json of the guest image",
            seen="nothing",
            remedy="--image image.json, of an image that you built or measured (adyton image measure)",
        )
    return guests_of(
        image,
        kind,
        rtmr0=None if rtmr0 is None else Measurement.from_hex(rtmr0),
        allow_host_acpi=allow_host_acpi,
    )
