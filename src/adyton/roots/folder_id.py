"""The id of a pinned folder: the name of its key, a slash, and the path that its files' sealed paths begin with."""

from __future__ import annotations

import re
from typing import Final

from adyton.errors import UsageError
from adyton.pfile.paths import normalise
from adyton.values import NAME_PATTERN

MAX_ID_BYTES: Final = 200
_PATTERN: Final = re.compile(rf"(?P<key>{NAME_PATTERN})/(?P<folder>[!-~](?:[ -~]*[!-~])?)", re.ASCII)


def folder_id(key_name: str, folder: str) -> str:
    """The id of the folder that is sealed as `folder`. Raises UsageError where it cannot be pinned."""
    made = f"{key_name}/{folder}"
    if not is_folder_id(made):
        raise UsageError(
            f"the folder {folder!r} cannot be pinned",
            check="path of a pinned folder",
            expected=f"a normalised path below the current folder or from /, printable ASCII, with the key's name and"
            f" a slash at most {MAX_ID_BYTES} characters",
            seen=made[:MAX_ID_BYTES],
            remedy="give the folder a path of its own, in plain letters",
        )
    return made


def is_folder_id(text: str) -> bool:
    """Whether a text is the id of a pinned folder, in its one form."""
    found = _PATTERN.fullmatch(text) if len(text) <= MAX_ID_BYTES else None
    return found is not None and normalise(found["folder"]) == found["folder"]


def key_of(found: str) -> str:
    """The name of the key in an id."""
    return found.partition("/")[0]
