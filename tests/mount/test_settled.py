"""What is settled with the kernel when a mount starts reaches it, whichever libfuse lies between.

The settings are fields of structures whose layout depends on libfuse's version: written to a wrong place they would do
nothing, or something else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.served import Served, serve

pytestmark = pytest.mark.mount


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Served]:
    """A mount that tells every request."""
    served = serve(tmp_path, module="tests.mount.counted")
    try:
        yield served
    finally:
        served.destroy()


def test_kernel_gathers_small_writes(counted: Served) -> None:
    """The write-back cache is on: a thousand small writes arrive as a few large ones."""
    with (counted.top / "a").open("wb", buffering=0) as file:
        for _ in range(1000):
            file.write(b"x" * 40)
    writes = [int(line.split()[1]) for line in counted.events().splitlines() if line.startswith("write ")]
    assert sum(writes) >= 40_000
    assert len(writes) < 20


def test_open_file_is_asked_about_by_its_handle(counted: Served) -> None:
    """Paths are left out where there is a handle (nullpath_ok): a removed file that is open can still be written."""
    with (counted.top / "a").open("wb+") as file:
        os.unlink(counted.top / "a")
        file.write(b"late")
        file.flush()
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 4


def test_kernel_keeps_what_it_knows(counted: Served) -> None:
    """Pages are kept from one opening of a file to the next: a hundred readings ask for none."""
    (counted.top / "a").write_bytes(b"x" * 100_000)
    os.sync()
    assert (counted.top / "a").read_bytes() == b"x" * 100_000
    before = counted.events().splitlines()
    for _ in range(100):
        assert (counted.top / "a").read_bytes() == b"x" * 100_000
    after = counted.events().splitlines()[len(before) :]
    assert after.count("open") == 100
    assert after.count("read") == 0
