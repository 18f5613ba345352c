"""Checks of the machine before plaintext enters its memory: no core files, no unencrypted swap."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path
from typing import Final

from adyton.errors import SandboxFailed
from adyton.vfs import syscalls

_SYS: Final = Path("/sys")
_CORE_BYTES: Final = 1
"""The limit at which the kernel writes no core file (the least has a page) and starts no handler either (core(5)).

At 0 it would write no file, and yet give the whole memory to a handler that core_pattern names.
"""


def harden_process() -> None:
    """No core files of this process and its children, and no tracing of it by the program it serves."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else _CORE_BYTES  # who started this process may have left no more than 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    syscalls.set_undumpable()


def allow_many_files() -> None:
    """Allow as many open files as this user may have. A server holds one or two for each file of the program."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_core_pattern(*, simulated: bool, pattern: str | None = None) -> None:
    """Refuse, but in `sim`, a machine whose kernel gives the memory of crashed programs to a handler.

    A program that lowers its own limit to 0 would have its memory piped (core(5)), and nothing here could prevent it.
    """
    if pattern is None:
        pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if simulated or pattern[:1] not in ("|", "@"):
        return
    raise SandboxFailed(
        "the memory of crashed programs goes to a handler of this machine",
        check="kernel.core_pattern",
        expected="a file name: core files are then off for protected programs",
        seen=pattern.strip()[:200],
        remedy="sysctl -w kernel.core_pattern=core, in the guest's image",
    )


def lock_memory() -> None:
    """Keep the keys' process out of swap as far as its limits allow. Swap itself is refused, so this may fail."""
    with contextlib.suppress(OSError):
        syscalls.lock_memory()


def unencrypted_swap(table: str, *, sys: Path = _SYS) -> list[str]:
    """The swap areas of `table` (the text of /proc/swaps) that write memory out in clear.

    zram is memory itself, unless a device backs it. dm-crypt encrypts. Anything else, a swap file too, counts as clear
    unless its device is dm-crypt.
    """
    found: list[str] = []
    for line in table.splitlines()[1:]:
        area = line.split()[0].encode().decode("unicode_escape")
        if not _is_closed(area, sys):
            found.append(area)
    return found


def _is_closed(area: str, sys: Path) -> bool:
    name = os.path.basename(area)
    if area.startswith("/dev/zram"):
        backing = sys / "block" / name / "backing_dev"
        try:
            return backing.read_text().strip() == "none"
        except OSError:
            return True
    try:
        info = os.stat(area)
    except OSError:
        return False
    device = info.st_rdev or info.st_dev
    uuid = sys / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}" / "dm" / "uuid"
    try:
        return uuid.read_text().startswith("CRYPT-")
    except OSError:
        return False


def check_swap(*, simulated: bool, table: str | None = None, sys: Path = _SYS) -> str | None:
    """Refuse unencrypted swap with SandboxFailed. In `sim`, which protects nothing, return a warning instead."""
    areas = unencrypted_swap(Path("/proc/swaps").read_text() if table is None else table, sys=sys)
    if not areas:
        return None
    named = ", ".join(areas)
    if simulated:
        return f"swap is on and not encrypted ({named}): plaintext may reach the disk (on a real TEE this is refused)"
    raise SandboxFailed(
        f"swap is on and not encrypted: {named}",
        check="swap",
        expected="none, or only encrypted swap (dm-crypt, zram without a backing device)",
        seen=named,
        remedy="swapoff -a, or put swap on dm-crypt",
    )
