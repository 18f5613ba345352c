"""A home that exists: what is missing is said, and never made anew in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adyton.errors import StorageFailed, StoreError
from adyton.keystore.home import Home
from tests.support.owner_world import World


def test_private_file_that_others_can_read_is_refused(world: World) -> None:
    """A key file that is open to others is not used."""
    (world.home.path / "master.key").chmod(0o644)
    with pytest.raises(StoreError, match="open to others"):
        world.home.open_store()


def test_home_missing_parts_say_what_to_do(world: World, tmp_path: Path) -> None:
    """No home, no store, no master key: each says so, and nothing is made anew in silence."""
    with pytest.raises(StorageFailed, match="no owner's home"):
        Home.open(tmp_path / "nowhere")
    world.store.close()
    (world.home.path / "store.db").rename(world.home.path / "moved.db")
    with pytest.raises(StoreError, match="missing"):
        world.home.open_store()
    assert not (world.home.path / "store.db").exists()
    (world.home.path / "store.db").write_bytes(b"")
    with pytest.raises(StoreError, match="no store"):
        world.home.open_store()
    (world.home.path / "store.db").write_bytes(os.urandom(8192))
    with pytest.raises(StoreError):
        world.home.open_store()
