"""Reads commands out of Markdown pages: fenced `sh` blocks, and the comments that say why one is not run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCS = REPOSITORY / "docs"

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\s*\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
SHELL = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of commands: its page, its text, and why a test does not run it, if it does not."""

    page: Path
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """Its commands, continued lines joined, without comments and prompts."""
        joined = self.text.replace("\\\n", " ")
        lines = [re.sub(r"\s+# .*$", "", line).strip().removeprefix("$ ") for line in joined.splitlines()]
        return [re.sub(r" +", " ", line) for line in lines if line and not line.startswith("#")]


def shell_blocks(page: Path) -> list[Block]:
    """Every block of commands of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, match["text"], match["reason"]) for match in _BLOCK.finditer(text) if match["language"] in SHELL
    ]


def pages() -> list[Path]:
    """Every page with something for people to type: the docs, the README, and the examples' own."""
    found = [*DOCS.rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md"), REPOSITORY / "README.md"]
    return sorted(page for page in found if page.name != "cli.md")
