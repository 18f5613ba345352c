"""The master key in its file, and beside it the next one while a rotation is under way."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import rename_private_file
from adyton.file_lock import file_lock
from adyton.keystore.wrapping import WrappingKey, master_from_file

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.keystore.store import Store

CURRENT: Final = "master.key"
NEXT: Final = "master.key.new"


def next_master(folder: Path) -> WrappingKey | None:
    """The master key that a rotation is about to put in the place of the home's own; None where there is none."""
    beside = folder / NEXT
    return master_from_file(beside) if beside.exists() else None


def finish_rotation(folder: Path, store: Store) -> None:
    """Put the next master key in its place where it is the one that opens the store: a rotation was cut short."""
    current, beside = folder / CURRENT, folder / NEXT
    if not beside.exists():
        return
    with file_lock(folder, wait=False) as mine:  # otherwise the rotation is under way, and finishes by itself
        if mine and beside.exists() and holds(beside, store.keyring.master):
            rename_private_file(beside, current)


def holds(path: Path, key: WrappingKey) -> bool:
    """Whether the file has this key."""
    return hmac.compare_digest(master_from_file(path).reveal(), key.reveal())
