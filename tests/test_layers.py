"""The house has one direction of imports; this test reads them and holds it."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "adyton"

_GROUND = {
    "check",
    "errors",
    "values",
    "untrusted",
    "elf",
    "confined_process",
    "os_failure",
    "atomic_file",
    "capped_read",
    "address",
    "dates",
    "lru",
    "file_lock",
    "typed_document",
    "pack_archive",
}
_PURE = _GROUND | {"pfile", "attest", "manifest"}
MAY_IMPORT: dict[str, set[str]] = {
    "check": set(),
    "errors": {"check"},
    "values": {"errors"},
    "untrusted": {"errors"},
    "os_failure": {"errors"},
    "atomic_file": {"errors", "os_failure"},
    "capped_read": {"errors"},
    "address": {"errors"},
    "dates": {"errors"},
    "typed_document": {"errors", "dates"},
    "pack_archive": {"atomic_file", "capped_read", "errors", "os_failure", "typed_document", "untrusted"},
    "lru": set(),
    "file_lock": {"errors", "os_failure"},
    "elf": set(),
    "confined_process": {"errors"},
    "pfile": _GROUND,
    "attest": _GROUND,
    "manifest": _GROUND,
    "roots": _GROUND | {"pfile"},
    "storage": _GROUND | {"pfile"},
    "image": _PURE | {"storage"},
    "collateral": _GROUND | {"attest"},
    "sim": _GROUND | {"attest"},
    "tee": _GROUND | {"attest", "sim"},
    "keystore": _PURE | {"roots"},
    "release": _PURE | {"tee", "roots"},
    "receipt": _PURE | {"keystore", "release"},
    "keyserver": _PURE | {"collateral", "keystore", "release", "roots", "receipt"},
    "server": _PURE | {"storage", "collateral", "sim", "keystore", "release", "keyserver"},
    "endpoint": _GROUND | {"attest"},
    "vfs": _PURE | {"storage", "roots"},
    "runtime": _PURE | {"storage", "roots", "tee", "endpoint", "vfs", "release", "receipt"},
    "workflow": _PURE
    | {
        "storage",
        "roots",
        "collateral",
        "sim",
        "tee",
        "keystore",
        "release",
        "receipt",
        "keyserver",
        "server",
        "endpoint",
        "image",
        "vfs",
        "runtime",
    },
    "cli": _GROUND | {"manifest", "keystore", "runtime", "workflow"},
}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
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
        for node in ast.walk(_tree(module)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not any(name.split(".")[0] == "torch" for name in names), module


def test_source_has_no_assert_as_a_guard() -> None:
    """`assert` vanishes under -O, so the package raises instead."""
    for module in MODULES:
        tree = _tree(module)
        lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not lines, f"{module}: assert at lines {lines}"


# --- what every module imports, the demo, the tests and the benchmarks included ----------------------------------


@dataclass(frozen=True)
class Import:
    """One import: `module` as far as it is a module's name, and which names of it are used (none: all of it)."""

    module: str
    typing_only: bool
    attributes: frozenset[str] = frozenset()


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for top, base in (("src/adyton", "src"), ("demo", "."), ("tests", "."), ("bench", ".")):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / base).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), _tree(path)


TREES = dict(_trees())
EXTENSIONS = {f"adyton.{path.parent.name}.{path.stem}" for path in PACKAGE.rglob("*.pyi")}
"""Modules written in C."""


def _module_of(dotted: str) -> str:
    """The module of this repository that a dotted name lies in; "" for a name of another package."""
    while dotted and dotted not in TREES and dotted not in EXTENSIONS:
        dotted = dotted.rpartition(".")[0]
    return dotted if dotted in TREES else ""


