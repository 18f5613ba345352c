"""Making a backup: everything of an owner's home in one sealed file, whatever database it lives in."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from adyton.atomic_file import atomic_target
from adyton.errors import StorageFailed, UsageError
from adyton.keystore.audit import sign_checkpoint
from adyton.keystore.audit_key import audit_private_key
from adyton.keystore.backup.archive import STORE, pack
from adyton.keystore.backup.header import CONTENT_PATH, VERSION
from adyton.keystore.backup.key import key_from_passphrase
from adyton.keystore.backup.shares import Share, listed, split_key
from adyton.keystore.backup.tables import copy_tables
from adyton.keystore.clock import now_ms
from adyton.keystore.home_lock import alone
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.stream import ProtectedStream
from adyton.values import Key128

if TYPE_CHECKING:
    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.home import Home
    from adyton.keystore.store import Store

_LEFT_OUT: Final = ("store.db", "store.db-wal", "store.db-shm", "checkpoint.json")
"""Files of the home that do not match the copied tables in time. The backup adds matching ones itself."""


def back_up(
    home: Home, store: Store, target: Path, *, passphrase: bytes | None, split: tuple[int, int] | None, actor: str
) -> list[Share]:
    """Write a sealed backup of the whole home to a new file. Returns the shares, if the key was split.

    The store may be in use: the copy is a snapshot.
    """
    if (passphrase is None) == (split is None):
        raise UsageError("a backup is sealed with a passphrase, or split into shares", check="backup")
    if target.exists():
        raise StorageFailed(
            f"{target} exists already",
            check="the new backup",
            expected="a file that does not exist yet",
            seen=str(target),
            remedy="choose another name: a backup never replaces another",
        )
    backup_id = secrets.token_hex(6)
    header: dict[str, Any] = {"adyton_backup": VERSION, "id": backup_id, "store": store.id.hex(), "at_ms": now_ms()}
    shares: list[Share] = []
    if passphrase is not None:
        salt = secrets.token_bytes(16)
        key = key_from_passphrase(passphrase, salt)
        header["salt"] = salt.hex()
    else:
        needed, total = split or (0, 0)
        key = Key128.generate()
        shares = split_key(key, backup_id, needed, total)
        header["shares"] = listed(shares)
    with store.write() as transaction:
        transaction.record("backup", backup_id, {"backup": backup_id, "actor": actor[:128]}, now_ms())
    with (
        # the tables are read before the files: the master key must be that of both
        alone(home.path, "making a backup"),
        tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as name,
    ):
        folder = Path(name)
        copy_tables(store.engine, folder / "store.sqlite")
        checkpoint = json.dumps(_checkpoint(home, store, folder / "store.sqlite").to_dict()).encode()
        sealed = ProtectedFile.create(OSFile(folder / "content", writable=True, create=True), key, path=CONTENT_PATH)
        with ProtectedStream(sealed) as stream, _buffered_tar(stream) as inner:
            packed: set[str] = set()
            for path in sorted(home.path.rglob("*")):
                relative = path.relative_to(home.path)
                hidden = any(part.startswith(".") for part in relative.parts)
                if path.is_file() and not hidden and relative.name not in _LEFT_OUT:
                    pack(inner, f"home/{relative}", path, packed)
            _add_bytes(inner, "home/checkpoint.json", checkpoint)
            pack(inner, STORE, folder / "store.sqlite", packed)
        with (
            atomic_target(target, force=False) as fd,
            open(fd, "wb", closefd=False) as file,
            tarfile.open(fileobj=file, mode="w") as outer,
        ):
            _add_bytes(outer, "header.json", json.dumps(header, indent=1).encode())
            outer.add(folder / "content", "content")
    return shares


def _add_bytes(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    information = tarfile.TarInfo(name)
    information.size = len(raw)
    archive.addfile(information, io.BytesIO(raw))


def _checkpoint(home: Home, store: Store, path: Path) -> Checkpoint:
    """Write a checkpoint of the copy. The key server's own may be newer, and a restored store would seem too old.

    The copy is verified. Otherwise somebody who writes to the database could spoil every later backup unnoticed.
    """
    copy = sa.create_engine(f"sqlite:///{path}")
    try:
        head = store.verify_copy(copy)
    finally:
        copy.dispose()
    return sign_checkpoint(audit_private_key(home.path), store.id, head, now_ms())


def _buffered_tar(stream: ProtectedStream) -> tarfile.TarFile:
    """A tar of contents only. A link is written as its target file."""
    return tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20, dereference=True)
