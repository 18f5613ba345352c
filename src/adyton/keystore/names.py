"""Names of keys, secrets, programs and versions, and fresh ids: short, printable, safe in paths and URLs."""

from __future__ import annotations

import re
import secrets
from typing import Final

from adyton.errors import UsageError
from adyton.values import NAME_PATTERN

MAX_NAME_CHARACTERS: Final = 64
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)


def check_name(name: str, what: str = "key name") -> str:
    """Return `name` if it is a valid name of a key, a program or a version. Raises UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} {name[:80]!r} is not allowed",
            check=what,
            expected=f"1 to {MAX_NAME_CHARACTERS} of the characters A-Z a-z 0-9 . _ -, not starting with . or -",
            seen=repr(name[:80]),
            remedy="choose another name",
        )
    return name


def new_id(prefix: str) -> str:
    """A fresh id, such as `d-4f3a…` (80 random bits)."""
    return f"{prefix}-{secrets.token_hex(10)}"
