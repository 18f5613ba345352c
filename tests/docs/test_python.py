"""The page on Python: its blocks run one after the other, as the cells of a notebook, and it names every function."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adyton
from tests.docs.pages import DOCS
from tests.examples.stories import environment

PAGE = (DOCS / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

NOTEBOOK = """
import pathlib, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()  # a notebook's process has threads of its own
cells, names = {}, {"__name__": "__main__"}
for number, cell in enumerate(pathlib.Path(sys.argv[1]).read_text().split("\\0")):
    exec(compile(cell, f"cell {number}", "exec"), names)
"""


@pytest.mark.mount
def test_page_works_as_written(tmp_path: Path) -> None:
    """Protect, serve, run and decrypt with the simulated TEE, from a process that is not Adyton's alone."""
    cells, folder = tmp_path / "cells", tmp_path / "notebook"
    cells.write_text("\0".join(BLOCKS), encoding="utf-8")
    folder.mkdir()
    own = {"ADYTON_HOME": str(tmp_path / "owner"), "ADYTON_SIM_PLATFORM": str(tmp_path / "platform")}
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, str(cells)],
        cwd=folder,
        env={**environment(), **own, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ACCEPTED" in done.stdout
    assert "listening at 127.0.0.1:" in done.stdout
    assert done.stderr == ""


def test_page_uses_and_names_every_exported_function() -> None:
    """Each function has an example, and a place in the table."""
    functions = {name for name in adyton.__all__ if inspect.isfunction(getattr(adyton, name))}
    table = PAGE.rpartition("## The functions")[2]
    assert {name for name in functions if f"`adyton.{name}`" not in table} == set()
    assert {name for name in functions - {"fetch_collateral"} if f"adyton.{name}(" not in "".join(BLOCKS)} == set()
