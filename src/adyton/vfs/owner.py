"""The owner of the program's files: the program's user and group, as the kernel numbers them.

Where Adyton runs as root, the program does not. So all that is made for the program is given to it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """A user and a group, as this process sees their numbers."""

    uid: int
    gid: int

    @classmethod
    def caller(cls) -> Owner:
        """The user and group of this process."""
        return cls(os.getuid(), os.getgid())

    def give(self, file: int | str) -> None:
        """Make them the owner of a file that this process has made in private memory. Raises OSError."""
        if self.uid != os.getuid() or self.gid != os.getgid():
            os.chown(file, self.uid, self.gid)

    def make_folder(self, path: str) -> None:
        """Make a folder of theirs. Raises FileExistsError and other OSErrors."""
        os.mkdir(path, 0o755)
        self.give(path)

    def make_folders(self, path: str) -> None:
        """Make a folder and those above it, as far as they are missing. Raises OSError."""
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for folder in reversed(missing):
            self.make_folder(folder)
