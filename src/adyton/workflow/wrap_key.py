"""Choose the wrap key: a file of 16 raw bytes, a name in the owner's store, or the key itself."""

from __future__ import annotations

from pathlib import Path

from adyton.capped_read import read_private_file
from adyton.errors import UsageError
from adyton.values import KEY_BYTES, KEY_REMEDY, Key128


def read_key_file(path: Path) -> Key128:
    """Read a key from a file of 16 raw bytes that only its owner may read, or from a pipe.

    At most 17 bytes are read.
    """
    raw = read_private_file(
        path, "key file", limit_bytes=KEY_BYTES, refuse=UsageError, pipes=True, too_long_remedy=KEY_REMEDY
    )
    return Key128(raw)


def choose_key(key: str | Key128 | None, file: Path | None, home: Path | None, *, option: str = "--key") -> Key128:
    """The key itself, by its name in the owner's store, or from a file. Exactly one of `key` and `file` must be given.

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
