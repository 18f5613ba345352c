"""Which files of a plan are staged and which are served, so that staging keeps to the memory budget.

Sizes are the manifest's where it gives them, otherwise the host's word. That word is used for planning only: a file is
verified either way. The largest files are served first, so that few are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from adyton.runtime.run_plan import EncryptedMount, Plan
from adyton.vfs.stage import StagedFile

_PAGE_BYTES: Final = 4096
_SPARE: Final = 64
"""One part in so many of the budget is kept for directories and the sandbox's own small files."""


@dataclass(frozen=True, slots=True)
class StagingPlan:
    """Which trusted files and read-only inputs are staged, and which are served. Staging takes `estimate_bytes`."""

    staged_files: tuple[StagedFile, ...]
    served_files: tuple[StagedFile, ...]
    staged_mounts: tuple[EncryptedMount, ...]
    served_mounts: tuple[EncryptedMount, ...]
    estimate_bytes: int


def plan_staging(plan: Plan) -> StagingPlan:
    """Stage everything that is only read, except what has to be served to keep to the budget."""
    sized: list[tuple[int, StagedFile | EncryptedMount]] = [(_file_bytes(entry), entry) for entry in plan.staged]
    sized += [(_mount_bytes(mount), mount) for mount in plan.encrypted if mount.read_only]
    total = sum(size for size, _ in sized)
    room = plan.budget_bytes - plan.budget_bytes // _SPARE
    served: set[int] = set()
    if total > room:
        for size, entry in sorted(sized, key=lambda pair: pair[0], reverse=True):
            if total <= room:
                break
            if not _must_be_staged(plan, entry):
                served.add(id(entry))
                total -= size
    mounts = [mount for mount in plan.encrypted if mount.read_only]
    return StagingPlan(
        staged_files=tuple(entry for entry in plan.staged if id(entry) not in served),
        served_files=tuple(entry for entry in plan.staged if id(entry) in served),
        staged_mounts=tuple(mount for mount in mounts if id(mount) not in served),
        served_mounts=tuple(mount for mount in mounts if id(mount) in served),
        estimate_bytes=total,
    )


def _must_be_staged(plan: Plan, entry: StagedFile | EncryptedMount) -> bool:
    """The entrypoint itself: the kernel is to run it from memory."""
    return isinstance(entry, StagedFile) and plan.entrypoint in entry.targets


def _pages(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


def _file_bytes(entry: StagedFile) -> int:
    if entry.size_bytes is not None:
        return _pages(entry.size_bytes)
    try:
        return _pages(os.stat(entry.source).st_size)
    except OSError:
        return 0


def _mount_bytes(mount: EncryptedMount) -> int:
    source = mount.source or "."
    if not os.path.isdir(source):
        try:
            return os.stat(source).st_size
        except OSError:
            return 0
    total = 0
    for folder, _, names in os.walk(source):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total
