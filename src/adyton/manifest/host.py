"""What a template may ask of the machine that renders it: Gramine's `gramine` and `python` objects, and `ldd`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adyton.errors import ManifestError

_TIMEOUT_S: Final = 60
_LDD_LINKED: Final = re.compile(r"^\s+\S+ => (/\S.*) \(0x[0-9a-f]+\)$")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ManifestError(f"{command[0]} could not be run: {error}", check=f"template: {command[0]}") from None
    if done.returncode:
        raise ManifestError(
            f"{' '.join(command)[:160]} failed: {(done.stderr or done.stdout).strip()[:400]}",
            check=f"template: {command[0]}",
            expected="exit status 0",
            seen=done.returncode,
        )
    return done.stdout


def ldd(*paths: object) -> list[str]:
    """Absolute paths of the shared libraries that these need, each once, sorted; the loader is not among them."""
    found: set[str] = set()
    for path in paths:
        found |= {match[1] for line in _run("ldd", str(path)).splitlines() if (match := _LDD_LINKED.match(line))}
    return sorted(found)


def interpreter_of(path: Path) -> str | None:
    """The ELF interpreter that a program names (PT_INTERP), or None for scripts and static programs."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return None
        table, count = int.from_bytes(head[32:40], "little"), int.from_bytes(head[56:58], "little")
        file.seek(table)
        headers = file.read(56 * min(count, 256))
        for start in range(0, len(headers) - 55, 56):
            header = headers[start : start + 56]
            if int.from_bytes(header[:4], "little") == 3:
                file.seek(int.from_bytes(header[8:16], "little"))
                name = file.read(min(int.from_bytes(header[32:40], "little"), 4096))
                return name.rstrip(b"\0").decode(errors="replace")
    return None


def multiarch_libdir() -> Path:
    """Where this machine keeps its C library, e.g. /lib/x86_64-linux-gnu."""
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    for folder in (f"/lib/{triplet}", "/lib64", "/usr/lib64", "/lib"):
        if (Path(folder) / "libc.so.6").exists():
            return Path(folder)
    return Path("/lib") / triplet


@dataclass(frozen=True, slots=True)
class Installation:
    """Where a Gramine is installed: its programs, its libraries, its release (None where it does not say)."""

    programs: Path
    libraries: Path
    release: tuple[int, int] | None
    constants: Mapping[str, object]

    @property
    def libos(self) -> Path:
        """The library OS."""
        return self.libraries / "libsysdb.so"

    @property
    def libpal(self) -> Path:
        """What is loaded into an enclave first, and measured."""
        return self.libraries / "sgx" / "libpal.so"

    def runtime(self, libc: str = "glibc") -> Path:
        """Folder of the C library that programs get."""
        return self.libraries / "runtime" / libc


def find_gramine(path: str | None = None) -> Installation | None:
    """The Gramine whose `gramine-direct` is on PATH (or on `path`), or None."""
    program = shutil.which("gramine-direct", path=path)
    if program is None:
        return None
    programs = Path(program).resolve().parent
    prefix = programs.parent
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    for folder in (f"lib/{triplet}", "lib64", "lib"):
        libraries = prefix / folder / "gramine"
        if (libraries / "libsysdb.so").is_file():
            return Installation(programs, libraries, _release(programs), _constants(prefix))
    return None


def _release(programs: Path) -> tuple[int, int] | None:
    tool = programs / "gramine-manifest"
    try:
        text = _run(str(tool), "--version") if tool.exists() else ""
    except ManifestError:
        text = ""
    match = re.search(r"\b([0-9]{1,3})\.([0-9]{1,3})", text)
    return (int(match[1]), int(match[2])) if match else None


def _constants(prefix: Path) -> dict[str, object]:
    """Gramine's build constants: a Python file of plain assignments, read, not run."""
    for file in sorted(prefix.glob("lib/python3*/*-packages/_graminelibos_offsets.py")):
        found: dict[str, object] = {}
        for line in file.read_text(errors="replace").splitlines():
            if match := re.fullmatch(r"([A-Z][A-Z0-9_]*)\s*=\s*(0x[0-9a-fA-F]+|[0-9]+)L?", line.strip()):
                found[match[1]] = int(match[2], 0)
        return found
    return {}


