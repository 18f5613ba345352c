"""A mount whose backing folder belongs to a hostile host."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.host.storage import Storage
from tests.mount.served import Served, serve
from tests.support import machine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An empty encrypted folder, mounted as `adyton run` mounts it."""
    machine.need_fuse()
    mounted = serve(tmp_path)
    try:
        yield mounted
    finally:
        mounted.destroy()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """A file system that answers so far, at `below/top`."""
    machine.need_fuse()
    (tmp_path / "below").mkdir()
    lower = serve(tmp_path / "below", believe_host=True, module="tests.faults.host.below")
    try:
        yield Storage(lower)
    finally:
        lower.process.send_signal(signal.SIGCONT)
        lower.destroy()
