"""The shared libraries that an ELF file brings into a process, found as the dynamic loader finds them.

ELF-64, little-endian (gABI, "Dynamic Section"). The search follows ld.so(8): DT_RPATH where there is no DT_RUNPATH,
LD_LIBRARY_PATH, DT_RUNPATH, /etc/ld.so.cache, the default folders.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_DYNAMIC: Final = struct.Struct("<QQ")
_LOAD, _DYNAMIC_SEGMENT, _INTERPRETER = 1, 2, 3
_NEEDED, _STRING_TABLE, _STRING_BYTES, _SONAME, _RPATH, _RUNPATH = 1, 5, 10, 14, 15, 29
_MAX_SEGMENTS: Final = 1024
_MAX_DYNAMIC_BYTES: Final = 64 << 10
_MAX_TEXT_BYTES: Final = 4096
_MAX_LIBRARIES: Final = 1024
_MAX_FOLDERS: Final = 256

_CACHE_MAGIC: Final = b"glibc-ld.so.cache1.1"
_CACHE_HEADER: Final = struct.Struct("<20sII20x")
_CACHE_ENTRY: Final = struct.Struct("<iIIIQ")
_MAX_CACHE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Linked:
    """The dynamic section of an ELF file: its library name, interpreter, needed libraries and search folders."""

    machine: int
    soname: str | None
    interpreter: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read(path: str) -> Linked | None:
    """The dynamic section of the file at `path`. None for another kind of file or a damaged one. Raises OSError."""
    with open(path, "rb") as file:
        try:
            return _read(file.fileno(), os.path.dirname(os.path.realpath(path)))
        except (struct.error, ValueError, OverflowError):
            return None


def _read(fd: int, folder: str) -> Linked:
    start = os.pread(fd, _HEADER.size, 0)
    identification, _, machine, _, _, offset, _, _, _, size, count, *_ = _HEADER.unpack(start)
    if identification[:6] != b"\x7fELF\x02\x01" or size != _SEGMENT.size or count > _MAX_SEGMENTS:
        raise ValueError
    segments = list(_SEGMENT.iter_unpack(os.pread(fd, size * count, offset)))
    loads = [segment for segment in segments if segment[0] == _LOAD]

    def content(kind: int, limit_bytes: int) -> bytes | None:
        found = next((segment for segment in segments if segment[0] == kind), None)
        if found is None:
            return None
        if found[5] > limit_bytes:
            raise ValueError
        return os.pread(fd, found[5], found[2])

    interpreter = content(_INTERPRETER, _MAX_TEXT_BYTES)
    table = content(_DYNAMIC_SEGMENT, _MAX_DYNAMIC_BYTES) or b""
    entries = list(_DYNAMIC.iter_unpack(table[: len(table) - len(table) % _DYNAMIC.size]))
    values = dict(reversed(entries))
    address, length = values.get(_STRING_TABLE, 0), values.get(_STRING_BYTES, 0)
    strings = None
    for _, _, at, start_address, _, in_file, _, _ in loads:
        if start_address <= address < start_address + in_file:
            strings = at + address - start_address

    def text(at: int) -> str:
        if strings is None or at >= length or strings + at >= 1 << 63:
            raise ValueError
        raw = os.pread(fd, min(length - at, _MAX_TEXT_BYTES), strings + at)
        return os.fsdecode(raw[: raw.index(b"\0")])

    def folders(kind: int) -> tuple[str, ...]:
        found = text(values[kind]) if kind in values else ""
        return tuple(
            part.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", folder) for part in found.split(":") if part
        )

    return Linked(
        machine,
        text(values[_SONAME]) if _SONAME in values else None,
        None if interpreter is None else os.fsdecode(interpreter.rstrip(b"\0")),
        tuple(text(value) for kind, value in entries if kind == _NEEDED),
        () if _RUNPATH in values else folders(_RPATH),
        folders(_RUNPATH),
    )


def opened(program: str) -> list[str]:
    """The libraries that the loader would open for a program: the sorted paths by which it opens them.

    The result is that of `ldd`. The loader itself is not used: it runs code of the files that it maps (DT_AUDIT), and
    it is made for trusted files. Names that this machine does not have are left out, and so is the loader. Raises
    OSError where the program cannot be read, and ValueError where it is no ELF file or names too many libraries.
    """
    reader = cache(_read_regular)
    asked = reader(program)
    if asked is None:
        raise ValueError("no ELF-64 program")
    loader = _Loader(reader, ahead=os.environ.get("LD_LIBRARY_PATH", ""))
    own = "" if asked.interpreter is None else asked.interpreter.rpartition("/")[2]
    found: dict[str, str | None] = {own: None}
    left = [(asked, asked.rpath)]
    while left:  # breadth first, as the loader does
        linked, rpath = left.pop(0)
        if len(rpath) + len(linked.runpath) > _MAX_FOLDERS:
            raise ValueError("too many folders to look in")
        for name in linked.needed:
            if name in found or name.startswith("ld-linux"):
                continue
            if len(found) > _MAX_LIBRARIES:
                raise ValueError("too many libraries")
            found[name] = path = loader.locate(name, linked.machine, rpath, linked.runpath)
            below = None if path is None else reader(path)
            if below is not None:
                left.append((below, tuple(dict.fromkeys((*below.rpath, *rpath)))))
            else:
                found[name] = None
    here = os.getcwd()
    return sorted({os.path.join(here, path) for path in found.values() if path is not None})


def _read_regular(path: str) -> Linked | None:
    """As `read`, and None where the path is no regular file: reading a pipe would block."""
    try:
        return read(path) if os.path.isfile(path) else None
    except OSError:
        return None


def libraries(roots: Iterable[str], names: Iterable[str], *, here: bool = True) -> dict[str, str]:
    """Every library that these files and `names` bring into a process, directly or through others.

    Returns name -> path without links, and LEVEL/name for each variant that the loader may take on a newer processor.
    With `here` the process is this one: its LD_LIBRARY_PATH counts, and of a library that it has mapped already the
    loader takes that file. Otherwise it is a program with an empty environment. Names that this machine does not have
    are left out, and so are roots that are no ELF files.
    """
    reader = cache(read)
    ahead = os.environ.get("LD_LIBRARY_PATH", "") if here else ""
    loader = _Loader(reader, ahead=ahead, loaded=mapped() if here else ())
    found: dict[str, str] = {}
    seen: set[str] = set()

    def follow(path: str, inherited: tuple[str, ...]) -> None:
        linked = None if path in seen else reader(path)
        seen.add(path)
        if linked is None:
            return
        if linked.interpreter is not None:
            take(linked.interpreter.rpartition("/")[2], linked.interpreter, ())
        rpath = (*linked.rpath, *inherited)
        for name in linked.needed:
            if name not in found:
                take(name, loader.locate(name, linked.machine, rpath, linked.runpath), rpath)

    def take(name: str, path: str | None, rpath: tuple[str, ...]) -> None:
        for level, variant in loader.variants(name):
            found[f"{level}/{name}"] = os.path.realpath(variant)
            follow(found[f"{level}/{name}"], rpath)
        if path is not None and os.path.exists(path):
            found[name] = os.path.realpath(path)
            follow(found[name], rpath)

    for root in roots:
        follow(root, ())
    for name in names:
        if name not in found:
            take(name, loader.locate(name, None, (), ()), ())
    return found


class _Loader:
    """The search of the dynamic loader for a library."""

    def __init__(self, reader: Callable[[str], Linked | None], *, ahead: str, loaded: Iterable[str] = ()) -> None:
        self._read = reader
        self._mapped = {
            (linked.soname if linked and linked.soname else path.rpartition("/")[2]): path
            for path in loaded
            for linked in (reader(path),)
        }
        self._cache = _cached(*_stamp("/etc/ld.so.cache"))
        self._ahead = tuple(folder for folder in re.split("[:;]", ahead) if folder)
        self._default = _default_folders()
        holders = [f"{folder}/glibc-hwcaps" for folder in (*self._ahead, *self._default)]
        self._levels = [
            (level, f"{holder}/{level}")
            for holder in holders
            if os.path.isdir(holder)
            for level in sorted(os.listdir(holder))
        ]

    def locate(self, name: str, machine: int | None, rpath: Iterable[str], runpath: Iterable[str]) -> str | None:
        """The path of a library. None where there is none. `machine` None takes a library of any processor."""
        if "/" in name:
            return name
        if name in self._mapped:
            return self._mapped[name]
        cached = [self._cache[name]] if name in self._cache else []
        named = [f"{folder}/{name}" for folder in (*rpath, *self._ahead, *runpath)]
        for path in (*named, *cached, *(f"{folder}/{name}" for folder in self._default)):
            if os.path.isfile(path):
                linked = self._read(path)
                if machine is None or (linked is not None and linked.machine == machine):
                    return path
        return None

    def variants(self, name: str) -> Iterator[tuple[str, str]]:
        """Variants of a library for newer processors (glibc-hwcaps): level and path of each."""
        for level, folder in self._levels:
            if os.path.isfile(f"{folder}/{name}"):
                yield level, f"{folder}/{name}"


def mapped() -> Iterator[str]:
    """The shared libraries that this process has mapped and whose files still exist."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = dict.fromkeys(line[73:].rstrip("\n") for line in maps)
    for path in paths:
        if path.startswith("/") and ".so" in path and os.path.isfile(path):
            yield path


def _default_folders() -> tuple[str, ...]:
    triplet = f"{os.uname().machine}-linux-gnu"
    return (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


def _stamp(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _cached(path: str, changed_ns: int, size: int) -> dict[str, str]:
    """The loader's cache as name -> path. {} where there is none. Source: glibc's sysdeps/generic/dl-cache.h."""
    del changed_ns
    if not 0 < size <= _MAX_CACHE_BYTES:
        return {}
    with open(path, "rb") as file:
        raw = file.read(_MAX_CACHE_BYTES)
    if len(raw) < _CACHE_HEADER.size:
        return {}
    magic, count, _ = _CACHE_HEADER.unpack_from(raw)
    if magic != _CACHE_MAGIC or len(raw) < _CACHE_HEADER.size + count * _CACHE_ENTRY.size:
        return {}
    found: dict[str, str] = {}
    for at in range(count):
        _, key, value, _, capabilities = _CACHE_ENTRY.unpack_from(raw, _CACHE_HEADER.size + at * _CACHE_ENTRY.size)
        if capabilities == 0:
            name, place = (os.fsdecode(raw[part : raw.find(b"\0", part)]) for part in (key, value))
            found.setdefault(name, place)
    return found