def _statements(node: ast.AST, *, typing_only: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement below a node, and whether it is for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, typing_only
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _statements(ast.Module(child.body, []), typing_only=True)
            yield from _statements(ast.Module(child.orelse, []), typing_only=typing_only)
        else:
            yield from _statements(child, typing_only=typing_only)


def _attributes(tree: ast.Module) -> dict[str, frozenset[str]]:
    """By name, which attributes of it a file uses; nothing where it uses the name itself as a value."""
    nodes = list(ast.walk(tree))
    names = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    used: dict[str, list[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.setdefault(node.value.id, []).append(node.attr)
    return {name: frozenset(found) for name, found in used.items() if len(found) == names[name]}


def _imports(tree: ast.Module) -> Iterator[Import]:
    attributes = _attributes(tree)
    for statement, typing_only in _statements(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                bound = alias.asname or ("" if "." in alias.name else alias.name)
                yield Import(alias.name, typing_only, attributes.get(bound, frozenset()))
        else:
            module = statement.module or ""
            for alias in statement.names:
                full = f"{module}.{alias.name}"
                if full in TREES or full in EXTENSIONS:
                    yield Import(full, typing_only)
                else:
                    yield Import(module, typing_only, frozenset({alias.name}))


IMPORTS = {name: tuple(_imports(tree)) for name, tree in TREES.items()}


# --- no circles --------------------------------------------------------------------------------------------------


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others (Tarjan's components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph[name]:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_circles_are_found() -> None:
    """A circle of three is found, and one module that imports itself."""
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}, "e": {"a"}}) == [["a", "b", "c"], ["d"]]


def test_no_module_imports_itself_through_others() -> None:
    """No circle of imports, in the package, the demo, the tests and the benchmarks.

    An import inside a function counts: it would only hide the circle. An import under TYPE_CHECKING does not count: it
    never runs, and two modules may name each other's types.
    """
    graph = {name: {item.module for item in items if not item.typing_only} for name, items in IMPORTS.items()}
    known = {name: {_module_of(target) for target in targets} - {""} for name, targets in graph.items()}
    assert _circles(known) == []


# --- who opens sockets -------------------------------------------------------------------------------------------

NETWORK = {
    *("socket", "_socket", "ssl", "_ssl", "socketserver", "http", "urllib", "wsgiref", "smtplib", "ftplib", "xmlrpc"),
    *("h11", "uvicorn", "starlette", "anyio", "urllib3", "requests", "httpx", "aiohttp", "OpenSSL"),
}
"""Libraries that open connections or speak over them."""

PLAIN = {"urllib.parse", "http.HTTPStatus", "ssl.PEM_cert_to_DER_cert", "ssl.DER_cert_to_PEM_cert"}
"""What in them is only text and bytes."""

CONNECTING_CALLS = {
    *("open_connection", "start_server", "create_connection", "create_server", "connect_accepted_socket"),
    *("open_unix_connection", "start_unix_server", "create_unix_connection", "create_unix_server"),
    *("create_datagram_endpoint", "sock_connect", "sock_accept"),
}
"""Calls of asyncio (and of `socket`) that open a connection or listen for one."""

OPENS_SOCKETS = {
    "adyton.image.guest_kernel": "gives a guest its own address, by ioctl on a socket that is never connected",
    "adyton.collateral.http_client": "fetches collateral from the vendors",
    "adyton.endpoint": "both sides of an attested endpoint, and its local doors",
    "adyton.release.client": "asks a key server for keys",
    "adyton.runtime.ingress_process": "listens for the program's clients",
    "adyton.runtime.program_network": "brings up the loopback of the program's own network",
    "adyton.release.tls": "the TLS contexts of the release protocols",
    "adyton.server": "the owner's side: key server, metrics, dashboard",
    "adyton.sim.pcs_server": "a PCS and KDS for simulated platforms",
    "adyton.sim.software_tpm": "the socket of a software TPM",
    "adyton.tee.imds": "asks Azure's host for certificates and TD quotes",
    "adyton.workflow.server_watch": "asks the server of a watched run on loopback",
}
"""Modules and rooms that may use the network, and what for."""

OPENS_DATABASES = {
    "adyton.keystore.database": "the owner's database",
    "adyton.keystore.backup": "a copy of it in a new SQLite file",
}

DATABASE = {"sqlalchemy", "psycopg", "sqlite3"}
QUERIES = {"adyton.keystore": "rows in and out", "adyton.workflow.doctor_server": "reads when the last backup was made"}


def _within(name: str, allowed: Iterable[str]) -> str | None:
    """The entry of a table that a module falls under."""
    return next((entry for entry in allowed if name == entry or name.startswith(f"{entry}.")), None)


def _uses(name: str, libraries: set[str]) -> set[str]:
    """What a module uses of some libraries, by dotted names; what only its annotations name does not count."""
    found: set[str] = set()
    for item in IMPORTS[name]:
        if item.typing_only or item.module.split(".")[0] not in libraries:
            continue
        used = {f"{item.module}.{used}" for used in item.attributes} or {item.module}
        found |= {dotted for dotted in used if _within(dotted, PLAIN) is None}
    return found


def _calls(name: str, wanted: set[str]) -> set[str]:
    nodes = ast.walk(TREES[name])
    return {
        found
        for node in nodes
        if isinstance(node, ast.Call) and (found := getattr(node.func, "attr", getattr(node.func, "id", ""))) in wanted
    }


PRODUCT = sorted(name for name in IMPORTS if name.startswith("adyton."))


def test_only_these_modules_use_the_network() -> None:
    """Whatever opens a socket, or speaks HTTP or TLS, is in the list, and nothing stands in it for nothing."""
    users = {name for name in PRODUCT if _uses(name, NETWORK) or _calls(name, CONNECTING_CALLS)}
    assert {name for name in users if _within(name, OPENS_SOCKETS) is None} == set()
    assert {_within(name, OPENS_SOCKETS) for name in users} == set(OPENS_SOCKETS)


def test_only_the_key_store_uses_a_database() -> None:
    """One room knows SQL, and one module of it opens the owner's database."""
    assert {name for name in PRODUCT if _uses(name, DATABASE) and _within(name, QUERIES) is None} == set()
    opening = {name: _within(name, OPENS_DATABASES) for name in PRODUCT if _calls(name, {"create_engine"})}
    assert [name for name, entry in opening.items() if entry is None] == []
    assert set(opening.values()) == set(OPENS_DATABASES)


# --- the seven rules ---------------------------------------------------------------------------------------------


def _reached(name: str) -> set[str]:
    """Every module of the package that one imports, directly or through others, in its functions too."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            waiting += [_module_of(item.module) for item in IMPORTS.get(found, ()) if not item.typing_only]
    return seen - {""}


RULES = {
    "collateral knows no protocol": ("adyton.collateral", {"adyton.release", "adyton.server"}),
    "collateral knows no keys": ("adyton.collateral", {"adyton.keystore"}),
    "collateral knows no service": ("adyton.collateral", {"adyton.keyserver"}),
    "release fetches nothing": ("adyton.release", {"adyton.collateral"}),
    "release has no database": ("adyton.release", {"adyton.keystore"}),
    "decisions know no sockets": ("adyton.keyserver", set(OPENS_SOCKETS)),
    "the key store knows no service": ("adyton.keystore", {"adyton.keyserver", "adyton.server", "adyton.release"}),
    "appraisal is pure": ("adyton.attest", set(OPENS_SOCKETS) | {"adyton.keystore"}),
    "the manifest is pure": ("adyton.manifest", set(OPENS_SOCKETS) | {"adyton.keystore"}),
    "the file format is pure": ("adyton.pfile", set(OPENS_SOCKETS) | {"adyton.keystore"}),
}


@pytest.mark.parametrize(("room", "unknown"), RULES.values(), ids=RULES)
def test_rooms_do_not_reach_what_they_must_not_know(room: str, unknown: set[str]) -> None:
    """Directly or through other modules: what a room must not know, none of its modules can reach."""
    members = [name for name in PRODUCT if _within(name, {room})]
    assert members
    for name in members:
        assert {other for other in _reached(name) if _within(other, unknown)} == set(), name


def test_ground_floor_imports_only_itself() -> None:
    """The ground floor stands under every room: it imports the standard library, and of Adyton only itself."""
    for name in PRODUCT:
        if name.split(".")[1] in _GROUND:
            outside = {
                item.module for item in IMPORTS[name] if item.module.split(".")[0] not in sys.stdlib_module_names
            }
            assert {
                module for module in outside if module.split(".")[1:2] not in [[known] for known in _GROUND]
            } == set()
