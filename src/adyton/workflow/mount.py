"""Mount a folder of protected files as an ordinary folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.runtime import owner_mount
from adyton.workflow.progress import unheard
from adyton.workflow.wrap_key import choose_key

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.values import Key128
    from adyton.workflow.progress import Notice


def mount(
    source: Path,
    target: Path,
    *,
    key: str | Key128 | None = None,
    key_file: Path | None = None,
    home: Path | None = None,
    sealed_as: str | None = None,
    foreground: bool = False,
    read_only: bool = False,
    notice: Notice = unheard,
) -> None:
    """Mount a folder of protected files, as `adyton mount` does. Without `foreground` it returns once it is mounted.

    The process forks. Call it only while no other thread runs. Raises MountFailed, UsageError, and errors of the key
    store.
    """
    owner_mount.mount(
        source,
        target,
        choose_key(key, key_file, home, opens=True),
        sealed_as=sealed_as,
        foreground=foreground,
        read_only=read_only,
        event=notice,
    )


def unmount(target: Path) -> None:
    """End a mount, as `adyton umount` does. Returns once every file is flushed. Raises MountFailed."""
    owner_mount.unmount(target)
