"""Keys and secrets in the owner's store: made, listed, exported, rotated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import write_private_file
from adyton.capped_read import read_private_file
from adyton.errors import UsageError
from adyton.keystore.approval import APPROVED
from adyton.keystore.clock import now_ms
from adyton.keystore.home import actor
from adyton.keystore.master_rotation import rotate_master_file
from adyton.keystore.tables.keys import KEY, MAX_SECRET_BYTES, SECRET
from adyton.values import Key128
from adyton.workflow.owner import owner_store

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key or secret, or its new version. Never its value."""

    name: str
    kind: str
    version: int

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton key new --json`."""
        return {"name": self.name, "kind": self.kind, "version": self.version}


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key or secret of the store, and the number of its valid approvals."""

    name: str
    kind: str
    version: int
    created_at: datetime
    approvals: int


@dataclass(frozen=True, slots=True)
class KeyList:
    """Every key and secret of the store."""

    keys: tuple[ListedKey, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton key list --json`."""
        return {
            "keys": [
                {
                    "name": key.name,
                    "kind": key.kind,
                    "version": key.version,
                    "created_at": key.created_at.isoformat(),
                    "approvals": key.approvals,
                }
                for key in self.keys
            ]
        }


@dataclass(frozen=True, slots=True)
class StoreRotated:
    """The version of the new data key, and the file of the new master key, if there is one."""

    data_key_version: int
    master_file: Path | None


def new_key(
    name: str,
    *,
    from_file: Path | None = None,
    secret: Path | None = None,
    nul: bool = False,
    home: Path | None = None,
) -> NewKey:
    """Make a key, or take the one in `from_file`, or store the content of `secret`, as `adyton key new` does.

    With `nul` a NUL byte is put behind the secret, without which Gramine's constructor takes no text. Raises UsageError
    where there is one of that name, StoreError where a file can be read by others.
    """
    if from_file is not None and secret is not None:
        raise UsageError("--from and --secret exclude each other", check="source of the key")
    if nul and secret is None:
        raise UsageError("--nul belongs to --secret", check="--nul", expected="--secret FILE --nul", seen="no --secret")
    if secret is not None:
        raw = read_private_file(secret, "secret", limit_bytes=MAX_SECRET_BYTES - nul)
        value, kind = (raw.removesuffix(b"\0") + b"\0" if nul else raw), SECRET
    elif from_file is not None:
        value, kind = Key128(read_private_file(from_file, "key file")).reveal(), KEY
    else:
        value, kind = Key128.generate().reveal(), KEY
    with owner_store(home) as (_, store), store.write() as change:
        made = change.add_key(name, value, kind, actor=actor())
    return NewKey(made.name, made.kind, made.version)


def list_keys(*, home: Path | None = None) -> KeyList:
    """List keys and secrets, never their values, as `adyton key list` does."""
    with owner_store(home) as (_, store), store.read() as view:
        keys = view.keys()
        standing = [item.approval.key for item in view.approvals() if item.state == APPROVED]
    return KeyList(
        tuple(ListedKey(key.name, key.kind, key.version, key.created_at, standing.count(key.name)) for key in keys)
    )


def export_key(name: str, output: Path, *, version: int | None = None, home: Path | None = None) -> int:
    """Write a key to a new file of mode 0600 and record that. Returns its size in bytes."""
    with owner_store(home) as (_, store):
        with store.write() as change:
            info, value = change.reveal(name, version=version)
            body = {"key": name, "version": info.version, "actor": actor()}
            change.record("key-exported", name, body, now_ms())
        write_private_file(output, value)
    return len(value)


def rotate_key(name: str, *, home: Path | None = None) -> NewKey:
    """Make a new version of a key, as `adyton key rotate` does. It is released from now on."""
    with owner_store(home) as (_, store), store.write() as change:
        made = change.add_key(name, Key128.generate().reveal(), KEY, actor=actor(), new_version=True)
    return NewKey(made.name, made.kind, made.version)


def rotate_store(*, master: bool = False, home: Path | None = None) -> StoreRotated:
    """Wrap every key under a new data key. With `master`, wrap that one under a new master key."""
    with owner_store(home) as (found, store):
        with store.write() as change:
            version = change.rotate_data_key(actor=actor())
        if master:
            rotate_master_file(found, store, actor=actor())
        return StoreRotated(version, found.path / "master.key" if master else None)
