"""What most tests of the key server's network side begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.owner_world import Running, World, make_world, running


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform."""
    with make_world(tmp_path) as found:
        yield found


@pytest.fixture
def server(world: World) -> Iterator[Running]:
    """Her key server, running."""
    with running(world) as found:
        yield found
