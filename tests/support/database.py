"""Changing an owner's database behind Adyton's back."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.owner_world import World


def raw_sql(world: World, statement: str, *values: object) -> None:
    """Change the database behind Adyton's back."""
    with sqlite3.connect(world.home.path / "store.db") as connection:
        connection.execute(statement, values)
    connection.close()
