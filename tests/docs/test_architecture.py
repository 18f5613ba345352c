"""The architecture page names every room, and its answers to "in which file" hold."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, REPOSITORY

PACKAGE = REPOSITORY / "src" / "adyton"
PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")


def test_architecture_names_every_room() -> None:
    """A new folder of the package gets a row."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rooms <= named


def test_answers_name_files_that_exist_and_hold_the_name() -> None:
    """Each row of "In which file": every file is there, and one of them holds the name."""
    section = PAGE.split("## In which file")[1]
    rows = re.findall(r"^\| (?!question|---)(.+?) \| (.+?) \| `(\w+)` \|$", section, re.MULTILINE)
    assert len(rows) >= 17
    for question, where, name in rows:
        files = [PACKAGE / path for path in re.findall(r"`([\w/]+\.\w+)`", where)]
        assert files, question
        missing = [str(path) for path in files if not path.exists()]
        assert not missing, f"where {question} {missing}"
        texts = [path.read_text(encoding="utf-8") for path in files]
        assert any(re.search(rf"\b{name}\b", text) for text in texts), f"where {question} no file holds {name}"
