"""The identity of the runtime that enforces a manifest: what the simulated hardware measures besides the manifest.

A hash over what Adyton's own process runs: its modules and C part, the Python interpreter with the standard library,
the packages Adyton runs on, bubblewrap, and every shared library that comes into a process with one of these.
Two installations of the same versions built for the same machine type have the same identity wherever they lie. One
changed byte in any of them changes it.

Sources are hashed, not cached bytecode, which CPython makes anew where a source's time or size changes: whoever can
plant bytecode with a forged time can as well change this module. A runtime cannot vouch for itself. Where the machine's
owner is not trusted, something outside must measure the runtime (design: the guest image in tdx and snp). In `sim`
this function simulates that measurement.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import struct
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adyton import elf
from adyton.errors import NoDevice
from adyton.manifest.measure import combine
from adyton.values import Digest
from adyton.vfs import libfuse

PACKAGES: Final = ("cryptography", "_cffi_backend", "mfusepy", "OpenSSL")
"""Import names of the packages whose code runs beside a protected program. A test holds this list complete."""

LOADED_BY_NAME: Final = (*libfuse.VERSIONS, "libgcc_s.so.1")
"""Libraries that no ELF file asks for, and that are loaded when they are needed: whichever libfuse is there, and what
the C library takes to end a thread."""

_NAME_SERVICES: Final = frozenset({"hosts", "passwd", "group"})
"""Databases of nsswitch.conf whose services the C library loads as libnss_SERVICE.so.2."""

_NOT_IMPORTED: Final = ("_tkinter", "_curses", "readline", "_dbm", "_gdbm", "_sqlite3", "_crypt", "nis")
"""How modules of the standard library begin that no run imports: their libraries do not count."""

PROGRAMS: Final = ("bwrap", "fusermount3")

LOADED_BY_ENVIRONMENT: Final = ("LD_PRELOAD", "LD_AUDIT", "OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES")
"""Variables that name code, or a configuration that names code, to load into this process."""

_PRELOAD: Final = "/etc/ld.so.preload"
_IMPORTED: Final = re.compile(r"""\bimport\s+(\w+)|__import__\(['"](\w+)""")

_SKIPPED: Final = frozenset(
    {"__pycache__", "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "pydoc_data"}
    | {"site-packages", "dist-packages", "distutils", "venv", "idle_test", "unittest"}
)
_SUFFIXES: Final = (".py", ".so", ".c", ".h")
_TEXTS: Final = (".py", ".c", ".h")
_READ_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class RuntimeIdentity:
    """The one digest, and what it is made of: part name -> digest (of a file, or over a package's files)."""

    digest: Digest
    parts: Mapping[str, Digest]


def runtime_identity() -> RuntimeIdentity:
    """Hash the runtime that executes this call, afresh each time. Raises NoDevice where a part is missing."""
    files = measured_files()
    listed = [path for members in files.values() for _, path in members]
    hashed = iter(_hash_all(listed))
    parts: dict[str, Digest] = {}
    for name, members in files.items():
        digest = hashlib.sha256()
        for shown, _ in members:
            encoded = shown.encode("utf-8", "surrogateescape")
            digest.update(struct.pack("<I", len(encoded)) + encoded + next(hashed))
        parts[name] = Digest(digest.digest())
    parts["python start-up"] = _startup()
    return RuntimeIdentity(combine(parts), MappingProxyType(parts))


def measured_files() -> dict[str, list[tuple[str, str]]]:
    """The files that are hashed: part name -> (name below the part's folder, path), in the order of names.

    Raises NoDevice where a package is missing.
    """
    import adyton

    folders = {"adyton": os.path.dirname(adyton.__file__), "python standard library": os.path.dirname(os.__file__)}
    files = {name: sorted(_walk(folder, "")) for name, folder in folders.items()}
    for name in PACKAGES:
        files[f"package {name}"] = sorted(_package(name))
    modules = [path for members in files.values() for shown, path in members if _is_loaded(shown, path)]
    interpreter, programs = os.path.realpath(sys.executable), _programs()
    single = {"python interpreter": interpreter, **programs, **_libraries([interpreter, *modules], programs.values())}
    return {**files, **{name: [("", path)] for name, path in single.items()}}


def _walk(folder: str, shown: str) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as listing:
        for child in listing:
            if child.name in _SKIPPED or child.name.startswith("config-"):
                continue
            if child.is_dir():
                yield from _walk(child.path, f"{shown}{child.name}/")
            elif child.name.endswith(_SUFFIXES):
                yield f"{shown}{child.name}", child.path


def _spec_of(name: str) -> tuple[str, list[str]]:
    """Where a package's own file lies, and its folders (none for a single module)."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        raise NoDevice(
            f"the Python package {name} is not installed, and Adyton runs on it",
            check="runtime identity",
            expected=name,
            seen="nothing",
            remedy="install Adyton with its dependencies",
        )
    return found.origin, list(found.submodule_search_locations or ())


def _package(name: str) -> list[tuple[str, str]]:
    origin, folders = _spec_of(name)
    if not folders:
        return [("", origin)]
    return [member for folder in folders for member in _walk(folder, "")]


def _is_loaded(shown: str, path: str) -> bool:
    return path.endswith(".so") and not shown.rpartition("/")[2].startswith(_NOT_IMPORTED)


def _libraries(roots: Iterable[str], programs: Iterable[str]) -> dict[str, str]:
    """Every shared library that comes into this process or into one of the programs, which get no environment."""
    ours = elf.libraries(roots, (*LOADED_BY_NAME, *_name_services()))
    theirs = elf.libraries(programs, (), here=False)
    found = {f"library {name}": path for name, path in ours.items()}
    for name, path in theirs.items():
        found[f"library {name}" if ours.get(name, path) == path else f"library {name} of programs"] = path
    return found


def _name_services() -> list[str]:
    try:
        with open("/etc/nsswitch.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].partition(":") for line in file]
    except OSError:
        return []
    services = {
        word for name, _, rest in lines if name.strip() in _NAME_SERVICES for word in re.findall(r"[\w-]+", rest)
    }
    return [f"libnss_{service}.so.2" for service in sorted(services)]


def _programs() -> dict[str, str]:
    found = {}
    for name in PROGRAMS:
        path = shutil.which(name)
        if path is not None:
            found[f"program {name}"] = os.path.realpath(path)
    return found


def _startup() -> Digest:
    """The code that runs by itself before any program, or in the place of what is measured by name.

    Import lines of .pth files with the modules they name, the hooks of `site`, modules that stand before the standard
    library's own on `sys.path`, and what the environment has the loader and OpenSSL take in.
    """
    folder = os.path.dirname(os.path.dirname(_spec_of("cryptography")[0]))
    lines: set[str] = set()
    with os.scandir(folder) as listing:
        names = [child.path for child in listing if child.name.endswith(".pth")]
    for path in names:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines |= {line.strip() for line in file if line.startswith(("import ", "import\t"))}
    digest = hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))
    for name in sorted(
        {name for line in lines for pair in _IMPORTED.findall(line) for name in pair if name} - sys.stdlib_module_names
    ):
        origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None)
        if origin:
            digest.update(name.encode() + _hash_file(origin))
    for hook in ("sitecustomize", "usercustomize"):
        origin = getattr(sys.modules.get(hook), "__file__", None)
        if origin:
            digest.update(hook.encode() + _hash_file(origin))
    for shown, path in sorted(_in_the_way()):
        digest.update(shown.encode("utf-8", "surrogateescape") + _hash_file(path))
    if os.path.isfile(_PRELOAD):  # the loader takes the libraries that it names into every program
        with open(_PRELOAD, encoding="utf-8", errors="surrogateescape") as file:
            preloaded = file.read(1 << 16).replace(":", " ").split()
        for word in preloaded:
            digest.update(b"ld.so.preload" + (_hash_file(word) if os.path.isfile(word) else os.fsencode(word)))
    for name in LOADED_BY_ENVIRONMENT:
        for word in os.environ.get(name, "").replace(":", " ").split():
            content = _hash_file(word) if os.path.isfile(word) else hashlib.sha256(os.fsencode(word)).digest()
            digest.update(name.encode() + content)
    return Digest(digest.digest())


def _in_the_way() -> Iterator[tuple[str, str]]:
    """Modules under names of the standard library in folders that come before it on `sys.path`."""
    library = os.path.dirname(os.__file__)
    for folder in sys.path[: sys.path.index(library)] if library in sys.path else sys.path:
        try:
            with os.scandir(folder or ".") as listing:
                children = list(listing)
        except OSError:
            continue
        for child in children:
            if child.name.partition(".")[0] not in sys.stdlib_module_names:
                continue
            if child.is_file() and child.name.endswith((".py", ".pyc", ".so")):
                yield child.name, child.path
            elif os.path.isfile(f"{child.path}/__init__.py"):
                yield from ((f"{child.name}/{shown}", path) for shown, path in _walk(child.path, ""))


def _hash_all(paths: Sequence[str]) -> list[bytes]:
    """SHA-256 of many files. Binaries go to a second thread, since hashing lets go of the interpreter's lock."""
    found: dict[str, bytes] = {}
    failed: list[OSError] = []

    def work() -> None:
        try:
            for path in paths:
                if not path.endswith(_TEXTS):
                    found[path] = _hash_file(path)
        except OSError as error:
            failed.append(error)

    second = threading.Thread(target=work)
    second.start()
    try:
        texts = {path: _hash_file(path) for path in paths if path.endswith(_TEXTS)}
    finally:
        second.join()
    if failed:
        raise failed[0]
    found.update(texts)
    return [found[path] for path in paths]


def _hash_file(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunk = os.read(descriptor, _READ_BYTES)
        digest = hashlib.sha256(chunk)
        while len(chunk) == _READ_BYTES:
            chunk = os.read(descriptor, _READ_BYTES)
            digest.update(chunk)
        return digest.digest()
    finally:
        os.close(descriptor)
