"""Which wrap key a verb uses: a file of 16 raw bytes, or a name in the owner's store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.values import Key128


def default_home() -> Path:
    """The owner's home: ADYTON_HOME, or ~/.adyton."""
    return Path(os.environ.get("ADYTON_HOME") or Path.home() / ".adyton")


def read_key_file(path: Path) -> Key128:
    """The key in a file of 16 raw bytes that only its owner may read, or in a pipe; at most 17 bytes are read."""
    from adyton.capped_read import read_private_file
    from adyton.values import KEY_BYTES, KEY_REMEDY, Key128

    raw = read_private_file(
        path, "key file", limit_bytes=KEY_BYTES, refuse=UsageError, pipes=True, too_long_remedy=KEY_REMEDY
    )
    return Key128(raw)


def choose_key(name: str | None, file: Path | None, home: Path | None, *, option: str = "--key") -> Key128:
    """The key that `--key NAME` or `--key-file FILE` names; exactly one of them must be given."""
    if (name is None) == (file is None):
        raise UsageError(
            f"say which key: {option} NAME or {option}-file FILE, one of them",
            check="key",
            expected=f"exactly one of {option} and {option}-file",
            seen="neither" if name is None else "both",
            remedy="`adyton key list` shows the keys of your store",
        )
    if file is not None:
        return read_key_file(file)
    from adyton.keystore.home import load_key

    return load_key(home or default_home(), name or "")
