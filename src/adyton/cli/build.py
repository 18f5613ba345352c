"""`adyton build`: a manifest template becomes the final manifest, hashed, measured and signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adyton.cli.output import note, progress, say, say_json
from adyton.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from adyton.manifest.findings import Finding

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build(
    template: Annotated[Path, typer.Argument(help="The manifest template (Gramine's TOML with Jinja).")],
    define: Annotated[
        list[str] | None, typer.Option("-D", "--define", metavar="NAME=VALUE", help="A variable of the template.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="An environment variable that the template may read: env.NAME."),
    ] = None,
    program: Annotated[
        list[str] | None,
        typer.Option("--program", metavar="PATH", help="A program whose libraries the template may list: ldd(PATH)."),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            "--python",
            metavar="PATH",
            help="A Python that the template may ask about: python.get_sys_path(PATH), which runs it, and ldd(PATH).",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.manifest and NAME.sig.")] = Path(),
    home: Annotated[
        Path | None, typer.Option(envvar="ADYTON_HOME", help="The owner's home: signing key and CA.  [~/.adyton]")
    ] = None,
    signer: Annotated[Path | None, typer.Option(help="Signing key, RSA-3072 with e = 3.  [HOME/signer.pem]")] = None,
    date: Annotated[str, typer.Option(help="Date in the signature (YYYY-MM-DD).")] = "0000-00-00",
    gramine: Annotated[bool, typer.Option("--gramine", help="Also prepare NAME.gramine.* for --tee sgx.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what would only be warned of.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Hash every file again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as JSON.")] = False,
) -> None:
    """Render TEMPLATE, hash every trusted file, sign, and print the measurement that the owner approves.

    Relative paths in the template are relative to the current folder, as they will be for `adyton run`.
    """
    from adyton.atomic_file import write_file
    from adyton.manifest.cache import HashCache, default_path
    from adyton.manifest.difference import certificate_name
    from adyton.manifest.final import finish
    from adyton.manifest.findings import findings, not_covered, runtime_refusals, tee_refusals
    from adyton.manifest.host import find_gramine, host_facts
    from adyton.manifest.measure import workload_measurement
    from adyton.manifest.signature import MAX_PEM_BYTES, load_signer, sign
    from adyton.manifest.signed import decode, read_capped, signed_attributes
    from adyton.manifest.template import MAX_TEMPLATE_BYTES, named_environment, parse_definitions, render
    from adyton.runtime.identity import runtime_identity
    from adyton.tee.source import TEES

    home = home or Path.home() / ".adyton"
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
    key = load_signer(read_capped(signer, MAX_PEM_BYTES, "signing key"))
    text = render(
        decode(read_capped(template, MAX_TEMPLATE_BYTES, "template")),
        parse_definitions(define or []),
        environment=named_environment(env or [], os.environ),
        facts=host_facts(find_gramine(), programs=program or (), interpreters=python or ()),
        name=template.name,
    )
    cache = HashCache.none() if no_cache else HashCache.load(default_path())
    default_ca = (home / "ca.crt").read_text() if (home / "ca.crt").is_file() else None
    with progress("hashing trusted files", None, quiet=as_json) as advance:
        built = finish(text, Path.cwd(), name=name, default_ca=default_ca, cache=cache, advance=advance)
    cache.save()
    manifest = built.manifest
    warnings = findings(manifest)
    if strict and warnings:
        raise ManifestError(
            f"{len(warnings)} warnings, and --strict refuses them",
            check="build --strict",
            expected="no warnings",
            seen="; ".join(f"{finding.key}: {finding.what}" for finding in warnings),
            remedy=warnings[0].remedy,
        )
    runtime = runtime_identity()
    measurement = workload_measurement(built.manifest_bytes, runtime.digest)
    sigstruct = sign(
        measurement,
        key,
        attributes=signed_attributes(manifest),
        isv_prod_id=manifest.sgx.isv_prod_id,
        isv_svn=manifest.sgx.isv_svn,
        date=date,
    )
    paths = output / f"{name}.manifest", output / f"{name}.sig"
    prepared = None
    if gramine:
        from adyton.runtime.gramine_backend import installed, prepare

        prepared = prepare(paths[0], built.manifest_bytes, key, installed(), date=date, write=write_file)
    write_file(paths[0], built.manifest_bytes)
    write_file(paths[1], sigstruct.to_bytes())
    refusals = runtime_refusals(manifest)
    document: dict[str, Any] = {
        "manifest": str(paths[0]),
        "signature": str(paths[1]),
        "measurement": str(measurement),
        "mrsigner": str(sigstruct.mrsigner),
        "runtime": str(runtime.digest),
        "trusted_files": len(manifest.trusted_files),
        "trusted_bytes": sum(entry.size_bytes or 0 for entry in manifest.trusted_files),
        "keys": list(manifest.key_names),
        "owners": {
            owner.name: f"{owner.server_name}, CA {certificate_name(owner.ca or '')}"
            for owner in manifest.adyton.owners
        },
        "warnings": [
            {
                "name": finding.name,
                "danger": finding.danger.name.lower(),
                "key": finding.key,
                "what": finding.what,
                "remedy": finding.remedy,
            }
            for finding in warnings
        ],
        "refused_by_the_runtime": [{"key": key_name, "reason": reason} for key_name, reason in refusals],
        "refused_by_tees": [
            {"tee": tee, "key": key_name, "reason": reason}
            for tee in TEES
            for key_name, reason in tee_refusals(manifest, tee)
        ],
        "not_covered": list(not_covered(manifest)),
    }
    if prepared is not None:
        document["gramine"] = {
            "manifest": f"{prepared.stem}.manifest.sgx",
            "signature": f"{prepared.stem}.sig",
            "mrenclave": str(prepared.measurement),
            "notes": list(prepared.notes),
        }
    if as_json:
        say_json(document)
        return
    _show(document, warnings)


def _show(document: dict[str, Any], warnings: tuple[Finding, ...]) -> None:
    megabytes = document["trusted_bytes"] / 1e6
    say(f"manifest     {document['manifest']}  ({document['trusted_files']} trusted files, {megabytes:.1f} MB)")
    say(f"signature    {document['signature']}")
    say(f"measurement  {document['measurement']}")
    say(f"MRSIGNER     {document['mrsigner']}")
    say(f"runtime      {document['runtime']}")
    say(f"keys         {', '.join(document['keys']) or 'none'}")
    for name, server in document["owners"].items():
        say(f"owner        {name}: {server}")
    for finding in warnings:
        about = f"{finding.key}: {finding.what}; {finding.remedy}"
        note(f"warning ({finding.danger.name.lower()}): {about} [{finding.name}]")
    for refusal in document["refused_by_the_runtime"]:
        note(f"warning: Adyton's runtime refuses {refusal['key']}: {refusal['reason']} (only under sgx)")
    for refusal in document["refused_by_tees"]:
        note(f"warning: {refusal['tee']} refuses {refusal['key']}: {refusal['reason']}")
    if "gramine" in document:
        say(f"MRENCLAVE    {document['gramine']['mrenclave']}  (--tee sgx, under Gramine)")
        for line in document["gramine"]["notes"]:
            note(f"gramine: {line}")
    say("the measurement does not cover:")
    for line in document["not_covered"]:
        say(f"  - {line}")


def name_of(template: Path) -> str:
    """NAME of NAME.manifest.template, NAME.manifest, NAME.template or NAME.toml."""
    name = template.name
    for suffix in (".template", ".toml", ".manifest"):
        name = name.removesuffix(suffix)
    if not name:
        raise UsageError(f"{template} has no name before its suffix", expected="NAME.manifest.template")
    return name
