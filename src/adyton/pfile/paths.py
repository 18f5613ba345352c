"""The path that a protected file carries, in Gramine's lexical normal form."""

from __future__ import annotations

import os

from adyton.errors import UsageError
from adyton.pfile.layout import MAX_PATH_BYTES


def normalise(path: str) -> str:
    """Gramine's lexical rule: no empty or `.` parts, `..` takes back a part where there is one.

    A relative path stays relative and keeps `..` at its front. At the top of an absolute path `..` is
    dropped. The empty result is the empty string.
    """
    absolute = path.startswith("/")
    kept: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            kept.append(part)
        elif kept and kept[-1] != "..":
            kept.pop()
        elif not absolute:
            kept.append(part)
    return ("/" if absolute else "") + "/".join(kept)


def path_bytes(path: str) -> bytes:
    """The bytes of the normal form, as the file carries them. Raises UsageError where they do not fit."""
    raw = os.fsencode(normalise(path))
    if len(raw) > MAX_PATH_BYTES or b"\0" in raw:
        raise UsageError(
            f"a protected file carries a path of at most {MAX_PATH_BYTES} bytes, and no NUL",
            check="embedded path",
            expected=f"at most {MAX_PATH_BYTES} bytes after normalisation, no NUL",
            seen=f"{len(raw)} bytes" + (", with a NUL" if b"\0" in raw else ""),
            remedy="choose a shorter path; `adyton encrypt --as PATH` embeds another path than the target's",
        )
    return raw


def path_text(raw: bytes) -> str:
    """The stored bytes as text. Bytes that are no UTF-8 survive the way back through `path_bytes`."""
    return os.fsdecode(raw)
