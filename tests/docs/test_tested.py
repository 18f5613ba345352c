"""The table of what was tested on what names tests that exist."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, REPOSITORY


def test_tested_names_tests_that_exist() -> None:
    """Every path of the third column is there."""
    named = re.findall(r"`(tests/[^`]+)`", (DOCS / "tested.md").read_text(encoding="utf-8"))
    assert len(named) > 15
    missing = [path for path in named if not (REPOSITORY / path).exists()]
    assert not missing


def test_tested_says_that_hardware_was_never_tried() -> None:
    """Nobody may read this page and believe that a TEE was at hand."""
    text = (DOCS / "tested.md").read_text(encoding="utf-8")
    assert "No machine with a TEE was at hand" in text
    assert "`gramine-sgx`, `gramine-direct`" in text
