"""The mount table: which mount serves a path, and where inside a host file is seen.

It follows Gramine's rules (reference of its manifest). Mounts are applied in order, and a later one covers what was
under its path. A host path is the mount's path, `/`, and the path below the mount point, normalised lexically. So
`file:x` and `file:/abs/x` differ. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from adyton.errors import MalformedManifest
from adyton.manifest.model import Mount
from adyton.pfile.paths import normalise

MAX_DEPTH: Final = 256


@dataclass(frozen=True, slots=True)
class Place:
    """A mount in the table: `path` inside ("" for the root, else `/a/b`), `source` its normalised host path."""

    mount: Mount
    path: str
    source: str | None


def join(base: str, rest: str) -> str:
    """Join a normalised path and a path below it. Either may be empty."""
    if not rest:
        return base
    return f"{base.rstrip('/')}/{rest}" if base else rest


def below(path: str, base: str) -> str | None:
    """The part of `path` below `base` ("" where they are equal), or None. Both are normalised, and "" is here."""
    if base == "":
        return None if path == ".." or path.startswith(("/", "../")) else path
    if path == base:
        return ""
    prefix = base if base.endswith("/") else base + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


class MountTable:
    """The mounts of one manifest, in order, the root first."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self.places: Final = tuple(self._place(mount) for mount in mounts)

    @staticmethod
    def _place(mount: Mount) -> Place:
        if mount.uri is not None and not mount.uri.startswith("file:"):
            raise MalformedManifest(
                f"mount {mount.path}: {mount.uri.partition(':')[0]}: mounts exist only under SGX",
                check="type of the mount's URI",
                expected="file:",
                seen=mount.uri,
                remedy="leave this mount out; /dev/null, zero, full, random, urandom and shm are there by themselves",
            )
        path = normalise(mount.path)
        if path.count("/") > MAX_DEPTH:
            raise MalformedManifest(f"mount {path[:80]}…: deeper than {MAX_DEPTH} directories")
        source = None if mount.host_path is None else normalise(mount.host_path)
        return Place(mount, "" if path == "/" else path, source)

    def serving(self, path: str) -> Place:
        """The mount that serves a normalised absolute path: the last one, in order, whose path it is at or below."""
        found = self.places[0]
        for place in self.places[1:]:
            if path == place.path or path.startswith(place.path + "/"):
                found = place
        return found

    def points(self, outer: Place) -> list[Place]:
        """The mounts that show in another one: those after it and below its path, without those in one of these."""
        found: list[Place] = []
        for place in self.places[self.places.index(outer) + 1 :]:
            if below(place.path, outer.path) and not any(below(place.path, other.path) for other in found):
                found = [other for other in found if below(other.path, place.path) is None]
                found.append(place)
        return found

    def inside(self, host_path: str) -> Iterator[str]:
        """Every path at which the chroot mounts show a host file, as the manifest writes that file's path."""
        wanted = normalise(host_path)
        for place in self.places:
            if place.mount.type != "chroot" or place.source is None:
                continue
            rest = below(wanted, place.source)
            if rest is None:
                continue
            path = join(place.path, rest) if place.path else "/" + rest
            if self.serving(path) is place:
                yield path
