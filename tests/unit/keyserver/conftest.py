"""Fixtures of the key server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.owner_world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform."""
    with make_world(tmp_path) as found:
        yield found
