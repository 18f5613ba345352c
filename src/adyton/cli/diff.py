"""`adyton diff`: which file, mount or key makes two manifests measure differently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.output import say, say_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A manifest, as `adyton build` wrote it.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as JSON.")] = False,
) -> None:
    """Say what differs between two manifests, and hence their measurements. Exit code 0: nothing; 1: something.

    Where both signatures lie beside them, a changed runtime (Adyton itself) is named as well.
    """
    from adyton.manifest.difference import differences
    from adyton.manifest.model import MAX_MANIFEST_BYTES
    from adyton.manifest.signature import SIGSTRUCT_BYTES, parse_sigstruct
    from adyton.manifest.signed import decode, read_capped, signature_path

    texts = [read_capped(path, MAX_MANIFEST_BYTES, "manifest") for path in (before, after)]
    found = [*differences(decode(texts[0]), decode(texts[1]))]
    signatures = [signature_path(path) for path in (before, after)]
    measurements: list[str] = []
    signers: list[str] = []
    if all(path.exists() for path in signatures):
        parsed = [parse_sigstruct(read_capped(path, SIGSTRUCT_BYTES, "signature")) for path in signatures]
        measurements = [str(item.measurement) for item in parsed]
        signers = [str(item.verify()) for item in parsed]
    runtime_differs = texts[0] == texts[1] and len(set(measurements)) == 2
    signer_differs = len(set(signers)) == 2
    if as_json:
        say_json(
            {
                "same": not found and not runtime_differs and not signer_differs,
                "measurements": measurements,
                "signers": signers,
                "differences": [
                    {"kind": item.kind, "what": item.what, "before": item.before, "after": item.after} for item in found
                ],
                "runtime_differs": runtime_differs,
            }
        )
    else:
        for item in found:
            say(str(item))
        if runtime_differs:
            say("runtime: the manifests are the same, so they were built by different versions of Adyton or Python")
        if signer_differs:
            say(f"signer: {signers[0]} -> {signers[1]}")
        if measurements and len(set(measurements)) == 2:
            say(f"measurement: {measurements[0]} -> {measurements[1]}")
    if found or runtime_differs or signer_differs:
        raise typer.Exit(1)
