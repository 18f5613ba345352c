"""The folders in which a program made, replaced or removed files: inside they are writable too, around its own files.

A folder with program text in it cannot be an encrypted folder and nothing else. So it becomes an encrypted folder in
which the trusted files show, each at its place, by mounts of their own.
"""
# Paths are text here, compared as the trace names them.
# ruff: noqa: PTH112, PTH120

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from adyton.errors import UsageError
from adyton.manifest.observe import Observation

SYSTEM: Final = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/nix", "/snap")
SANDBOX_MAKES: Final = ("/proc", "/sys", "/dev")
TEMPORARY_MOUNTS: Final = ("/tmp", "/var/tmp")  # noqa: S108 - what programs name
TEMPORARY: Final = (*TEMPORARY_MOUNTS, "/dev/shm")  # noqa: S108 - the sandbox makes the last one

_BYTECODE: Final = re.compile(r"/__pycache__(/[^/]+\.pyc(\.[0-9]+)?)?$")


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a path is one of these folders, or lies in one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def is_temporary(path: str, cwd: str) -> bool:
    """Whether a path lies where the program has memory of its own inside."""
    return is_below(path, TEMPORARY) and not is_below(path, (cwd,))


def writing_folders(seen: Observation) -> list[str]:
    """The folders, there before the run, in which it made, replaced or removed files.

    Raises UsageError where it wrote among the files of the system.
    """
    made = set(seen.made_folders)
    found: set[str] = set()
    for path in seen.touched:
        if is_temporary(path, seen.cwd) or is_below(path, SANDBOX_MAKES) or _BYTECODE.search(path):
            continue
        folder = os.path.dirname(path)
        while folder != "/" and (folder in made or not os.path.isdir(folder)):
            folder = os.path.dirname(folder)
        if folder == "/" or (is_below(folder, SYSTEM) and not is_below(folder, (seen.cwd,))):
            raise UsageError(
                f"the program wrote {path}, in a folder of the system",
                check="folders in which the program writes",
                expected="folders of its own",
                seen=folder,
                remedy="let it write below the current folder, the home or /tmp",
            )
        found.add(folder)
    return sorted(found)


def outermost(folders: Iterable[str]) -> list[str]:
    """Those that lie in no other one."""
    every = list(folders)
    return [one for one in every if not any(one != other and is_below(one, (other,)) for other in every)]


def points(folder: str, trusted: Iterable[str], data: Iterable[str]) -> list[tuple[str, bool]]:
    """The mounts that show the trusted files in an open folder: (path, whether it is a folder), as few as can be.

    A folder is shown as a whole where no path of `data` lies in it. All paths are below `folder`.
    """
    mixed = {folder}
    for path in data:
        while path not in mixed and is_below(path, (folder,)):
            mixed.add(path)
            path = os.path.dirname(path)
    found: dict[str, bool] = {}
    for path in trusted:
        end = len(folder)
        while end < len(path):
            end = path.find("/", end + 1)
            if end < 0:
                end = len(path)
            if path[:end] not in mixed:
                found[path[:end]] = end < len(path)
                break
    return sorted(found.items())
