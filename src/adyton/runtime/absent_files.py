"""Allowed files that are not there yet. Gramine lets the program create them, and stops no start for their sake.

Only what exists can be shown to the program. So the file is made, empty, before the start, and that is said. What the
program left untouched is taken away at the end. In folders of the system nothing is made.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final

SYSTEM_FOLDERS: Final = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")


class AbsentFiles:
    """What was made for one run because it was not there."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._made: dict[str, tuple[int, int, int]] = {}

    def make(self, source: str, *, is_folder: bool) -> bool:
        """Make an allowed file or folder, empty. False where it stays absent. Either is said."""
        path = os.path.abspath(source)
        folder = os.path.realpath(os.path.dirname(path))
        kept_out = any(folder == name or folder.startswith(name + "/") for name in SYSTEM_FOLDERS)
        problem = "it belongs to the system" if kept_out else _make(path, is_folder=is_folder)
        if problem is not None:
            self._note(f"allowed file {source} is not there ({problem}): the program neither finds nor creates it")
            return False
        self._made[path] = _state(path)
        self._note(f"allowed file {source} did not exist: made, so that the program finds it there, and empty")
        return True

    def take_away_untouched(self) -> None:
        """Remove what is still as it was made."""
        for path, state in self._made.items():
            with contextlib.suppress(OSError):
                if _state(path) == state:
                    (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)
        self._made.clear()


def _make(path: str, *, is_folder: bool) -> str | None:
    """Make it where nothing is, also no link. The reason where that cannot be done."""
    try:
        if is_folder:
            os.mkdir(path, 0o755)
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except OSError as error:
        return error.strerror or "it cannot be made"
    return None


def _state(path: str) -> tuple[int, int, int]:
    """Which file it is, and when it was last written or changed."""
    info = os.lstat(path)
    return info.st_dev, info.st_ino, info.st_ctime_ns
