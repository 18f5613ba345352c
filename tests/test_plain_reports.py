"""A failure that the interpreter cannot show hides no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.machine import REPOSITORY

REENTERED = (
    """
import ast, contextlib, gc

busy = []

def parse_again(phase, info):
    if not busy:
        busy.append(1)
        with contextlib.suppress(SystemError):
            ast.parse("a = (b, c)")
        busy.clear()

def test_shown_while_garbage_is_collected():
    gc.callbacks.append(parse_again)
    gc.set_threshold(1)
    assert sum([1, 2]) == 4

def test_after_it():
    gc.callbacks.clear()
"""
    + "values = [(1, 2), (3, 4)]\n" * 200
)

BROKEN = """
import ast, pytest

@pytest.mark.parametrize("number", [1, 2])
def test_fails(number, monkeypatch):
    def broken(*_args, **_more):
        raise SystemError("AST constructor recursion depth mismatch (before=1, after=2)")
    monkeypatch.setattr(ast, "parse", broken)
    raise ValueError(f"the reason {number}")

def test_after_it():
    pass
"""


@pytest.mark.parametrize(("source", "failed"), [(BROKEN, 2), (REENTERED, 1)], ids=["every parse", "collection"])
def test_failure_whose_source_cannot_be_parsed_is_reported(tmp_path: Path, source: str, failed: int) -> None:
    """It fails with its own message and places, and the next test runs: SystemError forced, and as CPython makes it."""
    (tmp_path / "test_it.py").write_text(source)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.support.plain_reports",
        "-p",
        "no:cacheprovider",
        "-q",
        "test_it.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "INTERNALERROR" not in done.stdout + done.stderr
    assert f"{failed} failed, 1 passed" in done.stdout
    if source is BROKEN:
        assert "ValueError: the reason 2" in done.stdout
        assert "test_it.py:9: in test_fails" in done.stdout
        assert "the interpreter could not parse" in done.stdout
