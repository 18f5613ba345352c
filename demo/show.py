"""The output of the demo: for people with Rich, for programs as one JSON document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.steps import RUN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from demo.attacks import Refusal
    from demo.outcome import Told
    from demo.steps import Journey, Step

SIMULATED = (
    "This machine's TEE is simulated: protocols, formats, checks and refusals are the real ones,"
    " but it protects nothing from this machine's root."
)


_LONG_HEX = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{24,}\b")


def _short(text: str) -> str:
    """Digests and measurements cut to 16 digits. The JSON document has them whole."""
    return _LONG_HEX.sub(r"\1…", text)


class People:
    """Numbered steps as in the paper's figure 3, as they happen."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._told: set[str] = set()

    def _panel(self, text: str, title: str) -> None:
        self._console.print(Panel(text, title=title, width=min(100, self._console.width)))

    def _rows(self, indent: int, rows: Iterable[tuple[str, str]]) -> None:
        """Two columns, the left one dim. Long texts wrap within their column."""
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", min_width=8)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(name, Text(_short(text)))
        self._console.print(Padding(table, (0, 0, 0, indent)))

    def welcome(self) -> None:
        """What this is, and what it is not."""
        self._panel(SIMULATED, "Adyton: PyTorch on a machine that you do not trust")

    def chapter(self, title: str) -> None:
        """A heading."""
        self._console.print(f"\n[bold]{title}[/bold]")

    def step(self, step: Step) -> None:
        """One step, once it is done."""
        number = str(step.number) if step.number else "·"
        line = Text.assemble((f" {number} ", "bold"), (f"{step.actor:<6}", "cyan"), f" {step.name}")
        line.append(f"  {step.seconds:.2f} s", style="dim")
        self._console.print(line)
        for shown in step.shown:
            self._console.print(Padding(Text(_short(shown), style="dim"), (0, 0, 0, 10)))

    def result(self, journey: Journey) -> None:
        """The result, as its owner reads it."""
        same = journey.decrypted_result == journey.plain_result
        title = "the result, decrypted: equal to the plain run's" if same else "the result DIFFERS from the plain run's"
        self._panel(journey.decrypted_result.rstrip(), title)

    def refusal(self, refusal: Refusal) -> None:
        """One attempt, and how it was refused."""
        if refusal.released:
            self._console.print(f"[bold red] ! NOT refused: {refusal.attempt}[/bold red]")
            return
        self._console.print(Text.assemble(" ✗ ", (refusal.attempt, "bold"), f": refused by the {refusal.refused_by}"))
        rows = [("check", refusal.check), ("expected", refusal.expected), ("seen", refusal.seen)]
        if refusal.record:
            rows.append(("owner", refusal.record))
        remedy = re.sub(r"d-[0-9a-f]{20}", "ID", refusal.remedy)
        if remedy not in self._told:
            self._told.add(remedy)
            rows.append(("do", refusal.remedy))
        self._rows(3, rows)

    def canary(self, told: Told) -> None:
        """The findings of the search, and of the positive control."""
        seen, control = told.seen, told.control
        verdict = "; ".join(f"{one.secret} ({one.form}) in {one.where}" for one in seen.found) or "nothing"
        searched = f"{seen.files} files, the recorded network among them, {seen.size_bytes / 1e6:.0f} MB"
        found = f"{len(control.secrets)} of {len(told.secrets)} secrets ({', '.join(sorted(control.forms))})"
        self._rows(
            1, [("searched", searched), ("found", verdict), ("control", f"a program that leaks on purpose: {found}")]
        )

    def listing(self, storage: Path) -> None:
        """What the storage holds, as anyone there sees it."""
        for path in sorted(path for path in storage.rglob("*") if path.is_file()):
            self._console.print(f"   {path.stat().st_size:>12,}  {path.relative_to(storage)}", style="dim")

    def closing(self, told: Told) -> None:
        """The table at the end."""
        phases = told.journey.phases
        run = sum(seconds for phase, seconds in phases.items() if phase in RUN)
        refused = sum(not refusal.released for refusal in told.refusals)
        self.chapter("In short")
        rows = [
            ("protected run", f"{run:.2f} s, of it {phases.get('program', 0):.2f} s in the script"),
            ("result", "equal to the plain run's" if told.equal else "WRONG"),
            ("refused", f"{refused} of {len(told.refusals)} attempts"),
            ("measurement", told.journey.measurement),
            ("TEE", "simulated: protects nothing from this machine's root"),
            ("all of it", f"{told.seconds:.0f} s"),
        ]
        self._rows(1, rows)
        if not told.good:
            self._console.print("[bold red]The demo did not go as it must: see above.[/bold red]")

    def kept(self, journey: Journey) -> None:
        """Where the folders are, and the commands to repeat each step by hand."""
        self._console.print("\n[bold]By hand[/bold]: each actor in its own folder, with these variables set")
        for actor in journey.world.actors:
            if actor.folder.name.startswith("host-"):
                continue
            variables = " ".join(f"{name}={value}" for name, value in actor.extra.items())
            self._console.print(f"\n# {actor.name}\ncd {actor.folder}; export {variables}", soft_wrap=True)
            for command in actor.commands:
                self._console.print(f"{command}", soft_wrap=True, markup=False)


def document(told: Told) -> dict[str, Any]:
    """The whole demo as data."""
    journey = told.journey
    return {
        "good": told.good,
        "simulated": True,
        "notice": SIMULATED,
        "seconds": round(told.seconds, 2),
        "measurement": journey.measurement,
        "tee": journey.tee,
        "steps": [
            {"number": step.number, "actor": step.actor, "name": step.name, "seconds": round(step.seconds, 4)}
            for step in journey.steps
        ],
        "phases": journey.phases,
        "result": {"text": journey.decrypted_result, "equals_plain_run": told.equal},
        "refusals": [
            {
                "attempt": refusal.attempt,
                "refused_by": refusal.refused_by,
                "refused": not refusal.released,
                "error": refusal.error,
                "message": refusal.message,
                "check": refusal.check,
                "expected": refusal.expected,
                "seen": refusal.seen,
                "remedy": refusal.remedy,
                "record": refusal.record,
                "seconds": round(refusal.seconds, 4),
            }
            for refusal in told.refusals
        ],
        "canary": {
            "searched": {"files": told.seen.files, "bytes": told.seen.size_bytes, "secrets": sorted(told.secrets)},
            "found": [{"secret": one.secret, "form": one.form, "where": one.where} for one in told.seen.found],
            "positive_control": {"found": sorted(told.control.secrets), "forms": sorted(told.control.forms)},
        },
    }
