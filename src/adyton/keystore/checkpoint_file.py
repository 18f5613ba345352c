"""The newest checkpoint, in the home and not in the store, so that an older copy of the store is noticed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import replace_private_file
from adyton.capped_read import read_private_file
from adyton.errors import StorageFailed, StoreError
from adyton.file_lock import file_lock
from adyton.keystore.audit_key import audit_public_key
from adyton.keystore.wrapping import NO_HOME
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.keystore.audit import Checkpoint

CHECKPOINT_FILE: Final = "checkpoint.json"


class CheckpointFile:
    """checkpoint.json in a home. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / CHECKPOINT_FILE
        self._verified: tuple[tuple[int, int, int], Checkpoint | None] | None = None
        """The verified file (inode, time of change in ns, size), and its checkpoint."""

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep this checkpoint. A newer one that another process has kept meanwhile stays."""
        with file_lock(self._folder / ".checkpoint.lock", create=True):
            there = self.read()
            if there is None or there.store_id != checkpoint.store_id or there.seq < checkpoint.seq:
                replace_private_file(self.path, json.dumps(checkpoint.to_dict()).encode())

    def read(self) -> Checkpoint | None:
        """The checkpoint, with an unverified signature. None where the key server never ran."""
        from adyton.keystore.audit import Checkpoint

        if not self.path.exists():
            return None
        raw = read_private_file(self.path, "checkpoint", remedy=NO_HOME)
        return Checkpoint.from_dict(parse_json_object(raw, what="checkpoint.json", refuse=StoreError))

    def verified(self) -> Checkpoint | None:
        """The checkpoint, with a verified signature. None where there is none. Cached until the file changes."""
        from adyton.keystore.audit import verify_checkpoint

        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"checkpoint.json cannot be read: {error.strerror}", check="checkpoint.json") from error
        which = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._verified
        if known is None or known[0] != which:
            kept = self.read()
            if kept is not None:
                verify_checkpoint(kept, audit_public_key(self._folder))
            known = self._verified = (which, kept)
        return known[1]
