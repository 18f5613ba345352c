"""The facts that a template may know of the machine that renders it: texts, looked up before rendering begins.

A template gets `gramine`, `python` and `ldd` as Gramine has them (`rendering` makes them of these texts). About a
program it learns something only where the command line names it: a program is read, and an interpreter is run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adyton import elf
from adyton.errors import ManifestError

_TIMEOUT_S: Final = 60


def _run(*command: str, folder: str | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            cwd=folder,
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


def libraries_of(program: str) -> list[str]:
    """Absolute paths of the shared libraries that a program needs, each once, sorted. The loader is not among them.

    They are read from the files: neither ldd(1) nor the loader is asked, since both may run what a stranger made.
    """
    try:
        return elf.opened(str(Path(program).absolute()))
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"the libraries of {program} cannot be told: {error}",
            check="template: --program",
            expected="an ELF program for this machine",
            seen="no file" if not Path(program).is_file() else "something else",
        ) from None


def sys_path_of(interpreter: str) -> list[tuple[str, bool]]:
    """The entries of an interpreter's sys.path, and whether each exists. Runs it."""
    text = _run(interpreter, "-c", "import sys; print('\\n'.join(sys.path))")
    return [(line, Path(line).exists()) for line in text.splitlines() if line]


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
        """The library that is loaded into an enclave first, and measured."""
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


_PACKAGES: Final = (
    ("dpkg-query", "-W", "-f", "${Version}", "gramine"),
    ("rpm", "-q", "--qf", "%{VERSION}", "gramine"),
)
"""What the package managers say of a Gramine that they installed."""


def _release(programs: Path) -> tuple[int, int] | None:
    """What `gramine-direct --version` says, or the package that holds it. None where neither says a release.

    It is asked in `/`: a release without this option would take it for a program of the current folder.
    """
    asked: list[tuple[str, ...]] = [(str(programs / "gramine-direct"), "--version")]
    if programs == Path("/usr/bin"):
        asked += [command for command in _PACKAGES if shutil.which(command[0])]
    for command in asked:
        with contextlib.suppress(ManifestError):
            match = re.search(r"(?<![0-9a-zA-Z.])([0-9]{1,3})\.([0-9]{1,3})", _run(*command, folder="/"))
            if match:
                return int(match[1]), int(match[2])
    return None


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
    """The value of `gramine.runtimedir()` without Gramine: the system's libraries, by a path that nobody else writes.

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


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a template may learn of this machine, as plain data."""

    gramine: Mapping[str, Mapping[str, object]]
    """`runtime`: folder by C library. `paths`: only with an installed Gramine. `constants`: numbers by name."""
    python: Mapping[str, object]
    """`paths`, `variables`, `implementation`: of the Python that runs Adyton; `distlib`."""
    libraries: Mapping[str, Sequence[str]]
    """What `ldd` says of each program that the command line names."""
    sys_paths: Mapping[str, Sequence[tuple[str, bool]]]
    """What `python.get_sys_path` says of each interpreter that the command line names."""

    def to_dict(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "gramine": self.gramine,
            "python": self.python,
            "libraries": self.libraries,
            "sys_paths": self.sys_paths,
        }


def host_facts(
    installation: Installation | None, *, programs: Sequence[str] = (), interpreters: Sequence[str] = ()
) -> Facts:
    """Look up what templates may know. Raises ManifestError where a named program cannot be looked at.

    Where Gramine is not installed, templates still render: the runtime folder is then this machine's own C library
    folder, which Adyton's runtime uses in its place.
    """
    found = {name: str(Path(shutil.which(name) or name)) for name in interpreters}
    libraries = {name: libraries_of(name) for name in programs}
    for name, path in found.items():
        with contextlib.suppress(ManifestError):  # a script that starts an interpreter has none
            libraries.setdefault(name, libraries_of(path))
    return Facts(
        gramine=_gramine_facts(installation),
        python=_python_facts(),
        libraries=libraries,
        sys_paths={name: sys_path_of(path) for name, path in found.items()},
    )


def _gramine_facts(installation: Installation | None) -> dict[str, dict[str, object]]:
    if installation is None:
        stand_in = str(runtime_stand_in())
        return {"runtime": {"glibc": stand_in, "musl": stand_in}, "paths": {}, "constants": {}}
    return {
        "runtime": {libc: str(installation.runtime(libc)) for libc in ("glibc", "musl")},
        "paths": {"libos": str(installation.libos), "pkglibdir": str(installation.libraries)},
        "constants": dict(installation.constants),
    }


def _python_facts() -> dict[str, object]:
    variables = {
        name: value
        for name, value in sysconfig.get_config_vars().items()
        if isinstance(value, str | int) and name != "userbase"  # where this person's home is
    }
    stdlib = Path(sysconfig.get_path("stdlib"))
    return {
        "paths": sysconfig.get_paths(),
        "variables": variables,
        "distlib": str(stdlib.parent / f"python{sys.version_info.major}" / "dist-packages"),
        "implementation": {"name": sys.implementation.name, "cache_tag": sys.implementation.cache_tag},
    }
