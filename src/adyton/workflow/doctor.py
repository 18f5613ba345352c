"""Check this machine: its TEEs, missing parts for each, and whether programs can run here."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import UsageError
from adyton.tee.machine import Machine, usable_tees
from adyton.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CHECKS: Final[tuple[str, ...]] = (
    "adyton.tee.machine:tee_findings",
    "adyton.workflow.doctor_host:kernel",
    "adyton.workflow.doctor_host:python",
    "adyton.workflow.doctor_host:fuse",
    "adyton.workflow.doctor_host:sandbox",
    "adyton.workflow.doctor_host:memory",
    "adyton.workflow.doctor_host:swap",
    "adyton.workflow.doctor_host:clock",
    "adyton.workflow.doctor_host:clones",
    "adyton.workflow.doctor_host:collateral",
    "adyton.workflow.doctor_gpus:gpus",
    "adyton.workflow.doctor_server:owner",
)
"""`module:function`. Each function takes a `Machine` and yields `Finding`s. A room adds its checks here."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The findings, the usable TEEs, and whether programs can run in the requested one."""

    tees: tuple[str, ...]
    can_run: bool
    ready: bool
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton doctor --json`."""
        return {
            "tees": list(self.tees),
            "can_run": self.can_run,
            "ready": self.ready,
            "findings": [asdict(finding) for finding in self.findings],
        }


def doctor(tee: str | None = None) -> Examined:
    """Check this machine, as `adyton doctor` does. `tee` is the one that must be usable. Raises UsageError."""
    wanted = None if tee is None else {"sim-tdx": "sim"}.get(tee, tee)
    if wanted is not None and wanted not in ("sgx", "tdx", "snp", "sim"):
        raise UsageError(f"no TEE named {tee!r}", check="--for", expected="sgx, tdx, snp, sim or sim-tdx", seen=tee)
    findings = collect(Machine())
    tees = usable_tees(findings)
    can_run = all(row.state != "missing" for row in findings if row.group == "host")
    return Examined(tuple(tees), can_run, can_run and (wanted is None or wanted in tees), tuple(findings))


def collect(machine: Machine) -> list[Finding]:
    """The findings of all checks. A check that fails becomes a finding, and the others go on."""
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
