"""Hashes of files that have not changed since they were last hashed, by (device, inode, size, mtime, ctime).

A hint for `adyton build` on the owner's own machine, kept in her cache folder with mode 0600. Nothing that runs
protected ever reads it. A file that changed within the last second before it was hashed is not remembered, since a
further change in the same tick of the clock would go unseen.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Final, Self

from adyton.atomic_file import write_file
from adyton.capped_read import read_capped
from adyton.errors import Error, StorageFailed
from adyton.values import Digest

_FORMAT: Final = "adyton hash cache 1"
_MAX_FILE_BYTES: Final = 256 << 20
_MAX_ENTRIES: Final = 1_000_000
_RECENT_NS: Final = 1_000_000_000


def default_path() -> Path:
    """Where the cache lies: `$XDG_CACHE_HOME/adyton/hashes.json`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adyton" / "hashes.json"


def _name(found: os.stat_result) -> str:
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


class HashCache:
    """Remembers digests between builds. Damaged or foreign cache files count as empty."""

    def __init__(self, path: Path | None, known: dict[str, str]) -> None:
        self._path = path
        self._known = known
        self._used: dict[str, str] = {}
        self._dirty = False
        self._lock = threading.Lock()

    @classmethod
    def none(cls) -> Self:
        """A cache that forgets."""
        return cls(None, {})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the cache at `path`. If anything is wrong with it, the result is an empty cache."""
        known: dict[str, str] = {}
        try:
            own = path.stat()
            if own.st_uid == os.getuid() and not own.st_mode & 0o022:
                document = json.loads(read_capped(path, _MAX_FILE_BYTES, "hash cache", too_large=StorageFailed))
                if document["format"] == _FORMAT and isinstance(document["hashes"], dict):
                    known = document["hashes"]
        except (OSError, StorageFailed, ValueError, LookupError, TypeError, RecursionError):
            known = {}
        return cls(path, known)

    def get(self, found: os.stat_result) -> Digest | None:
        """The digest of a file with exactly this stat, if it is known."""
        name = _name(found)
        text = self._known.get(name)
        if not isinstance(text, str):
            return None
        try:
            digest = Digest(bytes.fromhex(text))
        except (Error, ValueError):
            return None
        self._used[name] = text
        return digest

    def look_up(self, path: str) -> tuple[Digest, os.stat_result] | None:
        """The digest of the file that a path (following links) leads to, with its stat, if it is known."""
        if not self._known:
            return None
        try:
            found = os.stat(path)  # noqa: PTH116 - a path as text
        except OSError:
            return None
        digest = self.get(found)
        return None if digest is None else (digest, found)

    def put(self, found: os.stat_result, digest: Digest) -> None:
        """Remember a digest, unless the file changed too short a time ago to be sure."""
        if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _RECENT_NS:
            return
        with self._lock:
            self._used[_name(found)] = digest.hex()
            self._dirty = True

    def save(self) -> None:
        """Write the file. A cache that cannot be written is no error. One that a power cut damages counts as empty."""
        if self._path is None or not self._dirty:
            return
        merged = {**self._known, **self._used}
        if len(merged) > _MAX_ENTRIES:
            merged = self._used
        with contextlib.suppress(OSError, StorageFailed):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(self._path, json.dumps({"format": _FORMAT, "hashes": merged}).encode(), 0o600, sync=False)
