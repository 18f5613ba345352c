"""Simulated TEE platforms: make, show, change, and export evidence and collateral. They protect nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import write_file
from adyton.errors import UsageError
from adyton.sim.chip import NOTICE as NOTICE
from adyton.sim.files import platform_directory
from adyton.sim.platform import PARTS, REVOCABLE, SimPlatform
from adyton.values import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adyton.sim.vendor import CAKind
    from adyton.values import Digest


@dataclass(frozen=True, slots=True)
class Level:
    """A published TCB level of a platform, and whether the machine has it."""

    status: str
    date: str
    advisories: tuple[str, ...]
    here: bool


@dataclass(frozen=True, slots=True)
class Platform:
    """The present state of a simulated platform."""

    directory: Path
    root_fingerprint: Digest
    fmspc: bytes
    evaluation_number: int
    levels: tuple[Level, ...]
    revoked: int

    def name(self, *, tdx: bool = False) -> str:
        """The platform's name in a policy."""
        return f"{'sim-tdx' if tdx else 'sim'}:{self.root_fingerprint}"

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton platform show --json`."""
        return {
            "simulated": True,
            "directory": str(self.directory),
            "root_fingerprint": self.root_fingerprint.hex(),
            "tees": [self.name(), self.name(tdx=True)],
            "fmspc": self.fmspc.hex(),
            "evaluation_number": self.evaluation_number,
            "levels": [
                {"status": level.status, "date": level.date, "advisories": list(level.advisories)}
                for level in self.levels
            ],
            "revoked": self.revoked,
        }


def show_platform(directory: Path | None = None) -> Platform:
    """The root, FMSPC and TCB levels of a platform, in this folder or the default one."""
    directory = platform_directory(directory)
    platform = SimPlatform.load(directory)
    publication = platform.publication()
    return Platform(
        directory,
        platform.root_fingerprint,
        publication.fmspc,
        publication.evaluation_number,
        tuple(
            Level(
                level.status,
                level.date,
                tuple(level.advisories),
                platform.has_machine and level.sgx == platform.machine.components,
            )
            for level in publication.levels
        ),
        len(publication.revoked_by_root) + len(publication.revoked_by_ca),
    )


def new_platform(directory: Path, *, ca: str = "platform", carries_chain: bool = True) -> Platform:
    """Make a new platform with fresh keys in an empty or new folder. Raises UsageError."""
    if ca not in ("platform", "processor"):
        raise UsageError(f"no CA named {ca!r}", check="--ca", expected="platform or processor", seen=ca)
    kind: CAKind = "processor" if ca == "processor" else "platform"
    return show_platform(SimPlatform.create(directory, ca=kind, carries_chain=carries_chain).directory)


def raise_tcb(directory: Path, *, status: str, part: str, advisories: Sequence[str]) -> Platform:
    """Publish newer signed TCB info. After that the platform is no longer up to date. Raises UsageError."""
    platform = SimPlatform.load(directory)
    for known in PARTS:
        if part == known:
            platform.raise_tcb(part=known, status=status, advisories=tuple(advisories))
            return show_platform(directory)
    raise UsageError(f"no part named {part!r}", check="--part", expected=", ".join(PARTS), seen=part)


def upgrade(directory: Path) -> Platform:
    """Give the platform its vendor's newest firmware, with a new PCK certificate."""
    SimPlatform.load(directory).upgrade()
    return show_platform(directory)


def revoke_certificate(directory: Path, what: str) -> Platform:
    """Revoke the platform's PCK certificate, the CA that issued it, or the signer of TCB info. Raises UsageError."""
    platform = SimPlatform.load(directory)
    for known in REVOCABLE:
        if what == known:
            platform.revoke(known)
            return show_platform(directory)
    raise UsageError(f"nothing named {what!r} to revoke", expected=", ".join(REVOCABLE), seen=what)


@dataclass(frozen=True, slots=True)
class WrittenQuote:
    """The file of a simulated quote, its size, and its TEE."""

    path: Path
    size_bytes: int
    tee: str


def write_quote(
    directory: Path,
    output: Path,
    *,
    report_data: bytes,
    measurement: Measurement | None = None,
    tdx: bool = False,
    debug: bool = False,
) -> WrittenQuote:
    """Write a simulated quote over these values, for trials of `verify` and policies.

    `report_data` is 64 bytes. Without a `measurement` it is all zeros.
    """
    program = Measurement(bytes(32)) if measurement is None else measurement
    source = SimPlatform.load(directory).enclave(measurement=program, debug=debug, shape="tdx" if tdx else "sgx")
    evidence = source.quote(report_data)
    write_file(output, evidence, 0o644)
    return WrittenQuote(output, len(evidence), source.tee)


def export_platform(directory: Path, output: Path, *, tdx: bool = False) -> Path:
    """Write the present collateral of this platform's quotes."""
    collateral = SimPlatform.load(directory).collateral_dict(datetime.now(UTC), tee="tdx" if tdx else "sgx")
    write_file(output, json.dumps(collateral, indent=1).encode() + b"\n", 0o644)
    return output


@dataclass(frozen=True, slots=True)
class SimulatedGPUs:
    """GPUs of a simulated platform."""

    ueids: tuple[str, ...]
    root: str
    """SHA-256 of their vendor's root: the policy's gpus.simulated_roots."""
    collateral: Path
    """A bundle with everything that their evidence is judged by. The OCSP answers in it are valid for a week."""

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton platform gpus --json`."""
        return {"ueids": list(self.ueids), "root": self.root, "collateral": str(self.collateral)}


def platform_gpus(directory: Path, output: Path, *, count: int = 1) -> SimulatedGPUs:
    """Give a simulated platform GPUs, unless it has some, and write a bundle with their present collateral.

    Raises UsageError.
    """
    from adyton.collateral.bundle import build_bundle
    from adyton.collateral.documents import Document
    from adyton.collateral.gpus import rim_ids
    from adyton.sim.gpu_folder import FOLDER, SimGPUs

    SimPlatform.load(directory)
    has_some = (directory / FOLDER).is_dir()
    found = SimGPUs.load(directory) if has_some else SimGPUs.create(directory, count)
    now = datetime.now(UTC).replace(microsecond=0)
    ids = rim_ids(found.devices[0].evidence(bytes(32)))
    url = "https://simulated.invalid/"
    documents = [
        Document("nvidia-rim", raw, "", url, now, request=rim_id)
        for rim_id, raw in zip(ids, found.vendor.rims(found.devices), strict=True)
    ]
    documents += [
        Document("nvidia-ocsp", raw, chain, url, now)
        for raw, chain in found.vendor.answers_with_chains(found.devices, now)
    ]
    write_file(output, build_bundle(documents), 0o644)
    return SimulatedGPUs(tuple(device.ueid for device in found.devices), str(found.vendor.root), output)
