"""Rotate the master key in its file. After an interruption at any point one of two files opens the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.atomic_file import rename_private_file, write_private_file
from adyton.errors import StoreError, UsageError
from adyton.keystore.home_lock import alone
from adyton.keystore.master_file import CURRENT, NEXT, holds
from adyton.keystore.wrapping import WrappingKey

if TYPE_CHECKING:
    from adyton.keystore.home import Home
    from adyton.keystore.store import Store


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
            if not holds(current, transaction.current_master()):
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
