"""Agreements of several owners: draft, look at, sign, list and end one."""

from __future__ import annotations

import shlex
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.agreement.document import Agreement, Party, Program, parse_agreement
from adyton.agreement.manifest_check import check_against, left_open, must_name, written_keys
from adyton.agreement.signature import sign_agreement as make_signature
from adyton.atomic_file import check_absent, write_file
from adyton.dates import is_over, parse_end, timestamp
from adyton.errors import UsageError
from adyton.keyserver.consent import mine
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.home import actor
from adyton.keystore.sealed_key import AGREEMENT, IN_FORCE_KEY, open_sealed_key
from adyton.manifest.model import parse_manifest
from adyton.manifest.pinned_ca import ca_sha256
from adyton.manifest.signed import decode, read_signed
from adyton.values import Digest
from adyton.workflow.agreement_files import read_with_signatures, signature_path
from adyton.workflow.guest_image import read_image, runtime_of
from adyton.workflow.owner import owner_store
from adyton.workflow.progress import unheard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.errors import Error
    from adyton.keystore.home import Home
    from adyton.keystore.reader import Reader
    from adyton.keystore.store import Store
    from adyton.keystore.tables.agreements import StoredAgreement
    from adyton.manifest.findings import Finding
    from adyton.manifest.model import Manifest
    from adyton.manifest.signed import SignedManifest
    from adyton.workflow.progress import Notice

DEFAULT_RUNS: Final = 10
DEFAULT_DAYS: Final = 90


