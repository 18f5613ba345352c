"""Who can write to the key server's database, in SQLite and in PostgreSQL, beside the server that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.database.writer import Writer
from tests.support.owner_world import World, make_world
from tests.support.postgres import postgres, programs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A running PostgreSQL."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """An owner, her store, a platform."""
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql")
        with Writer(url) as writer:
            writer.drop_all()
    with make_world(tmp_path, store_url=url) as found:
        yield found


@pytest.fixture
def writer(world: World) -> Iterator[Writer]:
    """Somebody with a connection of his own to her database."""
    with Writer(world.home.store_url()) as found:
        yield found
