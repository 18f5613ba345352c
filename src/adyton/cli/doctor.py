"""`adyton doctor`: which TEE this machine has, what is missing for each, and whether programs can run here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adyton.cli.output import say, say_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from adyton.tee.machine import Machine
    from adyton.values import Finding

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CHECKS: Final[tuple[str, ...]] = (
    "adyton.tee.machine:tee_findings",
    "adyton.cli.doctor_host:kernel",
    "adyton.cli.doctor_host:python",
    "adyton.cli.doctor_host:fuse",
    "adyton.cli.doctor_host:sandbox",
    "adyton.cli.doctor_host:memory",
    "adyton.cli.doctor_host:swap",
    "adyton.cli.doctor_host:clock",
    "adyton.cli.doctor_host:clones",
    "adyton.cli.doctor_host:collateral",
    "adyton.cli.doctor_server:owner",
)
"""`module:function`, each taking a `Machine` and giving `Finding`s; a room adds its checks here."""

NOT_READY: Final = 112
"""Exit code where something is missing; the code of NoDevice."""

_MARKS: Final = {"ok": "ok", "note": "--", "warning": "!!", "missing": "NO"}
_TITLES: Final = {
    "sgx": "Intel SGX (with Gramine)",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "sim": "simulated TEE",
    "host": "this machine",
    "owner": "the owner's home",
    "server": "key server",
}


def collect(machine: Machine) -> list[Finding]:
    """Every check's findings; a check that fails is a finding itself, never the end of the others."""
    from adyton.values import Finding

    found: list[Finding] = []
    for name in CHECKS:
        module, _, function = name.partition(":")
        try:
            check: Callable[[Machine], Iterable[Finding]] = getattr(importlib.import_module(module), function)
            found += check(machine)
        except Exception as error:
            found.append(
                Finding("host", function, "warning", f"could not be looked at: {type(error).__name__}: {error}")
            )
    return found


@app.command()
def doctor(
    for_: Annotated[
        str | None, typer.Option("--for", help="Fail unless this TEE can be used here.", metavar="TEE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False,
) -> None:
    """Say which TEE this machine has, what is missing for each and how to get it, and whether programs can run here."""
    from dataclasses import asdict

    from adyton.errors import UsageError
    from adyton.tee.machine import Machine, usable_tees

    findings = collect(Machine())
    tees = usable_tees(findings)
    wanted = None if for_ is None else {"sim-tdx": "sim"}.get(for_, for_)
    if wanted is not None and wanted not in ("sgx", "tdx", "snp", "sim"):
        raise UsageError(f"no TEE named {for_!r}", check="--for", expected="sgx, tdx, snp, sim or sim-tdx", seen=for_)
    runnable = all(row.state != "missing" for row in findings if row.group == "host")
    ready = runnable and (wanted is None or wanted in tees)
    if as_json:
        rows = [asdict(row) for row in findings]
        say_json({"tees": list(tees), "can_run": runnable, "ready": ready, "findings": rows})
    else:
        _show(findings)
        say("")
        say(f"TEEs that can be used here: {', '.join(tees)}" + (" (sim protects nothing)" if tees == ("sim",) else ""))
        say("protected programs can run here" if runnable else "protected programs cannot run here yet (see NO above)")
    if not ready:
        raise typer.Exit(NOT_READY)


def _show(findings: list[Finding]) -> None:
    for group in dict.fromkeys(row.group for row in findings):
        rows = [row for row in findings if row.group == group]
        say(f"{_TITLES.get(group, group)}")
        for row in rows:
            say(f"  {_MARKS[row.state]}  {row.name}: {row.seen}")
            if row.remedy is not None:
                say(f"      -> {row.remedy}")
