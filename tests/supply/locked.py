"""The lock, read: exact versions and hashes, by the marker of the interpreter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER: Final = REPOSITORY / "requirements"
FILES: Final = ("lock.txt", "run.txt", "torch.txt", "torch-cpu.txt", "cuda.txt")
PYTHONS: Final = ("3.11.2", "3.12.0", "3.13.5")


@dataclass(frozen=True)
class Locked:
    """One line of a lock: the requirement, and the hashes of the files that may be installed for it."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The project's canonical name."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The version, where it is pinned exactly."""
        (only,) = self.requirement.specifier
        assert only.operator == "=="
        assert not only.version.endswith(".*")
        return only.version


def read(path: Path) -> Iterator[Locked]:
    """Every requirement of a lock; a line of any other form is an error."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in text.splitlines():
        words, *hashes = line.split(" --hash=")
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", one) for one in hashes), line
        yield Locked(Requirement(words.strip()), tuple(one.strip() for one in hashes))


def environment(python: str) -> dict[str, str]:
    """The markers' values of a Linux machine with this CPython."""
    return {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }


def for_python(python: str, *files: str) -> dict[str, Locked]:
    """What the files hold for one Python, by name; one version each."""
    found: dict[str, Locked] = {}
    for file in files:
        for row in read(FOLDER / file):
            marker = row.requirement.marker
            if marker is None or marker.evaluate(environment(python)):
                assert row.name not in found, f"{row.name} twice for Python {python}"
                found[row.name] = row
    return found
