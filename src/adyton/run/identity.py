"""The identity of the runtime that enforces a manifest: what the simulated hardware measures besides the manifest.

A hash over what Adyton's own process runs: its modules and C part, the Python interpreter with the standard library,
the packages Adyton runs on, the C library, libfuse, bubblewrap. Two installations of the same versions built for the
same machine type have the same identity wherever they lie; one changed byte in any of them changes it.

Sources are hashed, not cached bytecode, which CPython makes anew where a source's time or size changes: whoever can
plant bytecode with a forged time can as well change this module. A runtime cannot vouch for itself; where the machine's
owner is not trusted, something outside it must measure it (design: the guest image in tdx and snp). In `sim` that
something is simulated by this function.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import struct
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from adyton.errors import NoDevice
from adyton.values import Digest

LABEL: Final = b"adyton runtime identity v1\0\0\0\0\0\0"

PACKAGES: Final = ("cryptography", "mfusepy", "cffi", "OpenSSL", "click", "typer", "cbor2", "tomli_w")
"""Import names of the packages whose code a protected run may execute outside the program."""

LIBRARIES: Final = (
    "libc.so.6",
    "libm.so.6",
    "libcrypto.so.3",
    "libssl.so.3",
    "libffi.so.8",
    "libz.so.1",
    "libfuse3.so.3",
)
PROGRAMS: Final = ("bwrap", "fusermount3")

_SKIPPED: Final = frozenset(
    {"__pycache__", "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "pydoc_data"}
    | {"site-packages", "dist-packages", "distutils", "venv", "idle_test", "_pyrepl"}
)
_SUFFIXES: Final = (".py", ".so", ".pem", ".c")
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class RuntimeIdentity:
    """The one digest, and what it is made of: part name -> digest (of a file, or over a package's files)."""

    digest: Digest
    parts: Mapping[str, Digest]


def runtime_identity() -> RuntimeIdentity:
    """Hash the runtime that executes this call, afresh each time; raises NoDevice where a part is missing."""
    import adyton

    folders = {"adyton": Path(adyton.__file__).parent, "python standard library": Path(sysconfig.get_path("stdlib"))}
    files: dict[str, list[tuple[str, str]]] = {
        name: sorted(_walk(os.fspath(folder), "")) for name, folder in folders.items()
    }
    for name in PACKAGES:
        files[f"package {name}"] = sorted(_package(name))
    single = {"python interpreter": os.path.realpath(sys.executable), **_libraries(), **_programs()}
    for name, path in single.items():
        files[name] = [("", path)]
    listed = [(name, shown, path) for name, members in files.items() for shown, path in members]
    hashed = _hash_all([path for _, _, path in listed])
    parts: dict[str, Digest] = {}
    at = 0
    for name, members in files.items():
        digest = hashlib.sha256()
        for shown, _ in members:
            encoded = shown.encode("utf-8", "surrogateescape")
            digest.update(struct.pack("<I", len(encoded)) + encoded + hashed[at])
            at += 1
        parts[name] = Digest(digest.digest())
    return RuntimeIdentity(combine(parts), MappingProxyType(parts))


def combine(parts: Mapping[str, Digest]) -> Digest:
    """SHA-256 over the label and, in the order of their names, each part's name (u32 length, UTF-8) and digest."""
    digest = hashlib.sha256(LABEL)
    for name in sorted(parts):
        encoded = name.encode()
        digest.update(struct.pack("<I", len(encoded)) + encoded + parts[name].raw)
    return Digest(digest.digest())


def _walk(folder: str, shown: str) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as listing:
        for child in listing:
            if child.name in _SKIPPED or child.name.startswith("config-"):
                continue
            if child.is_dir():
                yield from _walk(child.path, f"{shown}{child.name}/")
            elif child.name.endswith(_SUFFIXES):
                yield f"{shown}{child.name}", child.path


def _package(name: str) -> list[tuple[str, str]]:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise NoDevice(
            f"the Python package {name} is not installed, and Adyton runs on it",
            check="runtime identity",
            expected=name,
            seen="nothing",
            remedy="install Adyton with its dependencies",
        )
    if found.submodule_search_locations is None:
        return [("", found.origin)]
    return [member for folder in found.submodule_search_locations for member in _walk(folder, "")]


def _mapped() -> dict[str, str]:
    """Shared libraries that this process has mapped, by their file name up to the version of their interface."""
    found: dict[str, str] = {}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:  # noqa: PTH123 - no real file
        for line in maps:
            path = line[73:].rstrip("\n")
            if path.startswith("/") and ".so" in path:
                found[path.rpartition("/")[2]] = path
    return found


def _libraries() -> dict[str, str]:
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
    mapped = _mapped()
    found = {}
    for name in LIBRARIES:
        places = [mapped[name]] if name in mapped else []
        places += [f"{folder}/{name}" for folder in folders]
        path = next((place for place in places if os.path.exists(place)), None)  # noqa: PTH110 - speed
        if path is not None:
            found[f"library {name}"] = os.path.realpath(path)
    shared = re.compile(rf"libpython{sys.version_info.major}\.{sys.version_info.minor}\.so[.0-9]*")
    libpython = next((path for name, path in mapped.items() if shared.fullmatch(name)), None)
    return found if libpython is None else {**found, "library libpython": libpython}


def _programs() -> dict[str, str]:
    found = {}
    for name in PROGRAMS:
        path = shutil.which(name)
        if path is not None:
            found[f"program {name}"] = os.path.realpath(path)
    return found


def _hash_all(paths: list[str]) -> list[bytes]:
    """SHA-256 of many files; large ones go to a second thread, since hashing lets go of the interpreter's lock."""
    sizes = [os.stat(path).st_size for path in paths]  # noqa: PTH116 - speed
    large = [path for path, size in zip(paths, sizes, strict=True) if size >= 1 << 20]
    with ThreadPoolExecutor(1) as pool:
        ahead = {path: pool.submit(_hash_file, path) for path in large}
        return [ahead[path].result() if path in ahead else _hash_file(path) for path in paths]


def _hash_file(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        digest = hashlib.sha256()
        while chunk := os.read(descriptor, 1 << 20):
            digest.update(chunk)
        return digest.digest()
    finally:
        os.close(descriptor)
