"""Device nodes of the machine, each checked and then held, so that the sandbox shows exactly what was checked."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from adyton.errors import NoDevice
from adyton.runtime import namespace
from adyton.vfs.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.gpu_nodes import DeviceNode

_READ_AND_WRITE = 0o6


def hold(nodes: Sequence[DeviceNode], folder: str, owner: Owner) -> list[tuple[str, str]]:
    """Bind each node into a new folder of the run's own. Returns where each lies now, and its path in the sandbox.

    The node is opened once, and it is this open file that is checked and bound. Raises NoDevice where one is missing,
    is a link or another device, or where the program's user (`owner`) may not read and write it.
    """
    os.mkdir(folder, 0o755)
    found = []
    for node in nodes:
        place = f"{folder}/{node.name}"
        fd = _open(node)
        try:
            _check(node, os.fstat(fd), owner)
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            namespace.bind(f"/proc/self/fd/{fd}", place)
        finally:
            os.close(fd)
        found.append((place, f"/dev/{node.name}"))
    return found


def _open(node: DeviceNode) -> int:
    try:
        return os.open(node.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NoDevice(
            f"{node.path} cannot be opened: {error.strerror}",
            check=f"device node {node.name}",
            expected=f"a character device {node.major}:{node.minor}",
            seen=error.strerror,
            remedy=f"make it: mknod -m 666 {node.path} c {node.major} {node.minor} (nvidia-modprobe does it)",
        ) from error


def _check(node: DeviceNode, seen: os.stat_result, owner: Owner) -> None:
    numbers = (os.major(seen.st_rdev), os.minor(seen.st_rdev))
    if not stat.S_ISCHR(seen.st_mode) or numbers != (node.major, node.minor):
        kind = "character device" if stat.S_ISCHR(seen.st_mode) else "other file"
        raise NoDevice(
            f"{node.path} is not the device that it has to be",
            check=f"device node {node.name}",
            expected=f"a character device {node.major}:{node.minor}",
            seen=f"{kind} {numbers[0]}:{numbers[1]}",
            remedy="remove it, and let the driver or nvidia-modprobe make it again",
        )
    shift = 6 if seen.st_uid == owner.uid else 3 if seen.st_gid == owner.gid else 0
    if (seen.st_mode >> shift) & _READ_AND_WRITE != _READ_AND_WRITE:
        raise NoDevice(
            f"the program may not use {node.path}",
            check=f"permissions of the device node {node.name}",
            expected="read and write for the program's user, who has no rights of its own (mode 0666)",
            seen=f"mode {stat.S_IMODE(seen.st_mode):04o}, user {seen.st_uid}",
            remedy=f"chmod 0666 {node.path}, as the driver does by default",
        )
