"""The mounts of `adyton mount` that a process sees, and how a run lets go of those that it does not use.

A new mount namespace begins with a copy of every mount. A copy that stays would keep a folder's server alive after its
owner has unmounted it, for as long as the run lasts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adyton.vfs import syscalls


@dataclass(frozen=True, slots=True)
class OwnersMount:
    """A mount of `adyton mount`: the encrypted folder behind it, and the number of its file system (st_dev)."""

    source: str
    device: str


def owners_mounts(process: str) -> list[tuple[str, OwnersMount]]:
    """Where `adyton mount` shows something to a process, with what (proc_pid_mountinfo(5))."""
    try:
        lines = Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:  # it has ended, or is another user's
        return []
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        kind, source, *_ = after.split(" ")
        if kind == "fuse.adyton":
            _, _, device, _, place, *_ = before.split(" ")
            found.append((_unescape(place), OwnersMount(_unescape(source), device)))
    return found


def let_go_of_unused(used: Iterable[str]) -> None:
    """In a mount namespace of this process's own: detach each such mount in which none of these paths lies.

    An ordinary user's namespace may not detach what it was born with. It stays then.
    """
    paths = [os.path.abspath(path) for path in (".", *used)]
    for place, _ in owners_mounts("self"):
        if not any(path == place or path.startswith(place + "/") for path in paths):
            with contextlib.suppress(OSError):
                syscalls.unmount(place, syscalls.MNT_DETACH)


def _unescape(text: str) -> str:
    return os.fsdecode(text.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1"))
