"""The page of attacks names every test of an adversary, and no other."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, REPOSITORY


def test_attacks_names_every_test_of_an_adversary() -> None:
    """A new one gets a row."""
    named = set(re.findall(r"`(tests/faults/[^`]+)`", (DOCS / "attacks.md").read_text(encoding="utf-8")))
    there = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tests" / "faults").rglob("test_*.py")}
    assert named == there
