"""Which folders of the machine are the kernel's interfaces and no one's files: a program gets none of them.

Through configfs (/sys/kernel/config/tsm) a program would ask the hardware itself for evidence, past the domain that
keeps its evidence from Adyton's own. Through /proc and /sys it would change the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from adyton.runtime.run_plan import RESERVED, SHARED_MEMORY

KERNEL_TYPES: Final = frozenset(
    {
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "mqueue",
        "nfsd",
        "nsfs",
        "proc",
        "pstore",
        "resctrl",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
        "xenfs",
    }
)


@dataclass(frozen=True, slots=True)
class MountRow:
    """One line of /proc/self/mountinfo."""

    number: int
    place: str
    type: str


def parse_mountinfo(text: str) -> tuple[MountRow, ...]:
    """The mounts of a mount namespace. The format is that of proc_pid_mountinfo(5). Raises ValueError."""
    return tuple(_row(line) for line in text.splitlines())


def _row(line: str) -> MountRow:
    own, separator, rest = line.partition(" - ")
    words = own.split(" ")
    if not separator or len(words) < 6:
        raise ValueError(f"not a line of mountinfo: {line[:80]!r}")
    place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), words[4])
    return MountRow(int(words[0]), place, rest.split(" ")[0])


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def interfaces(mounts: tuple[MountRow, ...], number: int, place: str, private: str) -> Iterator[str]:
    """The kernel interfaces, or private memory of the run, that a program would reach in the file or folder at `place`.

    `number` is the mount that it lies in. Mounts below it count, since a folder is shown with them. In /dev, /proc and
    /sys everything is the kernel's, whatever file system is there, but for shared memory, which holds files.
    """
    if any(_below(place, folder) for folder in RESERVED) and not _below(place, SHARED_MEMORY):
        yield place
    for row in mounts:
        if row.type in KERNEL_TYPES and (row.number == number or _below(row.place, place)):
            yield f"{row.type} at {row.place}"
        elif _below(row.place, private) and (_below(row.place, place) or _below(place, private)):
            yield "the run's own private memory"
