"""Which wrap key a verb uses: a file of 16 raw bytes, or a name in the owner's store."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.errors import UsageError
from adyton.os_failure import storage_failed

if TYPE_CHECKING:
    from adyton.values import Key128


def default_home() -> Path:
    """The owner's home: ADYTON_HOME, or ~/.adyton."""
    return Path(os.environ.get("ADYTON_HOME") or Path.home() / ".adyton")


def read_key_file(path: Path) -> Key128:
    """The key in a file of 16 raw bytes that only its owner may read, or in a pipe; at most 17 bytes are read."""
    from adyton.values import KEY_BYTES, Key128

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
