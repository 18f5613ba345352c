"""The house has one direction of imports; this test reads them and holds it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "adyton"

_GROUND = {
    "errors",
    "values",
    "untrusted",
    "elf",
    "confined_process",
    "os_failure",
    "atomic_file",
    "capped_read",
    "address",
    "rfc3339",
    "recent",
    "file_lock",
    "typed_document",
}
_PURE = _GROUND | {"pfile", "attest", "manifest"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "values": {"errors"},
    "untrusted": {"errors"},
    "os_failure": {"errors"},
    "atomic_file": {"errors", "os_failure"},
    "capped_read": {"errors"},
    "address": {"errors"},
    "rfc3339": {"errors"},
    "typed_document": {"errors", "rfc3339"},
    "recent": set(),
    "file_lock": {"errors", "os_failure"},
    "elf": set(),
    "confined_process": {"errors"},
    "pfile": _GROUND,
    "attest": _GROUND,
    "manifest": _GROUND,
    "storage": _GROUND | {"pfile"},
    "collateral": _GROUND | {"attest"},
    "sim": _GROUND | {"attest"},
    "tee": _GROUND | {"attest", "sim"},
    "keystore": _PURE,
    "release": _PURE | {"keystore", "tee"},
    "keyserver": _PURE | {"collateral", "keystore", "release"},
    "server": _PURE | {"storage", "collateral", "sim", "keystore", "release", "keyserver"},
    "vfs": _PURE | {"storage"},
    "runtime": _PURE | {"storage", "tee", "vfs", "release"},
    "cli": _PURE
    | {"storage", "collateral", "sim", "tee", "keystore", "release", "keyserver", "server", "vfs", "runtime"},
}


def _room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "adyton":
                names = [f"adyton.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{module}: relative import at line {node.lineno}")
        found |= {name.split(".")[1] for name in names if name.startswith("adyton.")}
    return found


ENTRY_POINTS = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path not in ENTRY_POINTS)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_rooms_below_its_own(module: Path) -> None:
    """Every module imports its own room and those below it."""
    room = _room_of(module)
    allowed = MAY_IMPORT[room] | {room, "__version__"}
    assert _imported_rooms(module) <= allowed


def test_package_never_imports_torch() -> None:
    """The package itself never imports torch."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not any(name.split(".")[0] == "torch" for name in names), module


def test_source_has_no_assert_as_a_guard() -> None:
    """`assert` vanishes under -O, so the package raises instead."""
    for module in MODULES:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not lines, f"{module}: assert at lines {lines}"
