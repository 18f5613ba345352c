"""The /proc of a program: its own processes are writable. Some of the machine's files are read-only, some are empty.

As container runtimes have it. Read-only are the files through which the kernel is told something. Empty are those that
tell of the kernel's memory, its keys, its timers and devices, or of what others do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

READ_ONLY: Final = ("bus", "fs", "irq", "pressure", "sys", "sysrq-trigger")
EMPTY: Final = (
    "acpi", "asound", "interrupts", "kallsyms", "kcore", "key-users", "keys", "kmsg", "latency_stats", "sched_debug",
    "scsi", "softirqs", "timer_list", "timer_stats", "vmallocinfo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Covers:
    """An empty file and an empty folder, to be shown in the place of others."""

    file: str
    folder: str

    @classmethod
    def make(cls, place: str) -> Covers:
        """Make them in a folder of private memory."""
        made = cls(place + "/empty", place + "/nothing")
        os.close(os.open(made.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        os.mkdir(made.folder, 0o555)
        return made


def options(covers: Covers, *, proc: str = "/proc") -> list[str]:
    """bubblewrap's options for what this machine has of it. They come after its --proc."""
    words = []
    for name in READ_ONLY:
        if os.path.exists(f"{proc}/{name}"):
            words += ["--ro-bind", f"{proc}/{name}", f"/proc/{name}"]
    for name in EMPTY:
        path = f"{proc}/{name}"
        if os.path.exists(path):
            words += ["--ro-bind", covers.folder if os.path.isdir(path) else covers.file, f"/proc/{name}"]
    return words
