"""What the owner's verbs share: which home, and its store opened for the length of a verb."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.keystore.home import Home, default_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adyton.keystore.store import Store

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The owner's home.  [ADYTON_HOME, or ~/.adyton]", show_default=False)
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        help="Accept a finding that exposes the data, by its name; each has to be named.",
        metavar="FINDING",
        show_default=False,
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]


def chosen_home(home: Path | None) -> Home:
    """The home that was named, or the default one."""
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
