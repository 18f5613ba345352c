"""`adyton doctor`: which TEE this machine has, what is missing for each, and whether programs can run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from adyton.cli.options import JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.values import Finding

app = verb_app()

NOT_HERE: Final = "protected programs cannot run here yet (see NO above)"
NOT_READY: Final = 112
"""Exit code where something is missing; the code of NoDevice."""

_MARKS: Final = {"ok": "ok", "note": "--", "warning": "!!", "missing": "NO"}
_TITLES: Final = {
    "sgx": "Intel SGX (with Gramine)",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "sim": "simulated TEE",
    "gpu": "GPUs",
    "host": "this machine",
    "owner": "the owner's home",
    "server": "key server",
}


@app.command()
def doctor(
    for_: Annotated[
        str | None, typer.Option("--for", help="Fail unless this TEE can be used here.", metavar="TEE")
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Say which TEE this machine has, what is missing for each and how to get it, and whether programs can run here."""
    from adyton.workflow.doctor import doctor as carry_out

    found = carry_out(for_)
    if as_json:
        say_json(found.to_dict())
    else:
        _show(found.findings)
        only_simulated = " (sim protects nothing)" if found.tees == ("sim",) else ""
        say("")
        say(f"TEEs that can be used here: {', '.join(found.tees)}{only_simulated}")
        say("protected programs can run here" if found.can_run else NOT_HERE)
    if not found.ready:
        raise typer.Exit(NOT_READY)


def _show(findings: Iterable[Finding]) -> None:
    every = list(findings)
    for group in dict.fromkeys(row.group for row in every):
        rows = [row for row in every if row.group == group]
        say(f"{_TITLES.get(group, group)}")
        for row in rows:
            say(f"  {_MARKS[row.state]}  {row.name}: {row.seen}")
            if row.remedy is not None:
                say(f"      -> {row.remedy}")
