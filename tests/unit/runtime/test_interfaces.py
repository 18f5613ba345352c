"""Which folders would show a program the kernel's interfaces."""

from __future__ import annotations

import pytest

from adyton.runtime.interfaces import MountRow, interfaces, parse_mountinfo

INFO = r"""21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:19 / /proc rw,relatime shared:5 - proc proc rw
23 21 0:20 / /sys rw,relatime - sysfs sysfs rw
24 23 0:21 / /sys/kernel/config rw,relatime shared:7 master:2 - configfs configfs rw
25 21 0:22 / /mnt/my\040disk rw - xfs /dev/vdb rw
26 21 0:21 / /srv/tsm rw - configfs configfs rw
27 21 0:23 / /dev/shm rw - tmpfs tmpfs rw
28 21 0:24 / /srv/run rw - tmpfs adyton rw
"""
PRIVATE = "/srv/run"


def found(place: str, number: int = 21) -> list[str]:
    """What a program would reach there."""
    return list(interfaces(parse_mountinfo(INFO), number, place, PRIVATE))


def test_mountinfo_is_read_with_its_escapes() -> None:
    """Optional fields vary in number; a space in a path is written in octal."""
    rows = parse_mountinfo(INFO)
    assert rows[3] == MountRow(24, "/sys/kernel/config", "configfs")
    assert rows[4].place == "/mnt/my disk"
    for wrong in ("21 1 254:0 / /", "21 - ext4", "x 1 254:0 / / rw - ext4 a rw"):
        with pytest.raises(ValueError):
            parse_mountinfo(wrong)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("/", 21),
        ("/proc", 22),
        ("/proc/sys/kernel", 22),
        ("/sys", 23),
        ("/sys/kernel/config/tsm/report", 24),
        ("/dev", 21),
        ("/dev/sev-guest", 21),
        ("/srv", 21),
        ("/srv/tsm", 26),
        ("/srv/tsm/report", 26),
        ("/srv/run", 28),
        ("/srv/run/root", 28),
    ],
)
def test_interfaces_are_found_at_below_and_around(place: str, number: int) -> None:
    """By path, by the file system's type wherever it is mounted, and with a folder that has one below it."""
    assert found(place, number)


@pytest.mark.parametrize(
    ("place", "number"), [("/mnt", 21), ("/mnt/my disk/a", 25), ("/dev/shm/x", 27), ("/system", 21), ("/srv/other", 21)]
)
def test_files_are_no_interfaces(place: str, number: int) -> None:
    """Disks, memory, and names that only begin alike."""
    assert found(place, number) == []
