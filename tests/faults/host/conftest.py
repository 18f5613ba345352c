"""A mount whose backing folder belongs to a hostile host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.served import Served, serve


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An empty encrypted folder, mounted as `adyton run` mounts it."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")
    mounted = serve(tmp_path)
    try:
        yield mounted
    finally:
        mounted.destroy()
