"""The docs site builds, and a broken link is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docs.pages import REPOSITORY


def test_site_builds_with_warnings_as_errors(tmp_path: Path) -> None:
    """`mkdocs build --strict`, as `make docs` does."""
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "tutorial" / "simulated" / "index.html").exists()
    assert (tmp_path / "img" / "workflow.svg").exists()
