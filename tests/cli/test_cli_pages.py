"""The pages of verbs and exit codes are what the code says."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY


def test_cli_pages_are_what_the_code_says() -> None:
    """`python tools/cli_pages.py` would change nothing."""
    checked = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "cli_pages.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
