"""The package is pure: no file, no socket, no clock, no randomness; and its example works."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import adyton.attest
from adyton.attest.appraise import Policy, appraise
from adyton.attest.collateral import Collateral
from adyton.attest.dcap import verify
from adyton.attest.sgx import parse_quote
from tests.support.evidence_factory import MRENCLAVE, REPORT_DATA, Scenario

MODULES = sorted(Path(adyton.attest.__file__).parent.rglob("*.py"))
IMPURE = {
    "os",
    "io",
    "pathlib",
    "socket",
    "subprocess",
    "time",
    "random",
    "secrets",
    "shutil",
    "tempfile",
    "urllib",
    "http",
}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_module_imports_nothing_that_reaches_outside(module: Path) -> None:
    """Imports and calls that would reach the outside are absent."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        assert not {name.split(".")[0] for name in names} & IMPURE
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in {"open", "now", "utcnow", "today", "print", "input", "exit", "generate_private_key"}


def test_example_of_the_package_works() -> None:
    """What the package's docstring shows."""
    built = Scenario().built()
    text = built.collateral.to_json()
    report = verify(parse_quote(built.quote), Collateral.from_json(text), built.roots, built.now)
    policy = Policy.from_dict({"tees": ["sgx"], "measurements": [MRENCLAVE.hex()]})
    assert appraise(report, policy, built.now, report_data=REPORT_DATA).bound
