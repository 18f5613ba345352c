"""`adyton explain-measurement`: what is in a measurement, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.options import JSONOption, RuntimeOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def explain_measurement(
    manifest: Annotated[Path, typer.Argument(help="NAME.manifest (NAME.sig beside it), or a SIGSTRUCT alone.")],
    measurement: Annotated[
        str | None, typer.Option(help="A measurement to compare with, from an approval, a log or evidence.")
    ] = None,
    runtime: RuntimeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say what a measurement covers (program, files, environment, mounts, keys, runtime), and what it does not.

    With a manifest that was built for Gramine its MRENCLAVE is explained as well, area by area.
    """
    from adyton.values import Measurement
    from adyton.workflow.explain_measurement import explain_measurement as carry_out

    wanted = None if measurement is None else Measurement.from_hex(measurement)
    found = carry_out(manifest, measurement=wanted, runtime=runtime)
    if as_json:
        say_json(found.to_dict())
    else:
        for name, text in found.measurements.items():
            say(f"{name}: {text}")
        for section in found.sections:
            say(f"\n{section.title}")
            for line in section.lines:
                say(f"  {line}")
        if found.for_another_runtime:
            here = "is installed here" if runtime is None else "is in the guest image"
            note(f"it was signed for another runtime: another Adyton, Python or library than {here}")
            if runtime is None:
                note("for a manifest that was built for a guest image, name it: --runtime image.json")
    found.require()
