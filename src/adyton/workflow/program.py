"""What a person names to be run: a script, a module, a folder or a program, and the Python that it is run with."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PYTHON: Final = re.compile(r"python[0-9.]*")
_SCRIPTS: Final = (".py", ".pyz", ".pyw")
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_NAME_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Program:
    """The command that runs it natively, the name of what is made for it, and its own file (None for a module)."""

    command: tuple[str, ...]
    name: str
    file: str | None
    words: tuple[str, ...]
    """What was named, with its arguments, as `adyton new` takes it."""
    python: str | None
    """The interpreter that was named. None where Adyton found one, or needs none."""


def find_program(
    script: str | Path,
    arguments: Sequence[str],
    *,
    python: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Program:
    """Find out how to run what was named: a Python script, `-m` and a module, a folder with __main__.py, a program.

    A word `python` before them names the interpreter. Otherwise it is `python`, or that of the active environment, or
    the one that runs Adyton. Raises UsageError where there is no such script or interpreter.
    """
    environment = os.environ if environment is None else environment
    word = str(script)
    if python is None and arguments and _PYTHON.fullmatch(Path(word).name) and not word.endswith(_SCRIPTS):
        return find_program(arguments[0], arguments[1:], python=word, environment=environment)
    words = (word, *arguments)
    if word == "-m":
        if not arguments:
            raise UsageError("-m needs a module", check="module", expected="-m MODULE", seen="nothing after -m")
        module = arguments[0]
        return _python_program(words, _plain(module), None, python, environment)
    path = Path(word)
    if path.is_dir():
        main = path / "__main__.py"
        if not main.is_file():
            raise UsageError(
                f"{path} is a folder without a program",
                check="script",
                expected="a file, or a folder with __main__.py",
                seen="a folder without __main__.py",
            )
        return _python_program(words, _plain(path.resolve().name), str(main), python, environment)
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}",
            check="script",
            expected="a file, a folder with __main__.py, or -m MODULE",
            seen="nothing",
            remedy=_remedy(word),
        )
    if path.suffix in _SCRIPTS or python is not None:
        return _python_program(words, _plain(path.stem), word, python, environment)
    if not os.access(path, os.X_OK):
        raise UsageError(
            f"{path} is neither a Python script nor a program that may be run",
            check="script",
            expected="a name that ends in .py, or a file with the permission to be run",
            seen="neither",
            remedy=f"chmod +x {path}, or say with --python which interpreter runs it",
        )
    return Program((str(path.absolute()), *arguments), _plain(path.stem), word, words, None)


def _remedy(word: str) -> str | None:
    found = shutil.which(word) if "/" not in word else None
    return None if found is None else f"name the program by its path: {found}"


def _plain(name: str) -> str:
    """A name that an approval and a shell take as it is: letters lose their accents, and what is odd becomes a dash."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return _ODD.sub("-", letters).strip(".-")[:_MAX_NAME_CHARS] or "program"


def _python_program(
    words: tuple[str, ...],
    name: str,
    file: str | None,
    python: str | Path | None,
    environment: Mapping[str, str],
) -> Program:
    interpreter = interpreter_for(python, environment)
    return Program((interpreter, *words), name, file, words, None if python is None else interpreter)


def interpreter_for(python: str | Path | None, environment: Mapping[str, str]) -> str:
    """The Python of a script: the named one, else that of the active environment, else the one that runs Adyton."""
    if python is not None:
        found = shutil.which(str(python))
        if found is None:
            raise UsageError(
                f"there is no interpreter {python}",
                check="--python",
                expected="a program, by its path or a name on PATH",
                seen=str(python),
            )
        return os.path.abspath(found)  # noqa: PTH100 - a link of an environment stays one
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environment.get(variable)
        if prefix:
            own = Path(prefix, "bin", "python")
            if os.access(own, os.X_OK):
                return sys.executable if _is_own(prefix) else str(own)
    return sys.executable


def _is_own(prefix: str) -> bool:
    return os.path.realpath(prefix) == os.path.realpath(sys.prefix)