def runtime_stand_in() -> Path:
    """What `gramine.runtimedir()` is where Gramine is absent: the system's libraries, by a path nobody else writes.

    `adyton build` writes the plain path in its place, and takes the folder, where it is listed as trusted, to mean the
    C library alone, which is what Gramine's own folder holds.
    """
    folder = multiarch_libdir()
    return folder / ".." / folder.name


_C_LIBRARY: Final = re.compile(
    r"ld-linux.*\.so\.\d+|(libc|libm|libmvec|libpthread|libdl|librt|libutil|libresolv|libanl|libnss_\w+)\.so\.\d+"
)


def c_library_files(folder: Path) -> list[str]:
    """The files of the C library itself among all libraries of a system's folder: what Gramine's runtime folder has."""
    return sorted(str(path) for path in folder.iterdir() if _C_LIBRARY.fullmatch(path.name) and path.is_file())


class _RuntimeDir:
    """`gramine.runtimedir`: callable with the libc's name, and usable as a path itself."""

    def __init__(self, gramine: Gramine) -> None:
        self._gramine = gramine

    def __call__(self, libc: str = "glibc") -> Path:
        return self._gramine.runtime_of(libc)

    def __str__(self) -> str:
        return str(self())

    def __truediv__(self, name: str) -> Path:
        return self() / name


class Gramine:
    """The `gramine` object of templates.

    Where Gramine is installed its folders are named. Where it is not, the same templates still render: the runtime
    folder is then this machine's own C library folder, which Adyton's runtime uses in its place.
    """

    def __init__(self, installation: Installation | None) -> None:
        self._installation = installation

    @property
    def runtimedir(self) -> _RuntimeDir:
        """Folder of the C library that the program gets."""
        return _RuntimeDir(self)

    def runtime_of(self, libc: str) -> Path:
        """Folder of Gramine's `glibc` or `musl`, or this machine's own C library where Gramine is absent."""
        if libc not in ("glibc", "musl"):
            raise ManifestError(f"gramine.runtimedir: no C library {libc!r}", expected="glibc or musl", seen=libc)
        return runtime_stand_in() if self._installation is None else self._installation.runtime(libc)

    @property
    def libos(self) -> Path:
        """Path of Gramine's library OS."""
        return self._installed("libos").libos

    @property
    def pkglibdir(self) -> Path:
        """Folder of Gramine's libraries."""
        return self._installed("pkglibdir").libraries

    def _installed(self, name: str) -> Installation:
        if self._installation is None:
            raise ManifestError(
                f"the template uses gramine.{name}, and Gramine is not installed here",
                check="template",
                remedy="leave loader.entrypoint out: Adyton fills it in when it renders for Gramine",
            )
        return self._installation

    def __getattr__(self, name: str) -> object:
        if name.isupper() and self._installation is not None and name in self._installation.constants:
            return self._installation.constants[name]
        raise AttributeError(name)


class Python:
    """The `python` object of templates: the paths of the Python that runs Adyton."""

    implementation = sys.implementation
    get_path = staticmethod(sysconfig.get_path)
    get_paths = staticmethod(sysconfig.get_paths)
    get_config_var = staticmethod(sysconfig.get_config_var)

    stdlib = Path(sysconfig.get_path("stdlib"))
    platstdlib = Path(sysconfig.get_path("platstdlib"))
    purelib = Path(sysconfig.get_path("purelib"))
    distlib = Path(sysconfig.get_path("stdlib")).parent / f"python{sys.version_info.major}" / "dist-packages"
    ext_suffix = sysconfig.get_config_var("EXT_SUFFIX")

    @staticmethod
    def get_sys_path(interpreter: object, include_nonexisting: bool = False) -> Iterator[Path]:
        """The entries of that interpreter's sys.path, existing ones only unless told otherwise."""
        text = _run(str(interpreter), "-c", "import sys; print('\\n'.join(sys.path))")
        for line in text.splitlines():
            if line and (include_nonexisting or Path(line).exists()):
                yield Path(line)
