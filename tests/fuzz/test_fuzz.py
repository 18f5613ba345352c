"""A third of a second of processor time for each parser in `make test`, ten minutes for each in `make test-long`."""

from __future__ import annotations

import ast
import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import adyton
from adyton.errors import Error
from tests.fuzz.harness import fuzz
from tests.fuzz.targets import targets

if TYPE_CHECKING:
    from types import FrameType

SHORT_S: Final = 0.3
LONG_S: Final = float(os.environ.get("ADYTON_FUZZ_S", "600"))
TARGETS: Final = targets()
PACKAGE: Final = Path(adyton.__file__).parent

NO_GOOD_SEED: Final = {"attest-token": "nobody signed it"}
NOT_FUZZED: Final = {
    "adyton.manifest.template.parse_definitions": "words of the command line",
    "adyton.address.parse_listening_address": "a word of the command line",
    "adyton.dates.parse_timestamp": "raises ValueError; its callers, which parse documents, are fuzzed",
    "adyton.keystore.audit_facts.Facts.from_dict": "what the store wrote under a code of its own",
    "adyton.runtime.interfaces.parse_mountinfo": "the kernel's own text",
    "adyton.endpoint.dial.Proxy.parse": "an environment variable of the user's own",
    "adyton.manifest.ingress.parse_ingress": "takes what parse_manifest parsed, whose target covers it",
    "adyton.manifest.egress.parse_egress": "takes what parse_manifest parsed, whose target covers it",
    "adyton.workflow.run.Request.from_json": "what `adyton.run` gives to the interpreter that it starts",
    "adyton.release.grants.parse_granted": "takes what parse_answer parsed",
}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seed_of_a_parser_reaches_it(name: str) -> None:
    """What a target says it covers is called for its seeds, and one of them at least is taken."""
    called: set[str] = set()
    taken = 0

    def watch(frame: FrameType, _event: str, _argument: object) -> None:
        called.add(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}")

    former = sys.gettrace()
    sys.settrace(watch)
    try:
        for seed in TARGETS[name].seeds:
            with contextlib.suppress(Error):
                TARGETS[name].parse(seed)
                taken += 1
    finally:
        sys.settrace(former)
    assert set(TARGETS[name].covers) <= called
    assert taken or name in NO_GOOD_SEED


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_parser_refuses_what_is_mutated_and_no_more(name: str) -> None:
    """The same inputs each time."""
    report = fuzz(TARGETS[name], SHORT_S, seed=1)
    assert report.tried > 3


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_parser_refuses_what_is_mutated_for_long_and_no_more(name: str) -> None:
    """Other inputs each time; a failure names the seed and shows the input. ADYTON_FUZZ_S sets the seconds for each."""
    seed = int(os.environ.get("ADYTON_FUZZ_SEED", "0")) or secrets.randbits(32)
    try:
        report = fuzz(TARGETS[name], LONG_S, seed)
    except AssertionError as error:
        raise AssertionError(f"ADYTON_FUZZ_SEED={seed}: {error}") from error
    print(f"{name}: {report.tried} inputs, {report.taken} taken, slowest {report.slowest_s:.3f} s")


def _parsers() -> set[str]:
    """Public functions and methods of the package that turn somebody's bytes or text into values, by their names."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        module = "adyton." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("parse_"):
                found.add(f"{module}.{node.name}")
            elif isinstance(node, ast.ClassDef):
                found |= {
                    f"{module}.{node.name}.{inner.name}"
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef) and inner.name in ("parse", "from_dict", "from_json")
                }
    return found


def test_every_parser_of_the_package_is_fuzzed() -> None:
    """A new one joins `tests/fuzz/targets.py`, or says here why strangers do not reach it."""
    covered = {name for target in TARGETS.values() for name in target.covers}
    assert _parsers() - covered - set(NOT_FUZZED) == set()
