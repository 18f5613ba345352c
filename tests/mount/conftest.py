"""Fixtures of the tests that mount: each gets a mount of its own, and none is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.served import Served, serve
from tests.support import machine


@pytest.fixture(autouse=True)
def fuse_device() -> None:
    """Skip by name where this machine cannot mount FUSE at all."""
    machine.need_fuse()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An empty encrypted folder, mounted."""
    mounted = serve(tmp_path)
    try:
        yield mounted
    finally:
        mounted.destroy()
