"""Rotate the master key in its file. After an interruption at any point one of two files opens the store."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import rename_private_file, write_private_file
from adyton.errors import StoreError, UsageError
from adyton.file_lock import file_lock
from adyton.keystore.home_lock import alone
from adyton.keystore.wrapping import WrappingKey, master_from_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adyton.keystore.home import Home
    from adyton.keystore.store import Store

CURRENT: Final = "master.key"
NEXT: Final = "master.key.new"


def rotate_master_file(home: Home, store: Store, *, actor: str) -> None:
    """Make a new master key in the file, wrap the store under it, and delete the old one.

    The new key is first written beside the old one. Then the store is wrapped under it. Then it replaces the old one.
    After an interruption one of the two files opens the store, and opening it finishes the rotation. A running key
    server finds the new key when it next needs one.
    """
    if home.config.master != "file":
        raise UsageError(
            "only a master key in a file is rotated here",
            check="master.kind",
            expected="file",
            seen=home.config.master,
            remedy="for a passphrase or a command: adyton backup, and adyton restore with the new one",
        )
    current, beside = home.path / CURRENT, home.path / NEXT
    new = WrappingKey.generate()
    with alone(home.path, "rotating the master key"):
        with store.write() as transaction:
            if not _same(current, transaction.current_master()):
                raise StoreError(
                    "master.key is not the key that opens the store",
                    check="master.key",
                    expected="the key that the store is wrapped under",
                    seen="another: it was rotated meanwhile",
                    remedy="run it again: opening the store finishes a rotation that was cut short",
                )
            beside.unlink(missing_ok=True)  # what is there opens nothing: master.key does
            write_private_file(beside, new.reveal())
            transaction.rewrap(new, actor=actor)
        _check_opens(home, new)
        rename_private_file(beside, current)
    store.keyring.master = new


def _check_opens(home: Home, master: WrappingKey) -> None:
    """Raise StoreError where the store does not open under its new master key. The old one is kept then."""
    from adyton.keystore.store import Store

    store = Store.open(home.store_url(), master)
    try:
        with store.read() as reader:
            every = reader.keys()
            for key in every:
                reader.reveal(key.name)
    finally:
        store.close()


def masters(home: Home) -> Iterator[WrappingKey]:
    """The master keys in the home: the current one, and the next one during a rotation."""
    yield home.master_key()
    beside = home.path / NEXT
    if home.config.master == "file" and beside.exists():
        yield master_from_file(beside)


def finish_rotation(home: Home, store: Store) -> None:
    """Finish an interrupted rotation: install the next master key where it is the one that opens the store."""
    current, beside = home.path / CURRENT, home.path / NEXT
    if not beside.exists():
        return
    with file_lock(home.path, wait=False) as mine:  # otherwise the rotation is under way, and finishes by itself
        if mine and beside.exists() and _same(beside, store.keyring.master):
            rename_private_file(beside, current)


def _same(path: Path, key: WrappingKey) -> bool:
    return hmac.compare_digest(master_from_file(path).reveal(), key.reveal())
