"""Whether a folder has a history beside it, as a pinned one has. It is asked without the key store."""

from __future__ import annotations

import os
from pathlib import Path

from adyton.pfile.side_files import ROOTS_SUFFIX


def has_history(folder: str) -> bool:
    """Whether there is a history beside this folder."""
    return os.path.lexists((folder.rstrip("/") or "/") + ROOTS_SUFFIX)


def lies_in_pinned(source: str) -> bool:
    """Whether there is a history beside this folder or file, or beside a folder above it."""
    return any(has_history(each) for each in (source, *map(str, Path(source).parents)))
