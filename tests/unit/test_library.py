"""`import adyton`: which names it gives, that they stay functions, and that it loads nothing by itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import adyton

SOURCE = Path(adyton.__file__)


def _fresh(code: str) -> Any:
    """What Python prints as JSON that has imported nothing of Adyton's before."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_names_are_those_that_type_checkers_see() -> None:
    """The table of lazy names and the imports for type checkers say the same."""
    seen: dict[str, str] = {}
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adyton."):
            seen |= {alias.asname or alias.name: node.module for alias in node.names}
    assert {name: getattr(adyton, name).__module__ for name in adyton.__all__ if name != "__version__"} == seen
    assert set(adyton.__all__) <= set(dir(adyton))


def test_no_name_is_a_module_of_the_package() -> None:
    """Importing adyton.x.y would put the module x in the place of a function x."""
    modules = {found.name for found in pkgutil.iter_modules([str(SOURCE.parent)])}
    assert modules & set(adyton.__all__) == set()


def test_functions_stay_functions_when_every_module_was_imported() -> None:
    """After all modules of the package were imported, each name is still its function or its result."""
    code = """
import importlib, json, pkgutil
import adyton
for found in pkgutil.walk_packages(adyton.__path__, "adyton."):
    if not found.name.endswith(("__main__", "._launcher", "._init")):  # the last two are programs, built as C parts are
        importlib.import_module(found.name)
names = [name for name in adyton.__all__ if name != "__version__"]
print(json.dumps({name: [callable(getattr(adyton, name)), getattr(adyton, name).__name__] for name in names}))
"""
    found = _fresh(code)
    assert found == {name: [True, name] for name in adyton.__all__ if name != "__version__"}


def test_import_alone_loads_nothing() -> None:
    """A protected start, and whatever imports one module, must not pay for the functions."""
    loaded = _fresh(
        "import sys; before = set(sys.modules); import adyton, json; adyton.__version__\n"
        "print(json.dumps(sorted(name for name in set(sys.modules) - before if name.startswith('adyton'))))"
    )
    assert loaded == ["adyton"]


def test_unknown_name_is_an_attribute_error() -> None:
    """As for every module."""
    with pytest.raises(AttributeError, match="no attribute 'protekt'"):
        adyton.protekt  # noqa: B018


def test_results_are_frozen_and_say_themselves_as_a_dictionary() -> None:
    """Nobody changes a result, and each has `to_dict`."""
    results = [found for name in adyton.__all__ if inspect.isclass(found := getattr(adyton, name))]
    assert len(results) > 10
    for result in results:
        assert dataclasses.is_dataclass(result)
        assert result.__dataclass_params__.frozen, result  # type: ignore[attr-defined]
        assert callable(getattr(result, "to_dict", None)), result


def test_functions_are_documented_and_typed() -> None:
    """Each parameter has a type, and each function says what it raises or returns."""
    for name in adyton.__all__:
        function = getattr(adyton, name)
        if inspect.isfunction(function):
            assert function.__doc__, name
            assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values()), name
