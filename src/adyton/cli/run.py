"""`adyton run`: prove what runs here, get the keys, and run the program on its files.

A protected start waits for nothing that it does not need: the common form of the command line is parsed by hand, and
Typer is imported only for help and for mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adyton.cli.output import note, say_json
from adyton.workflow.run import PROVISIONING, UNDER_GRAMINE, Request, run_here

_WITH_VALUE: Final = {
    "--tee": "tee",
    "--key-server": "key_servers",
    "--sim-platform": "sim_platform",
    "--provisioning": "provisioning",
    "--grants": "grants",
    "--receipt": "receipt",
    "--after": "after",
}
_PATHS: Final = ("sim_platform", "grants", "receipt")


@dataclass(frozen=True, slots=True)
class Line:
    """A command line: what to run, and whether to say as JSON how it ended."""

    request: Request
    as_json: bool = False


def parse(args: Sequence[str]) -> Line | None:
    """The command line, where every word is plain; None sends the whole line to Typer, for help or a good error."""
    found: dict[str, Any] = {"key_servers": (), "after": ()}
    as_json = False
    plain: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if word == "--":
            plain += words
            break
        if word == "--json":
            as_json = True
        elif word == "--receipt-plaintext":
            found["receipt_plaintext"] = True
        elif option in _WITH_VALUE and (equals or words):
            value = value if equals else words.pop(0)
            name = _WITH_VALUE[option]
            if name == "key_servers":
                found[name] += (value,)
            elif name == "after":
                found[name] += (Path(value),)
            else:
                found[name] = Path(value) if name in _PATHS else value
        elif word.startswith("-"):
            return None
        else:
            plain.append(word)
    if not plain or found.get("provisioning", "adyton") not in PROVISIONING:
        return None
    return Line(Request(manifest=Path(plain[0]), arguments=tuple(plain[1:]), **found), as_json)


class _App:
    """The verb as `cli.main` calls it: by hand where that will do, else through Typer."""

    def __call__(self, *, args: Sequence[str], prog_name: str) -> None:
        from adyton.runtime.inherited import begin_anew

        begin_anew()
        line = parse(args)
        if line is None:
            from adyton.cli.run_options import app as slower

            slower(args=list(args), prog_name=prog_name, obj=lambda request, as_json: run(Line(request, as_json)))
        else:
            run(line)


app: Final = _App()


def run(line: Line) -> None:
    """Carry out a command line; raises ScriptFailed with the program's exit code where that is not 0."""
    ran = run_here(line.request, lambda text: note(f"adyton: {text}"))
    if line.as_json and ran.tee not in UNDER_GRAMINE:
        say_json(ran.to_dict())
    ran.require()
    if ran.log is not None:
        note(f"adyton: done; what the program printed: {ran.log_command}")
