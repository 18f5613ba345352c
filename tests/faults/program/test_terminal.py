"""A program reaches for the terminal of whoever started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.program.inside import OUT
from tests.mount import world

pytestmark = pytest.mark.mount


def test_terminal_that_shows_the_output_is_not_read(folder: Path) -> None:
    """A terminal is open for both ways: the program may print there, and not read what its starter types."""
    script = (
        "import errno, os\n"
        "for fd in (1, 2):\n"
        "    try: print('READ', os.read(fd, 10))\n"
        "    except OSError as error: print(errno.errorcode[error.errno], os.isatty(fd), flush=True)\n"
    )
    try:
        master, slave = os.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be made here ({error.strerror}): it needs /dev/ptmx")
    os.write(master, b"typed\n")
    try:
        environment = {**os.environ, "PYTHONPATH": f"{world.REPOSITORY}/src:{world.REPOSITORY}"}
        words = [sys.executable, "-m", "tests.mount.world", json.dumps(world.python(script, mounts=OUT))]
        subprocess.run(words, cwd=folder, env=environment, stdout=slave, stderr=slave, check=True, timeout=60)
        shown = os.read(master, 4096).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert shown.count("EBADF True") == 2, shown
    assert "READ" not in shown
