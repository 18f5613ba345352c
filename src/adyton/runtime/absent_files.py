"""Allowed files that are not there yet. Gramine lets the program create them, and stops no start for their sake.

Only what exists can be shown to the program. So the file is made, empty, before the start, and that is said. What the
program left untouched is taken away at the end. In folders of the system nothing is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SYSTEM_FOLDERS: Final = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")


@dataclass(frozen=True, slots=True)
class _Made:
    """A file or folder that was made: its name, the open folder that it lies in, and its state right afterwards."""

    folder_fd: int
    name: str
    state: tuple[int, int, int]


class AbsentFiles:
    """What was made for one run because it was not there."""

    def __init__(self, note: Callable[[str], None], *, private: str) -> None:
        self._note = note
        self._refused = (*SYSTEM_FOLDERS, private)
        self._made: list[_Made] = []

    def make(self, source: str, *, is_folder: bool) -> bool:
        """Make an allowed file or folder, empty. False where it stays absent. Either is said."""
        folder, name = os.path.split(os.path.abspath(source))
        try:
            self._made.append(_make(folder, name, is_folder=is_folder, refused=self._refused))
        except OSError as error:
            self._note(
                f"allowed file {source} is not there ({error.strerror}): the program neither finds nor creates it"
            )
            return False
        self._note(f"allowed file {source} did not exist: made, so that the program finds it there, and empty")
        return True

    def take_away_untouched(self) -> None:
        """Remove what is still as it was made."""
        for made in self._made:
            with contextlib.suppress(OSError):
                if _state(made.folder_fd, made.name) == made.state:
                    is_folder = stat.S_ISDIR(os.lstat(made.name, dir_fd=made.folder_fd).st_mode)
                    (os.rmdir if is_folder else os.unlink)(made.name, dir_fd=made.folder_fd)
            os.close(made.folder_fd)
        self._made.clear()


def _make(folder: str, name: str, *, is_folder: bool, refused: tuple[str, ...]) -> _Made:
    """Make it where nothing is, also no link. The folder is opened first, so that nobody exchanges it meanwhile."""
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_outside(os.readlink(f"/proc/self/fd/{folder_fd}"), refused)
        if is_folder:
            os.mkdir(name, 0o755, dir_fd=folder_fd)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=folder_fd))
        return _Made(folder_fd, name, _state(folder_fd, name))
    except BaseException:
        os.close(folder_fd)
        raise


def _check_outside(folder: str, refused: tuple[str, ...]) -> None:
    """Nothing is made in folders of the system, nor in the run's own memory, where a link of the host may lead."""
    if any(folder == system or folder.startswith(system + "/") for system in refused):
        raise OSError(errno.EPERM, "it belongs to the system")


def _state(folder_fd: int, name: str) -> tuple[int, int, int]:
    """Which file it is, and when it was last written or changed."""
    info = os.lstat(name, dir_fd=folder_fd)
    return info.st_dev, info.st_ino, info.st_ctime_ns
