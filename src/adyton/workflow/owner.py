"""The owner's home of a function, and its store, open for the duration of a call."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from adyton.keystore.home import Home, default_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adyton.keystore.store import Store


def chosen_home(home: Path | None) -> Home:
    """The given home, or the default one."""
    return Home.open(home if home is not None else default_home())


@contextmanager
def owner_store(home: Path | None) -> Iterator[tuple[Home, Store]]:
    """The owner's home and its open store."""
    found = chosen_home(home)
    store = found.open_store()
    try:
        yield found, store
    finally:
        try:
            found.keep_head_of(store)  # outside the database: who writes to it cannot take back what was done here
        finally:
            store.close()
