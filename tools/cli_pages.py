"""Write docs/cli-abi.md and docs/cli.md from the code: exit codes, and what every verb's --help says.

python tools/cli_pages.py [--check]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adyton import errors
from adyton.cli.main import VERBS

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).resolve().parent.parent / "docs"


def _classes(root: type[errors.Error]) -> Iterator[type[errors.Error]]:
    for child in root.__subclasses__():
        if child is not errors.ScriptFailed:
            yield child
        yield from _classes(child)


def abi_page() -> str:
    """The page of exit codes."""
    rows = sorted(_classes(errors.Error), key=lambda child: child.exit_code)
    return "\n".join(
        [
            "# Exit codes",
            "",
            "What scripts may rely on. `0` is success. Where the protected program itself failed, its own",
            "exit status is passed on (128 + n if signal n ended it). Otherwise the class of the error decides,",
            "and a code is never reused:",
            "",
            "| class | code | meaning |",
            "| --- | --- | --- |",
            *(f"| `{row.__name__}` | {row.exit_code} | {(row.__doc__ or '').strip()} |" for row in rows),
            "",
            "`1` is a bug in Adyton, shown with its traceback; `130` an interrupt from the keyboard. Codes 110",
            "to 114 mean *could not check*: they say nothing about whether the thing is good. With `--json`, an",
            "error is one JSON object on standard output with `error`, `message`, and, where known, `check`,",
            "`expected`, `seen` and `remedy`.",
            "",
        ]
    )


def _help(verb: str) -> str:
    environment = {**os.environ, "COLUMNS": "80", "HOME": "/home/you"}
    environment.pop("ADYTON_HOME", None)
    command = [sys.executable, "-m", "adyton", *verb.split(), "--help"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in shown.strip().splitlines())


def _verbs() -> Iterator[str]:
    for verb in VERBS:
        yield verb
        _, found, inner = _help(verb).partition("\nCommands:\n")
        if found:
            yield from (f"{verb} {name}" for name in re.findall(r"^  (\w[\w-]*) ", inner, re.M))


def cli_page() -> str:
    """The reference of all verbs."""
    parts = ["# Verbs", "", "Made from the verbs' own `--help` by `python tools/cli_pages.py`.", ""]
    for verb in _verbs():
        parts += [f"{'###' if ' ' in verb else '##'} adyton {verb}", "", "```text", _help(verb), "```", ""]
    return "\n".join(parts)


def main() -> int:
    """Write the pages, or with --check say which of them is not what the code says."""
    pages = {DOCS / "cli-abi.md": abi_page(), DOCS / "cli.md": cli_page()}
    if "--check" in sys.argv:
        stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
        sys.stdout.write(
            "".join(f"docs/{name} is not what the code says: run python tools/cli_pages.py\n" for name in stale)
        )
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
