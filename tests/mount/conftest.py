"""Fixtures of the tests that mount: each gets a mount of its own, and none is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.served import Served, serve


@pytest.fixture(autouse=True)
def fuse_device() -> None:
    """Skip by name where this machine cannot mount FUSE at all."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An empty encrypted folder, mounted."""
    mounted = serve(tmp_path)
    try:
        yield mounted
    finally:
        mounted.destroy()
