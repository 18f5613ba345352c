"""The header of a backup, parsed from its first bytes before anything is unpacked. Pure.

This module finds the first file of the tar without tarfile. A real backup uses no extensions of tar (sparse files, long
names, negative sizes), but a hostile file may.
"""

from __future__ import annotations

import re
from typing import Any, Final

from adyton.errors import FileFormatError
from adyton.keystore.audit import STORE_ID_BYTES
from adyton.untrusted import parse_json_object

VERSION: Final = 1
CONTENT_PATH: Final = "/adyton-backup"
"""The path to which the protected file inside a backup is bound."""

MAX_HEADER_BYTES: Final = 64 * 1024
_TAR_BLOCK_BYTES: Final = 512
HEAD_BYTES: Final = _TAR_BLOCK_BYTES + MAX_HEADER_BYTES
"""The first bytes of a backup that hold its header."""


def parse_header(start: bytes) -> dict[str, Any] | None:
    """The header in the first bytes of a backup. None where a member is missing or has the wrong form.

    Its members are `adyton_backup`, `id`, `store`, `at_ms`, and `salt` or `shares` (a table with the shares' hashes).
    """
    block, rest = start[:_TAR_BLOCK_BYTES], start[_TAR_BLOCK_BYTES:]
    size = re.fullmatch(rb"([0-7]{11})[\0 ]", block[124:136])
    if size is None or block[:100].rstrip(b"\0") != b"header.json" or block[156:157] not in (b"0", b"\0"):
        return None
    if (length := int(size[1], 8)) > min(MAX_HEADER_BYTES, len(rest)):
        return None
    try:
        header = parse_json_object(rest[:length], what="header of the backup", refuse=FileFormatError)
    except FileFormatError:
        return None
    if set(header) != {"adyton_backup", "id", "store", "at_ms", "salt" if "salt" in header else "shares"}:
        return None
    good = header["adyton_backup"] == VERSION and type(header["at_ms"]) is int
    good = good and _is_hex(header["id"], 12) and _is_hex(header["store"], 2 * STORE_ID_BYTES)
    good = good and (_is_hex(header["salt"], 32) if "salt" in header else isinstance(header["shares"], dict))
    return header if good else None


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None
