"""An agreement against the manifest of its program: what a hostile co-owner could hide. Pure.

Three things are compared: the program, the CA that the manifest pins for each key, and the keys under which outputs are
written. A difference is refused. What the manifest opens is a finding: output in clear, keys in it, debug, the network.
Each finding is shown before a party signs, and she names it or does not sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.check import Check
from adyton.errors import UsageError
from adyton.manifest.findings import Exposes, by_danger, finding, findings, pinned_keys
from adyton.manifest.pinned_ca import ca_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from adyton.agreement.document import Agreement, Program
    from adyton.manifest.findings import Finding
    from adyton.manifest.model import Manifest
    from adyton.values import Digest, Measurement

WAYS_OUT: Final = frozenset({"network-of-host", "clients"})
"""Findings that are only notes where one owner approves, and that every party of an agreement must name.

Data of the others may leave by them.
"""

_REMEDY: Final = "have the manifest or the agreement corrected, and sign only what both say"


def check_against(
    agreement: Agreement, manifest: Manifest, *, measurement: Measurement, signer: Digest | None = None
) -> None:
    """Refuse an agreement that does not say what the manifest of its program says. Raises UsageError with all checks.

    `measurement` is the workload measurement, `signer` the manifest's signer where it is known.
    """
    program = _program(agreement.program, manifest, measurement, signer)
    checks = [program, *_owners(agreement, manifest), *_keys(agreement, manifest)]
    if all(check.ok for check in checks):
        return
    failed = [check for check in checks if not check.ok]
    raise UsageError(
        f"agreement {agreement.name} and the manifest differ: " + "; ".join(check.name for check in failed),
        checks=checks,
    )


def left_open(agreement: Agreement, manifest: Manifest | None) -> tuple[Finding, ...]:
    """All findings that a party is shown before she signs, the most dangerous first. Without a manifest: unknown."""
    found = [finding("manifest-unknown")] if manifest is None else list(findings(manifest))
    if agreement.program.measurement is None:
        found.append(finding("any-version"))
    return by_danger(found)


def must_name(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings among these that a party must name to sign."""
    return tuple(item for item in found if item.exposes is Exposes.ALWAYS or item.name.partition("=")[0] in WAYS_OUT)


def _program(program: Program, manifest: Manifest, measurement: Measurement, signer: Digest | None) -> Check:
    what, sgx = "program of the agreement", manifest.sgx
    if program.measurement is not None:
        return Check(what, program, measurement, program.measurement == measurement, _REMEDY)
    ok = (program.signer, program.product) == (signer, sgx.isv_prod_id) and sgx.isv_svn >= program.min_svn
    seen = f"signer {signer or 'unknown'}, product {sgx.isv_prod_id}, SVN {sgx.isv_svn}"
    return Check(what, program, seen, ok, _REMEDY)


def _owners(agreement: Agreement, manifest: Manifest) -> Iterator[Check]:
    """Each party is an owner whom the manifest pins: else no run could ask her key server whether she still agrees."""
    pinned = {ca_sha256(owner.ca) for owner in manifest.adyton.owners if owner.ca is not None}
    for party in agreement.parties:
        yield Check(
            f"CA of party {party.name}",
            f"{party.owner} is pinned (adyton.owners)",
            ", ".join(sorted(pinned)) or "no CA",
            party.owner.hex() in pinned,
            _REMEDY,
        )


def _keys(agreement: Agreement, manifest: Manifest) -> Iterator[Check]:
    """Each key of the manifest is one party's, under her CA. Each key that the program writes under is a receiver's."""
    pinned = pinned_keys(manifest)
    party_of = {key: party for party in agreement.parties for key in party.keys}
    for name, ca in sorted(pinned.items()):
        party = party_of.get(name)
        expected = "a party that names it" if party is None else f"{party.owner} ({party.name})"
        seen = ca or "no CA"
        yield Check(f"CA of key {name}", expected, seen, party is not None and party.owner.hex() == ca, _REMEDY)
    for name in sorted(party_of.keys() - pinned.keys()):
        yield Check(f"key {name}", "a key that the manifest asks for", "no such key in it", False, _REMEDY)
    receives = {key for party in agreement.parties for key in party.receives}
    for name in sorted(written_keys(manifest)):
        what = f"outputs under key {name}"
        yield Check(what, "a party that receives them", "none that does", name in receives, _REMEDY)


def written_keys(manifest: Manifest) -> frozenset[str]:
    """The names of the keys under which the program can write: of mounts that are not read-only, and of its log."""
    read_only = set(manifest.adyton.read_only)
    found = {mount.key_name for mount in manifest.encrypted_mounts if mount.path not in read_only}
    if manifest.log_key_name is not None:
        found.add(manifest.log_key_name)
    return frozenset(found)