@dataclass(frozen=True, slots=True)
class ShownAgreement:
    """An agreement, who signed it, and why a signature beside it does not hold."""

    agreement: Agreement
    path: Path
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    refused: tuple[tuple[str, Error], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton agreement show --json`."""
        return {
            "id": self.agreement.id,
            "file": str(self.path),
            "agreement": self.agreement.to_dict(),
            "signed": list(self.signed),
            "missing": list(self.missing),
            "refused": [{"party": name, **error.details()} for name, error in self.refused],
        }


@dataclass(frozen=True, slots=True)
class SignedByOwner:
    """What the owner signed, the file of her signature, and what she was shown and named."""

    shown: ShownAgreement
    party: str
    signature: Path
    findings: tuple[Finding, ...]
    named: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton agreement sign --json`."""
        return {
            **self.shown.to_dict(),
            "party": self.party,
            "signature": str(self.signature),
            "findings": [
                {"name": item.name, "must_be_named": bool(must_name([item])), "key": item.key, "what": item.what}
                for item in self.findings
            ],
            "named": list(self.named),
        }


@dataclass(frozen=True, slots=True)
class ListedAgreement:
    """An agreement of the owner's record, and the runs that had a key on its ground."""

    stored: StoredAgreement
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.stored.id,
            "state": self.stored.state,
            "changed_at": timestamp(self.stored.changed_at),
            "runs": self.runs,
            "agreement": self.stored.agreement.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class ListedAgreements:
    """All agreements of the owner's record."""

    agreements: tuple[ListedAgreement, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton agreement list --json`."""
        return {"agreements": [item.to_dict() for item in self.agreements]}


def draft_agreement(
    manifest: str | Path,
    output: Path,
    *,
    name: str | None = None,
    runs: int = DEFAULT_RUNS,
    until: str | None = None,
    by_signer: bool = False,
    runtime: Path | None = None,
    home: Path | None = None,
) -> ShownAgreement:
    """Write a first text of an agreement about a manifest's program to a new file, as `adyton agreement draft` does.

    The parties are the owners whom the manifest pins. What each brings and receives follows from its mounts. `until`
    is a date, or a time with its zone (without it: 90 days from now). `runtime` is the image.json of the guest image
    that the manifest was built for. Raises UsageError where the manifest pins fewer than two owners.
    """
    manifest = Path(manifest)
    identity = runtime_of(None if runtime is None else read_image(runtime))
    signed = read_signed(manifest, identity.digest)
    check_absent(output)
    end = datetime.now(UTC) + timedelta(days=DEFAULT_DAYS) if until is None else parse_end(until, "--until")
    if until is None:
        end = end.replace(hour=23, minute=59, second=59, microsecond=0)
    sgx = signed.manifest.sgx
    program = (
        Program(signer=signed.mrsigner, product=sgx.isv_prod_id, min_svn=sgx.isv_svn)
        if by_signer
        else Program(measurement=signed.measurement)
    )
    drafted = Agreement(
        name=name or manifest.name.removesuffix(".manifest"),
        program=program,
        parties=_parties(signed.manifest),
        runs=runs,
        until=end,
    )
    text = drafted.to_toml()
    agreement = parse_agreement(text)
    check_against(agreement, signed.manifest, measurement=signed.measurement, signer=signed.mrsigner)
    with owner_store(home) as (_found, store), store.write() as change:
        parts = {part: digest.hex() for part, digest in identity.parts.items()}
        change.remember(signed.measurement, signed.manifest_bytes, parts)
    write_file(output, text.encode(), force=False)
    return ShownAgreement(agreement, output, (), tuple(party.name for party in agreement.parties))


def show_agreement(path: str | Path) -> ShownAgreement:
    """An agreement with the signatures that lie beside it, each verified. Needs no home."""
    path = Path(path)
    found = read_with_signatures(path)
    return ShownAgreement(found.agreement, path, tuple(found.signatures), found.missing, tuple(found.refused.items()))


def sign_agreement(
    path: str | Path,
    *,
    manifest: Path | None = None,
    runtime: Path | None = None,
    allow: Sequence[str] = (),
    home: Path | None = None,
    notice: Notice = unheard,
) -> SignedByOwner:
    """Sign an agreement in the name of this home's owner, and write her signature beside it.

    `manifest` is that of the program (with `runtime` as for `build`). Without it the store's own copy is looked at.
    `allow` names each finding that opens the data to somebody. `notice` is called with every finding before anything is
    signed. Raises UsageError where the owner is no party, where manifest and agreement differ, or where a finding is
    not named.
    """
    path = Path(path)
    read = read_with_signatures(path)
    agreement = read.agreement
    image = None if runtime is None else read_image(runtime)
    given = None if manifest is None else read_signed(manifest, runtime_of(image).digest)
    with owner_store(home) as (found, store):
        party = _own_party(agreement, Digest.from_hex(mine(found).ca_sha256))
        if is_over(agreement.until, datetime.now(UTC)):
            raise UsageError(
                f"agreement {agreement.id} is over",
                check="until of the agreement",
                expected="a time to come",
                seen=timestamp(agreement.until),
                remedy="draft another one",
            )
        with store.read() as view:
            model = _manifest(view, agreement, given)
        for line in _who_has_what(agreement):
            notice(line)
        findings = left_open(agreement, model)
        for item in findings:
            notice(f"{'must be named' if must_name([item]) else 'note'}: {item.name}: {item.what} ({item.key})")
        named = _named(findings, allow)
        signature = make_signature(agreement, *_signing_key(found, store))
        signatures = {**read.signatures, party.name: signature}
        with store.write() as change:
            change.sign_agreement(agreement, signatures, allowed=named, actor=actor())
    file = signature_path(path, party.name)
    write_file(file, signature.to_bytes())
    refused = tuple((name, error) for name, error in read.refused.items() if name != party.name)
    order = tuple(each.name for each in agreement.parties if each.name in signatures)
    left = tuple(each.name for each in agreement.parties if each.name not in signatures)
    return SignedByOwner(ShownAgreement(agreement, path, order, left, refused), party.name, file, findings, named)


def list_agreements(*, home: Path | None = None) -> ListedAgreements:
    """Every agreement that this owner signed, also those that she ended, with the runs that had a key."""
    with owner_store(home) as (_found, store), store.read() as view:
        stored = view.agreements()
        return ListedAgreements(tuple(ListedAgreement(item, view.agreed_runs(item.id)) for item in stored))


def revoke_agreement(agreement_id: str, *, home: Path | None = None) -> ListedAgreement:
    """End an agreement for this owner. From now on no approval releases a key on its ground, here or at any party."""
    with owner_store(home) as (_found, store), store.write() as change:
        stored = change.revoke_agreement(agreement_id, actor=actor())
        return ListedAgreement(stored, change.agreed_runs(agreement_id))


def _parties(manifest: Manifest) -> tuple[Party, ...]:
    written = written_keys(manifest)
    names = {*manifest.key_names, *(secret.name for secret in manifest.adyton.secrets)}
    owner_of = {name: manifest.owner_of(name) for name in manifest.key_names}
    by_name = {owner.name: owner for owner in manifest.adyton.owners}
    owner_of |= {secret.name: by_name.get(secret.owner or "") for secret in manifest.adyton.secrets}
    found = []
    for owner in sorted(manifest.adyton.owners, key=lambda owner: owner.name):
        if owner.ca is None:
            continue
        hers = sorted(name for name in names if owner_of.get(name) == owner)
        found.append(
            Party(
                name=owner.name,
                owner=Digest.from_hex(ca_sha256(owner.ca)),
                inputs=tuple(name for name in hers if name not in written),
                receives=tuple(name for name in hers if name in written),
            )
        )
    return tuple(found)


def _own_party(agreement: Agreement, owner: Digest) -> Party:
    party = agreement.party_of(owner)
    if party is None:
        raise UsageError(
            f"this home's owner is no party of agreement {agreement.name}",
            check="parties of the agreement",
            expected=f"a party with the fingerprint {owner} (adyton doctor, ca.crt of this home)",
            seen=", ".join(f"{each.name} {each.owner}" for each in agreement.parties),
            remedy="name the right home (--home), or have the agreement corrected",
        )
    return party


def _manifest(view: Reader, agreement: Agreement, given: SignedManifest | None) -> Manifest | None:
    """The manifest of the agreement's program, compared with it. None where it is not known here."""
    if given is not None:
        check_against(agreement, given.manifest, measurement=given.measurement, signer=given.mrsigner)
        return given.manifest
    measurement = agreement.program.measurement
    behind = None if measurement is None else view.behind(measurement)
    if behind is None or measurement is None:
        return None
    manifest = parse_manifest(decode(behind[0]))
    check_against(agreement, manifest, measurement=measurement)
    return manifest


def _who_has_what(agreement: Agreement) -> list[str]:
    """What a party must know before she signs: whose CA is pinned for which key, and who reads the outputs."""
    found = [f"program: {agreement.program}"]
    for party in agreement.parties:
        found.append(f"{party.name} is the owner of CA {party.owner}: compare it with her by telephone")
        found += [f"  key {name}: the program reads with it" for name in party.inputs]
        found += [f"  key {name}: the program writes under it, and {party.name} reads that" for name in party.receives]
    return found


def _named(findings: Sequence[Finding], allow: Sequence[str]) -> tuple[str, ...]:
    """The names of the findings that were named. Raises UsageError where one is not, or is none of these."""
    names = {item.name for item in findings}
    unknown = [name for name in allow if name not in names]
    if unknown:
        raise UsageError(
            f"{unknown[0][:200]!r} is not a finding of this program",
            check="names of the findings",
            expected=", ".join(sorted(names)) or "none: nothing has to be named",
            seen=unknown[0][:200],
            remedy="take the names as they are shown",
        )
    open_to = [item for item in must_name(findings) if item.name not in allow]
    if open_to:
        raise UsageError(
            "this program opens the data in a way that you did not name",
            check="findings that expose the data",
            expected="each of them named: --allow NAME",
            seen="; ".join(f"{item.name}: {item.what}" for item in open_to[:20]),
            remedy=(
                "give the program's manifest (--manifest)"
                if open_to[0].name == "manifest-unknown"
                else f"have the manifest mended ({open_to[0].remedy})"
            )
            + ", or, if you accept it: "
            + " ".join(f"--allow {shlex.quote(item.name)}" for item in open_to[:20]),
        )
    return tuple(item.name for item in findings if item.name in allow)


def _signing_key(home: Home, store: Store) -> tuple[Ed25519PrivateKey, bytes, bytes]:
    """The key, its certificate and the CA (DER). Also makes the key for in-force statements where there is none."""
    open_sealed_key(home, store, IN_FORCE_KEY, actor=actor())
    key = open_sealed_key(home, store, AGREEMENT, actor=actor())
    ca = ssl.PEM_cert_to_DER_cert(read_certificate(home.path, "ca.crt").decode("ascii"))
    return key.private, key.certificate_der, ca
