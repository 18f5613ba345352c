"""Symbolic links of whole folders: sealed as files of reserved names, and made again where that is safe.

A link that leads out of the folder is refused, unless the owner says otherwise. Sealed, it would lead to nothing in the
program's sandbox. Made again, it would lead whatever follows it to any file of hers. Links are made last, after every
file. So nothing is ever written through one.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import PART_SUFFIX, atomic_target, check_absent
from adyton.errors import IntegrityError, UsageError
from adyton.os_failure import storage_failed
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.side_files import LINK_SUFFIX, MAX_TARGET_BYTES, parse_target

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from adyton.values import Key128

_MAX_HOPS: Final = 40
"""Linux follows no more links in one path."""
_MAX_PARTS: Final = 256
"""Of all targets that are still to be followed: what needs more is refused."""


def link_name(stored: str) -> str | None:
    """The path of the link that a file stands for. None where it stands for none."""
    folder, _, name = stored.rpartition("/")
    link = name.removesuffix(LINK_SUFFIX)
    if link in ("", ".", "..", name):
        return None
    return f"{folder}/{link}" if folder else link


def read_links(source: Path, names: Iterable[str]) -> dict[str, str]:
    """Where the links of a plain folder lead, by their paths below it. Raises StorageFailed."""
    return {name: _target(source / name) for name in names}


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - a Path would change `./a`
    except OSError as error:
        raise storage_failed(error, str(link), "reading") from error


def encrypt_link(
    source: Path, target: Path, key: Key128, *, path: str, version: int, force: bool, sync: bool
) -> tuple[int, bytes]:
    """Seal where the link `source` leads into the file `target`, whole or absent. Returns the size and the root.

    Raises StorageFailed, TargetExists, UsageError.
    """
    text = os.fsencode(_target(source))
    with (
        atomic_target(target, force=force, sync=sync) as part,
        ProtectedFile.create(OSFile(os.dup(part)), key, path=path, version=version) as file,
    ):
        file.write_at(0, text)
        file.flush()
        return len(text), file.root


def read_link(
    place: Path | int, key: Key128, path: str, seen: Callable[[str, bytes], object] = lambda _path, _root: None
) -> str:
    """Where the link in a sealed file leads. "" for one that was never written, as a crash leaves it.

    The caller keeps `place` if it is a descriptor. `seen` is told the path and the root of the file. Raises as
    `decrypt_file`, and IntegrityError for what is no link.
    """
    backing = OSFile(os.dup(place), name=path) if isinstance(place, int) else OSFile(place)
    with ProtectedFile.open(backing, key, path=path) as file:
        raw = file.read_at(0, min(file.size, MAX_TARGET_BYTES + 1))
        seen(path, file.root)
    return os.fsdecode(parse_target(raw, backing.name)) if raw else ""


def leads_out(link: str, links: Mapping[str, str]) -> bool:
    """Whether a link of a folder leads out of it, also through its other links. Pure.

    Circles and targets of very many parts count as leading out. `links` are the targets by the links' paths below the
    folder.
    """
    here = link.split("/")[:-1]
    ahead = [links[link]]
    if links[link].count("/") > _MAX_PARTS:
        return True
    hops = 0
    while ahead:
        if ahead[-1].startswith("/"):
            return True
        part, _, rest = ahead.pop().partition("/")
        if rest.lstrip("/"):
            ahead.append(rest.lstrip("/"))
        if part == "..":
            if not here:
                return True
            here.pop()
        elif part not in ("", "."):
            target = links.get("/".join([*here, part]))
            if target is None:
                here.append(part)
                continue
            hops += 1
            ahead.append(target)
            if hops > _MAX_HOPS or sum(each.count("/") for each in ahead) > _MAX_PARTS:
                return True
    return False


def check_inside(folder: Path, links: Mapping[str, str], remedy: str) -> None:
    """Raise UsageError for the first link that leads out of the folder."""
    for link, text in sorted(links.items()):
        if leads_out(link, links):
            raise UsageError(
                f"the link {folder / link} leads to {text}, out of its folder or in a circle",
                check="links of the folder",
                expected="links that lead to something within the folder",
                seen=text,
                remedy=remedy,
            )


def check_links(
    links: Mapping[str, str], *, taken: Collection[str], source: Path, target: Path, all_links: bool, force: bool
) -> None:
    """Refuse links that cannot be made, or not safely, before anything is written.

    `taken` are the paths of files and folders below the folder. Raises IntegrityError where one of them is a link, too,
    UsageError for a link that leads out (unless `all_links`), TargetExists (unless `force`).
    """
    if not all_links:
        check_inside(
            target,
            links,
            "say --all-links to make such links, if you trust the program that made them",
        )
    for link in sorted(links):
        if link in taken:
            raise IntegrityError(
                f"{source / link} is there as a link and as a file or a folder",
                check="one entry for each name",
                expected=f"{link} or {link}{LINK_SUFFIX}",
                seen="both, as a rename leaves it that was killed, or a host that added one",
                remedy=f"the link is what a program sees: remove {source / link}, if that is right",
            )
        if not force:
            check_absent(target / link)


def make_links(target: Path, links: Mapping[str, str], *, replace: bool) -> None:
    """Make the links below a folder, whose own folders are there and no links. One that is right already stays.

    With `replace`, another file or link in its place is replaced. Raises StorageFailed, TargetExists.
    """
    for link, text in sorted(links.items()):
        place = target / link
        try:
            if place.is_symlink() and _target(place) == text:
                continue
            if not replace:
                check_absent(place)
            part = place.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
            os.symlink(text, part)  # noqa: PTH211 - as above: a Path would change it
            try:
                part.replace(place)
            except BaseException:
                with suppress(OSError):
                    part.unlink()
                raise
        except OSError as error:
            raise storage_failed(error, str(place), "making the link") from error
