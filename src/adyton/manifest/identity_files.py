"""The small files of `/etc` by which a program finds its user, its group and this machine, as a proposal has them.

Those of the owner's machine are not the cloud's, so neither can be trusted on both. `adyton new` writes short ones of
its own beside the manifest, as trusted files. They name the user of the watched run, under the id that the program has
inside, and nobody else of that machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

HOST_NAME: Final = "adyton"
"""The machine's name inside, where the manifest does not take the host's."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_NOBODY: Final = 65534


@dataclass(frozen=True, slots=True)
class User:
    """Name and ids of a user and of the user's group, and the home that passwd(5) names."""

    name: str = "root"
    group: str = "root"
    uid: int = 0
    gid: int = 0
    home: str = "/root"


ROOT: Final = User()


def passwd(user: User) -> str:
    """The text of passwd(5): the user, root and nobody."""
    home = user.home if user.home.isprintable() and ":" not in user.home else "/"
    lines = [f"{_plain(user.name)}:x:{user.uid}:{user.gid}::{home}:/bin/sh"]
    if user.uid != 0:
        lines.append("root:x:0:0::/root:/bin/sh")
    if user.uid != _NOBODY:
        lines.append(f"nobody:x:{_NOBODY}:{_NOBODY}::/nonexistent:/usr/sbin/nologin")
    return _text(lines)


def group(user: User) -> str:
    """The text of group(5): the user's group, root and nogroup."""
    lines = [f"{_plain(user.group)}:x:{user.gid}:"]
    if user.gid != 0:
        lines.append("root:x:0:")
    if user.gid != _NOBODY:
        lines.append(f"nogroup:x:{_NOBODY}:")
    return _text(lines)


def hosts(_user: User) -> str:
    """The text of hosts(5): this machine alone."""
    return f"127.0.0.1 localhost {HOST_NAME}\n::1 localhost\n"


_MADE: Final[dict[str, Callable[[User], str]]] = {"/etc/passwd": passwd, "/etc/group": group, "/etc/hosts": hosts}


@dataclass(frozen=True, slots=True)
class IdentityFile:
    """A file that is written beside the manifest under `name`, and that the program finds as `path`."""

    path: str
    name: str
    text: str


def identity_files(read: Iterable[str], *, program: str, user: User) -> tuple[IdentityFile, ...]:
    """Those of the files that the watched run read. The user's home is the one inside."""
    wanted = set(read)
    return tuple(
        IdentityFile(path, f"{program}.{path.rpartition('/')[2]}", make(user))
        for path, make in _MADE.items()
        if path in wanted
    )


def _plain(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else "user"


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
