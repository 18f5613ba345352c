"""What every attack of a stranger begins with: an owner with an approved program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.owner_world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform, and a program that she approved."""
    with make_world(tmp_path) as found:
        found.approve(found.program())
        yield found
