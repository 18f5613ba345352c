"""`adyton explain-measurement`: what is in a measurement, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adyton.cli.output import note, say, say_json
from adyton.errors import BadSignature

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def explain_measurement(
    manifest: Annotated[Path, typer.Argument(help="NAME.manifest (NAME.sig beside it), or a SIGSTRUCT alone.")],
    measurement: Annotated[
        str | None, typer.Option(help="A measurement to compare with, from an approval, a log or evidence.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as JSON.")] = False,
) -> None:
    """Say what a measurement covers (program, files, environment, mounts, keys, runtime), and what it does not.

    With a manifest that was built for Gramine its MRENCLAVE is explained as well, area by area.
    """
    from adyton.manifest.explain import (
        Section,
        explain_layout,
        explain_manifest,
        explain_runtime,
        explain_signature,
    )
    from adyton.manifest.host import find_gramine
    from adyton.manifest.measure import workload_measurement
    from adyton.manifest.model import MAX_MANIFEST_BYTES, parse_manifest
    from adyton.manifest.mrenclave import MAX_PAL_BYTES, Offsets, lay_out, measure, parse_pal
    from adyton.manifest.signature import SIGSTRUCT_BYTES, parse_sigstruct
    from adyton.manifest.signed import decode, read_capped, signature_path
    from adyton.runtime.gramine_backend import read_prepared, stem_of
    from adyton.runtime.identity import runtime_identity
    from adyton.values import Measurement

    wanted = None if measurement is None else Measurement.from_hex(measurement)
    raw = read_capped(manifest, MAX_MANIFEST_BYTES, "manifest")
    sections: list[Section] = []
    known: dict[str, str] = {}
    if manifest.suffix == ".sig" or len(raw) == SIGSTRUCT_BYTES:
        sigstruct = parse_sigstruct(raw)
        sigstruct.verify()
        known["signed measurement"] = str(sigstruct.measurement)
        sections.append(explain_signature(sigstruct))
    else:
        identity = runtime_identity()
        known["workload measurement under this runtime"] = str(workload_measurement(raw, identity.digest))
        if signature_path(manifest).exists():
            sigstruct = parse_sigstruct(read_capped(signature_path(manifest), SIGSTRUCT_BYTES, "signature"))
            sigstruct.verify()
            known["signed measurement"] = str(sigstruct.measurement)
            sections.append(explain_signature(sigstruct))
        sections += explain_manifest(parse_manifest(decode(raw)))
        sections.append(explain_runtime(identity.digest, identity.parts))
        if stem_of(manifest).with_name(f"{stem_of(manifest).name}.sig").exists():
            prepared = read_prepared(manifest)
            known["MRENCLAVE (Gramine)"] = str(prepared.measurement)
            installation = find_gramine()
            if installation is not None:
                rendered = read_capped(
                    prepared.stem.with_name(f"{prepared.stem.name}.manifest.sgx"), MAX_MANIFEST_BYTES, "manifest"
                )
                layout = lay_out(
                    rendered,
                    parse_pal(read_capped(installation.libpal, MAX_PAL_BYTES, "libpal.so")),
                    enclave_bytes=prepared.manifest.sgx.enclave_size_bytes,
                    max_threads=prepared.manifest.sgx.max_threads,
                    edmm=prepared.manifest.sgx.edmm_enable,
                    offsets=Offsets.of(installation.constants),
                )
                known["MRENCLAVE computed with the Gramine installed here"] = str(measure(layout))
                sections.append(explain_layout(layout))
    document: dict[str, Any] = {
        "measurements": known,
        "sections": {section.title: list(section.lines) for section in sections},
    }
    if wanted is not None:
        document["matches"] = [name for name, text in known.items() if text == str(wanted)]
    if as_json:
        say_json(document)
    else:
        for name, text in known.items():
            say(f"{name}: {text}")
        for section in sections:
            say(f"\n{section.title}")
            for line in section.lines:
                say(f"  {line}")
        signed = known.get("signed measurement")
        if signed is not None and known.get("workload measurement under this runtime", signed) != signed:
            note("it was signed for another runtime: another Adyton, Python or library than is installed here")
    if wanted is not None and not document["matches"]:
        raise BadSignature(
            "this is not the manifest of that measurement",
            check="measurement",
            expected=wanted,
            seen=" or ".join(known.values()),
            remedy="adyton diff says what differs, where you have the manifest of that measurement",
        )
