"""What a root says of one path below a folder: a file with its size and root, or a folder.

Symbolic links and attributes are protected files of their own (`pfile.side_files`), so they are files here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FILE_ROOT_BYTES: Final = 48
"""Nonce and tag of node 0: no other state of a file has them."""
MAX_PATH_BYTES: Final = 4096
MAX_ENTRIES: Final = 1_000_000
MAX_WRITER_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder. `root` has 48 bytes for a file, and none for a folder."""

    root: bytes
    size: int
    """Bytes of the plaintext."""
    at_s: int
    """When it was written, in seconds since 1970, by the clock of the machine that wrote it."""
    writer: str
    """The grant of the run that wrote it, or `owner`."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return not self.root


def is_path(path: str) -> bool:
    """Whether this can be a path below a folder: parts without `.` and `..`, no slash at either end."""
    return bool(path) and "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
