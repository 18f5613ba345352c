"""The dependencies are exactly what is imported, and what runs beside a program is exactly what is measured."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adyton.runtime.identity import PACKAGES
from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PEERS: Final = {"sevsnpmeasure"}
"""Other tools that a test compares with where they are installed, and else is skipped by name."""

NOT_IMPORTED: Final = {
    "jsonschema": "cyclonedx-python-lib validates with it",
    "psycopg": "SQLAlchemy loads it by a store's URL",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
}
PAGE: Final = {"gradio", "gradio-client"}
"""What requirements/page.txt is made of: Gradio, and its client, which it brings."""
PROGRAMS: Final = {"lint": {"ruff", "mypy"}, "docs": {"mkdocs"}}
PROJECT: Final = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def canonical(requirements: Iterable[str]) -> set[str]:
    """The names that are required."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


DEPENDENCIES: Final = canonical(PROJECT["dependencies"])
EXTRAS: Final = {name: canonical(lines) for name, lines in PROJECT["optional-dependencies"].items()}


class Imports(ast.NodeVisitor):
    """Top-level names that a module loads when it runs: not those for the type checker alone."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        """Leave out what stands under TYPE_CHECKING."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        """`import a.b`."""
        self.names |= {alias.name.split(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from a.b import c`."""
        if node.level == 0 and node.module:
            self.names.add(node.module.split(".")[0])

    def visit_Call(self, node: ast.Call) -> None:
        """`importlib.import_module("a.b")`, and pytest's own for what may be missing."""
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0] if node.args else None
        if name in ("import_module", "importorskip") and isinstance(first, ast.Constant):
            self.names.add(str(first.value).split(".")[0])
        self.generic_visit(node)


def modules(*folders: str) -> Iterator[Path]:
    """Every module below these folders of the repository."""
    for folder in folders:
        yield from (REPOSITORY / folder).rglob("*.py")


def imported(*folders: str) -> set[str]:
    """The distributions that these folders import; ours, and the standard library's, left out."""
    found = Imports()
    for path in modules(*folders):
        found.visit(ast.parse(path.read_text(encoding="utf-8")))
    ours = {"adyton", "adyton_planted", "tests", "demo", "bench"} | {path.stem for path in modules("examples")}
    known = packages_distributions()
    names = found.names - sys.stdlib_module_names - ours
    return {canonicalize_name(project) for name in names for project in known.get(name, [name])}


def test_dependencies_are_what_the_package_imports() -> None:
    """Nothing more, nothing less, but for the extra that counts privacy budgets."""
    assert imported("src") == DEPENDENCIES | EXTRAS["dp"]
    assert EXTRAS["dp"] == {"dp-accounting"}


def test_test_dependencies_are_what_tests_import() -> None:
    """What tests import is the project's own, an example's, or of the extra `test`, which has nothing else."""
    needed = imported("tests", "bench", "tools") - PEERS
    assert needed <= DEPENDENCIES | EXTRAS["test"] | EXTRAS["demo"] | EXTRAS["dp"]
    assert EXTRAS["test"] - set(NOT_IMPORTED) <= needed | imported("examples")
    assert EXTRAS["lint"] == PROGRAMS["lint"]
    assert EXTRAS["docs"] == PROGRAMS["docs"]
    assert EXTRAS["postgres"] == {"psycopg"}


def test_demo_dependencies_are_what_demo_and_examples_name() -> None:
    """Libraries are imported; packages that only carry data (weights, names of classes) are named.

    The clients of served examples are of the extra `test`, and those of the web page of its own environment.
    """
    needed = imported("demo", "examples")
    assert needed <= DEPENDENCIES | EXTRAS["demo"] | EXTRAS["test"] | PAGE
    assert needed >= PAGE
    text = "".join(path.read_text(encoding="utf-8") for path in modules("demo", "examples"))
    for name in EXTRAS["demo"] - needed:
        assert name in text or name.replace("-", "_") in text, name


def test_measured_packages_are_dependencies() -> None:
    """What is measured is declared, here or by what is declared; tests/unit/runtime/test_identity.py has the rest."""
    known = packages_distributions()
    measured = {canonicalize_name(name) for package in PACKAGES for name in known[package]}
    brought = {name for top in DEPENDENCIES for name in canonical(distribution(top).requires or ())}
    assert measured <= DEPENDENCIES | brought
