"""What a template may ask of the machine that renders it: Gramine's `gramine` and `python` objects, and `ldd`."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from adyton.errors import ManifestError

_TIMEOUT_S: Final = 60
_LDD_LINE: Final = re.compile(r"^\s+(?:\S+ => )?(/\S.*) \(0x[0-9a-f]+\)$")
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

    def __init__(self) -> None:
        self._folder: Path | None = None
        found = importlib.util.find_spec("graminelibos")
        if found is not None and found.origin is not None:
            self._folder = Path(found.origin).parent
        self._constants: dict[str, Any] | None = None

    @property
    def installed(self) -> bool:
        """Whether Gramine's Python package is importable here."""
        return self._folder is not None

    @property
    def runtimedir(self) -> _RuntimeDir:
        """Folder of the C library that the program gets."""
        return _RuntimeDir(self)

    def runtime_of(self, libc: str) -> Path:
        """Folder of Gramine's `glibc` or `musl`, or this machine's own C library where Gramine is absent."""
        if libc not in ("glibc", "musl"):
            raise ManifestError(f"gramine.runtimedir: no C library {libc!r}", expected="glibc or musl", seen=libc)
        if self._folder is None:
            return multiarch_libdir()
        return Path(str(self._config("RUNTIMEDIR", lambda make: make(libc))))

    @property
    def libos(self) -> Path:
        """Path of Gramine's library OS."""
        return Path(str(self._config("LIBOS", lambda path: path)))

    @property
    def pkglibdir(self) -> Path:
        """Folder of Gramine's libraries."""
        return self.libos.parent

    def _config(self, name: str, take: Any) -> Any:
        if self._folder is None:
            raise ManifestError(
                f"the template uses gramine.{name.lower()}, and Gramine is not installed here",
                check="template",
                remedy="leave loader.entrypoint out: Adyton fills it in when it renders for Gramine",
            )
        module = importlib.import_module("graminelibos._configvars" if name == "LIBOS" else "graminelibos")
        found = getattr(module, {"LIBOS": "PKGLIBDIR", "RUNTIMEDIR": "RUNTIMEDIR"}[name], None)
        return take(found)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name.isupper():
            raise AttributeError(name)
        if self._constants is None:
            try:
                offsets = importlib.import_module("graminelibos._offsets")
            except ImportError:
                raise AttributeError(name) from None
            self._constants = vars(offsets)
        try:
            return self._constants[name]
        except KeyError:
            raise AttributeError(name) from None


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
