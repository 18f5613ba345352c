"""Choose the wrap key: a file of 16 raw bytes, a name in the owner's store, or the key itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from adyton.capped_read import read_private_file
from adyton.errors import UsageError
from adyton.values import KEY_BYTES, KEY_REMEDY, Key128

_EARLIER: Final = re.compile(r"(?P<name>[^@]*)@(?P<version>[1-9][0-9]{0,8})")


def read_key_file(path: Path) -> Key128:
    """Read a key from a file of 16 raw bytes that only its owner may read, or from a pipe.

    At most 17 bytes are read.
    """
    raw = read_private_file(
        path, "key file", limit_bytes=KEY_BYTES, refuse=UsageError, pipes=True, too_long_remedy=KEY_REMEDY
    )
    return Key128(raw)


def choose_key(
    key: str | Key128 | None, file: Path | None, home: Path | None, *, option: str = "--key", opens: bool = False
) -> Key128:
    """The key itself, by its name in the owner's store, or in a file: exactly one of `key` and `file` must be given.

    NAME is the newest version of a key, which is the one that programs get. Where the key `opens` files, NAME@2 is its
    version 2. Raises UsageError, UnknownKey, StoreError, StorageFailed.
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

    name, version = str(key), None
    earlier = _EARLIER.fullmatch(name)
    if earlier is not None and not opens:
        raise UsageError(
            "a version of a key can be named only where files are opened with it",
            check=option,
            expected="the name of a key; files are sealed under its newest version",
            seen=name[:80],
            remedy=f"say {option} {earlier['name'][:64]}",
        )
    if earlier is not None:
        name, version = earlier["name"], int(earlier["version"])
    return load_key(home or default_home(), name, version=version)
