"""Mount a folder of protected files as an ordinary folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import UsageError
from adyton.runtime import owner_mount
from adyton.workflow.pin import check_if_pinned
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

    A pinned folder is checked, and can only be read. The process forks. Call it only while no other thread runs.
    Raises MountFailed, IntegrityError (check `root of the folder`), UsageError, and errors of the key store.
    """
    wrap_key = choose_key(key, key_file, home, opens=True)
    if check_if_pinned(source, key, wrap_key, home=home) is not None and not read_only:
        raise UsageError(
            f"{source} is pinned, and what is written here would not be in its root",
            check="pinned folder",
            expected="--read-only",
            seen="a mount to write to",
            remedy="mount it with --read-only; or encrypt what is to change into it (adyton encrypt)",
        )
    owner_mount.mount(
        source,
        target,
        wrap_key,
        sealed_as=sealed_as,
        foreground=foreground,
        read_only=read_only,
        event=notice,
    )


def unmount(target: Path) -> None:
    """End a mount, as `adyton umount` does. Returns once every file is flushed. Raises MountFailed."""
    owner_mount.unmount(target)
