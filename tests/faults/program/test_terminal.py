"""A program reaches for the terminal of whoever started it."""

from __future__ import annotations

import os
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
        process = world.start(folder, world.python(script, mounts=OUT), stdout=slave, stderr=slave)
        assert process.wait(60) == 0
        shown = os.read(master, 4096).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert shown.count("EBADF True") == 2, shown
    assert "READ" not in shown
