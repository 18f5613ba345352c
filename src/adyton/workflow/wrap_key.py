"""Which wrap key is used: a file of 16 raw bytes, a name in the owner's store, or the key itself."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from adyton.errors import UsageError
from adyton.pfile.backing import storage_failed
from adyton.values import KEY_BYTES, Key128


def read_key_file(path: Path) -> Key128:
    """The key in a file of 16 raw bytes that only its owner may read, or in a pipe; at most 17 bytes are read."""
    try:
        with path.open("rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            if stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o077:
                raise UsageError(
                    f"the key file {path} can be read by others",
                    check="mode of the key file",
                    expected="0600",
                    seen=f"{stat.S_IMODE(facts.st_mode):04o}",
                    remedy=f"chmod 600 {path}",
                )
            raw = b""
            while len(raw) <= KEY_BYTES and (more := file.read(KEY_BYTES + 1 - len(raw))):
                raw += more
    except OSError as error:
        raise storage_failed(error, str(path), "reading the key file") from error
    return Key128(raw)


def choose_key(key: str | Key128 | None, file: Path | None, home: Path | None, *, option: str = "--key") -> Key128:
    """The key itself, by its name in the owner's store, or in a file: exactly one of `key` and `file` must be given.

    Raises UsageError, UnknownKey, StoreError, StorageFailed.
    """
    if isinstance(key, Key128) and file is None:
        return key
    if (key is None) == (file is None):
        raise UsageError(
            f"say which key: {option} NAME or {option}-file FILE, one of them",
            check="key",
            expected=f"exactly one of {option} and {option}-file",
            seen="neither" if key is None else "both",
            remedy="`adyton key list` shows the keys of your store",
        )
    if file is not None:
        return read_key_file(file)
    from adyton.keystore.home import default_home, load_key

    return load_key(home or default_home(), str(key))
