"""A manifest template becomes the final manifest: rendered, hashed, measured and signed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import write_file
from adyton.errors import ManifestError, UsageError
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.home import default_home
from adyton.manifest.cache import HashCache, default_path
from adyton.manifest.difference import certificate_name
from adyton.manifest.finalize import finish
from adyton.manifest.findings import findings, not_covered, runtime_refusals, tee_refusals
from adyton.manifest.host import find_gramine, host_facts
from adyton.manifest.measure import workload_measurement
from adyton.manifest.signed import decode, read_capped, signed_attributes
from adyton.manifest.sigstruct import MAX_PEM_BYTES, load_signer, sign
from adyton.manifest.template import MAX_TEMPLATE_BYTES, named_environment, parse_definitions, render
from adyton.runtime.gramine_backend import installed, prepare
from adyton.tee.source import TEES
from adyton.workflow.client_judge import check_client_policy
from adyton.workflow.guest_image import read_image, runtime_of
from adyton.workflow.progress import unwatched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adyton.manifest.findings import Finding
    from adyton.runtime.gramine_backend import Prepared
    from adyton.values import Digest, Measurement
    from adyton.workflow.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The signed manifest, what it measures, and what an owner should know before she approves it."""

    manifest: Path
    signature: Path
    measurement: Measurement
    mrsigner: Digest
    runtime: Digest
    trusted_files: int
    trusted_bytes: int
    keys: tuple[str, ...]
    owners: Mapping[str, str]
    """Owner -> the key server's name, and whose CA is pinned for it."""
    warnings: tuple[Finding, ...]
    refused_by_the_runtime: tuple[tuple[str, str], ...]
    """Manifest key and reason."""
    refused_by_tees: tuple[tuple[str, str, str], ...]
    """TEE, manifest key and reason."""
    not_covered: tuple[str, ...]
    notes: tuple[str, ...]
    """What was changed in the template on the way."""
    gramine: Prepared | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `adyton build --json` says it."""
        document: dict[str, Any] = {
            "manifest": str(self.manifest),
            "signature": str(self.signature),
            "measurement": str(self.measurement),
            "mrsigner": str(self.mrsigner),
            "runtime": str(self.runtime),
            "trusted_files": self.trusted_files,
            "trusted_bytes": self.trusted_bytes,
            "keys": list(self.keys),
            "owners": dict(self.owners),
            "warnings": [
                {
                    "name": finding.name,
                    "danger": finding.danger.name.lower(),
                    "key": finding.key,
                    "what": finding.what,
                    "remedy": finding.remedy,
                }
                for finding in self.warnings
            ],
            "refused_by_the_runtime": [{"key": key, "reason": reason} for key, reason in self.refused_by_the_runtime],
            "refused_by_tees": [
                {"tee": tee, "key": key, "reason": reason} for tee, key, reason in self.refused_by_tees
            ],
            "not_covered": list(self.not_covered),
            "notes": list(self.notes),
        }
        if self.gramine is not None:
            document["gramine"] = {
                "manifest": f"{self.gramine.stem}.manifest.sgx",
                "signature": f"{self.gramine.stem}.sig",
                "mrenclave": str(self.gramine.measurement),
                "notes": list(self.gramine.notes),
            }
        return document


def build(
    template: str | Path,
    *,
    define: Sequence[str] = (),
    env: Sequence[str] = (),
    programs: Sequence[str] = (),
    pythons: Sequence[str] = (),
    output: str | Path = ".",
    home: Path | None = None,
    signer: Path | None = None,
    date: str = "0000-00-00",
    gramine: bool = False,
    gramine_defaults: bool = False,
    runtime: Path | None = None,
    strict: bool = False,
    use_cache: bool = True,
    progress: Progress = unwatched,
) -> Built:
    """Render a template, hash every trusted file, sign, and measure, as `adyton build` does.

    `define` gives variables of the template as NAME=VALUE. `env` names environment variables that it may read,
    `programs` and `pythons` what it may ask about. With `gramine_defaults` output, input and network are the host's
    where the template does not say. `runtime` is the image.json of a guest image: the measurement is that under the
    Adyton in the image, by default that under the one installed here. Relative paths are relative to the current
    folder. Raises UsageError, ManifestError and its kinds, StorageFailed, and NoDevice where Gramine is wanted and not
    installed.
    """
    template, output = Path(template), Path(output)
    home = home or default_home()
    name = name_of(template)
    signer = signer or home / "signer.pem"
    if not signer.exists():
        raise UsageError(
            f"there is no signing key {signer}",
            check="signing key",
            expected="an RSA-3072 key",
            seen="nothing",
            remedy="make your identity with `adyton init`, or name a key with --signer",
        )
    signing_key = load_signer(read_capped(signer, MAX_PEM_BYTES, "signing key"))
    text = render(
        decode(read_capped(template, MAX_TEMPLATE_BYTES, "template")),
        parse_definitions(list(define)),
        environment=named_environment(list(env), os.environ),
        facts=host_facts(find_gramine(), programs=programs, interpreters=pythons),
        name=template.name,
    )
    measured = runtime_of(None if runtime is None else read_image(runtime))
    cache = HashCache.load(default_path()) if use_cache else HashCache.none()
    default_ca = read_certificate(home, "ca.crt").decode("ascii", "replace") if (home / "ca.crt").is_file() else None
    with progress("hashing trusted files", None) as advance:
        built = finish(
            text,
            Path.cwd(),
            name=name,
            default_ca=default_ca,
            gramine_defaults=gramine_defaults,
            cache=cache,
            advance=advance,
        )
    cache.save()
    manifest = built.manifest
    for one in manifest.adyton.ingress:
        check_client_policy(one)
    warnings = findings(manifest)
    if strict and warnings:
        raise ManifestError(
            f"{len(warnings)} warnings, and --strict refuses them",
            check="build --strict",
            expected="no warnings",
            seen="; ".join(f"{finding.key}: {finding.what}" for finding in warnings),
            remedy=warnings[0].remedy,
        )
    measurement = workload_measurement(built.manifest_bytes, measured.digest)
    sigstruct = sign(
        measurement,
        signing_key,
        attributes=signed_attributes(manifest),
        isv_prod_id=manifest.sgx.isv_prod_id,
        isv_svn=manifest.sgx.isv_svn,
        date=date,
    )
    paths = output / f"{name}.manifest", output / f"{name}.sig"
    prepared = None
    if gramine:
        prepared = prepare(paths[0], built.manifest_bytes, signing_key, installed(), date=date, write=write_file)
    write_file(paths[0], built.manifest_bytes)
    write_file(paths[1], sigstruct.to_bytes())
    return Built(
        manifest=paths[0],
        signature=paths[1],
        measurement=measurement,
        mrsigner=sigstruct.mrsigner,
        runtime=measured.digest,
        trusted_files=len(manifest.trusted_files),
        trusted_bytes=sum(entry.size_bytes or 0 for entry in manifest.trusted_files),
        keys=tuple(manifest.key_names),
        owners={
            owner.name: f"{owner.server_name}, CA {certificate_name(owner.ca or '')}"
            for owner in manifest.adyton.owners
        },
        warnings=tuple(warnings),
        refused_by_the_runtime=tuple(runtime_refusals(manifest)),
        refused_by_tees=tuple((tee, key, reason) for tee in TEES for key, reason in tee_refusals(manifest, tee)),
        not_covered=tuple(not_covered(manifest)),
        notes=built.notes,
        gramine=prepared,
    )


def name_of(template: Path) -> str:
    """NAME of NAME.manifest.template, NAME.manifest, NAME.template or NAME.toml."""
    name = template.name
    for suffix in (".template", ".toml", ".manifest"):
        name = name.removesuffix(suffix)
    if not name:
        raise UsageError(f"{template} has no name before its suffix", expected="NAME.manifest.template")
    return name
