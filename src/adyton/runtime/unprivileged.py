"""Who the program is for the kernel: never its root.

Where Adyton runs as root, a program of the same user would be the kernel's root without its capabilities, and much of
/proc asks for the user alone. So bubblewrap and the program get numbers of their own, drawn for each run, that no user
of the machine has. An ordinary user's program has his number: it is not the kernel's root, and can become no other.
What the program sees as its own number is the manifest's in both cases.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from adyton.errors import SandboxFailed
from adyton.vfs.owner import Owner

Range = tuple[int, int]
"""From the first number up to, without, the second."""

PREFERRED: Final[Sequence[Range]] = ((0x7000_0000, 0x8000_0000), (61_184, 65_520), (1, 61_184))
"""Numbers that systemd's table of users leaves unused. In a container that has few of them, those of its passing users
(DynamicUser). Last, any other."""

_ROOTS_OWN: Final = "/proc/sys/kernel/core_pattern"
"""A file that belongs to the kernel's root, whichever namespace it is looked at from."""


def owner() -> Owner:
    """The numbers for this run's program, as the namespace of this process has them. Raises SandboxFailed."""
    caller = Owner.caller()
    if caller.uid != 0:
        return caller
    users, groups = (_mapped(Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map"))
    return choose(users, groups, kernel_root=os.stat(_ROOTS_OWN).st_uid == 0)


def choose(
    users: Sequence[Range],
    groups: Sequence[Range],
    *,
    kernel_root: bool,
    draw: Callable[[int], int] = secrets.randbelow,
) -> Owner:
    """For a process with user 0: one number, for user and group, that is mapped here. Raises SandboxFailed.

    `users` and `groups` are the mapped numbers. `kernel_root` says whether 0 here is the kernel's root. Where it is
    not, as in an ordinary user's namespace, and there is no other number, the program keeps 0.
    """
    for wanted in PREFERRED:
        for first, end in _common((wanted,), _common(users, groups)):
            number = first + draw(end - first)
            return Owner(number, number)
    if not kernel_root:
        return Owner(0, 0)
    raise SandboxFailed(
        "this user namespace has no user but root, and its root is the kernel's",
        check="/proc/self/uid_map",
        expected="a user beside root, for the program",
        seen="root alone",
        remedy="run as an ordinary user, or in a namespace with more users",
    )


def _mapped(table: str) -> list[Range]:
    found = []
    for line in table.splitlines():
        first, _outside, count = (int(word) for word in line.split())
        found.append((first, first + count))
    return found


def _common(some: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    overlaps = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return [(first, end) for first, end in overlaps if first < end]
