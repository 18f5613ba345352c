"""Errors as data: whatever is told of one comes back, and whatever is told comes back as an error and no more."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adyton
from adyton import errors
from adyton.check import Check
from adyton.errors import (
    MAX_CHECKS,
    MAX_ENCODED_BYTES,
    MAX_TEXT_CHARS,
    Denied,
    Error,
    FetchFailed,
    KeyReleaseError,
    MountFailed,
    OutOfOrder,
    RunError,
    ScriptFailed,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(adyton.__file__).parent

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
NAMED = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
CHECKS = st.builds(Check, NAMED, st.none() | TEXTS, st.none() | TEXTS, st.booleans(), st.none() | TEXTS)


def _classes(root: type[Error] = Error) -> Iterator[type[Error]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


CLASSES = sorted((kind for kind in _classes() if kind.__module__ == "adyton.errors"), key=lambda kind: kind.__name__)


@st.composite
def made(draw: st.DrawFn) -> Error:
    """An error of any class of the tree, with all that it can carry."""
    kind, message = draw(st.sampled_from(CLASSES)), draw(TEXTS)
    if kind is ScriptFailed:
        return ScriptFailed(message, status=draw(st.integers(1, 255)), remedy=draw(st.none() | TEXTS))
    parts: dict[str, Any] = {"checks": draw(st.lists(CHECKS, max_size=4))}
    if draw(st.booleans()):
        parts = draw(st.fixed_dictionaries({}, optional={"check": NAMED, "expected": TEXTS, "seen": TEXTS}))
    if kind is Denied:
        parts["denials"] = draw(st.lists(TEXTS, max_size=3))
    if kind is FetchFailed:
        parts["status"] = draw(st.none() | st.integers(100, 999))
        parts["retry_after_s"] = draw(st.none() | st.floats(0, 1e6))
    return kind(message, **parts)


NAMES = [
    *("error", "message", "check", "expected", "seen", "remedy", "checks", "name", "ok"),
    *("status", "retry_after_s", "denials", "public", "exit_code", "args", "__class__"),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([kind.__name__ for kind in CLASSES] + ["SystemExit", "json", "Check", "Final", "object"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=8),
    max_leaves=20,
)


@given(made())
def test_error_told_and_made_again_is_the_same(error: Error) -> None:
    """Class, message, every check and what the class itself knows come through a pipe."""
    again = Error.parse(error.to_bytes())
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()
    assert again.details() == error.details()
    assert (again.message, again.exit_code) == (error.message, error.exit_code)
    assert [check.ok for check in again.checks] == [check.ok for check in error.checks]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_comes_back_by_its_name(kind: type[Error]) -> None:
    """No class of the tree turns into another on its way."""
    error = ScriptFailed("m", status=3) if kind is ScriptFailed else kind("m", check="c", expected=1, seen=2)
    again = Error.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(again) is kind
    assert again.details() == error.details()


@given(VALUES)
def test_hostile_document_becomes_an_error_and_no_more(document: object) -> None:
    """Whatever comes: an error of the tree with texts within bounds, that can be told again."""
    error = Error.from_dict(document, unknown=RunError)
    assert type(error) in CLASSES
    assert type(error) is not Error or (isinstance(document, dict) and document["error"] == "Error")
    assert all(isinstance(shown, str) and len(shown) <= MAX_TEXT_CHARS for shown in error.details().values())
    assert len(error.checks) <= MAX_CHECKS
    assert not getattr(error, "public", False)
    assert Error.from_dict(error.to_dict()).to_dict() == error.to_dict()


@given(VALUES)
def test_hostile_document_never_leaves_the_part_of_the_tree_that_is_expected(document: object) -> None:
    """A worker can say that a mount failed, and not that a key was denied."""
    assert isinstance(MountFailed.from_dict(document), MountFailed)
    assert isinstance(KeyReleaseError.from_dict(document, unknown=OutOfOrder), KeyReleaseError)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_error_are_one_without_a_message(raw: bytes) -> None:
    """What no JSON reader takes is said to have no message."""
    assert isinstance(Error.parse(raw, unknown=MountFailed), Error)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[" * 100_000, b"[]", b'"x"', b"\xff", b'{"message": 1}', b" " * (MAX_ENCODED_BYTES + 1) + b"{}"],
    ids=["nothing", "deep", "list", "text", "no-utf-8", "number", "long"],
)
def test_bytes_of_another_form_are_refused_as_the_expected_kind(raw: bytes) -> None:
    """Not even the recursion of a reader, or the length of what it reads, is a stranger's to choose."""
    error = Error.parse(raw, unknown=MountFailed)
    assert type(error) is MountFailed
    assert error.message == "an error came without its message"


def test_lone_surrogates_stay_only_where_a_name_has_them() -> None:
    """A file's name may have any bytes, which Python reads so; no text has the others, and no encoding."""
    error = Error.parse(b'{"message": "\\udc80 \\ud800 \\udfff", "seen": "\\ud83d\\ude00"}')
    assert error.message.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == "\ufffd \ufffd \ufffd"
    assert error.seen == "\N{GRINNING FACE}"


def test_failed_program_is_never_made_one_that_succeeded() -> None:
    """An exit status of 0, or none, in what is told would turn a failure into success."""
    for status in (0, -1, 256, True, "0", None, 1.0):
        error = Error.from_dict({"error": "ScriptFailed", "message": "m", "status": status})
        assert isinstance(error, ScriptFailed)
        assert error.status == 1


def test_what_the_network_may_be_told_is_not_decided_by_a_pipe() -> None:
    """`public` is set where the text is written, and nowhere else."""
    told = Unavailable("m", public=True).to_dict()
    assert "public" not in told
    again = Error.from_dict(told | {"public": True})
    assert isinstance(again, Unavailable)
    assert not again.public


def test_more_than_fits_is_cut_before_it_is_sent() -> None:
    """The longest error still fits what the other side reads; of too many checks those that failed are kept."""
    long = "x" * (2 * MAX_TEXT_CHARS)
    assert len(Error(long, check=long, expected=long, seen=long, remedy=long).to_bytes()) < MAX_ENCODED_BYTES
    checks = [Check(f"{number}", 1, 2, ok=number != MAX_CHECKS) for number in range(MAX_CHECKS + 1)]
    again = Error.parse(Error("m", checks=checks).to_bytes())
    assert [check.name for check in again.failed] == [str(MAX_CHECKS)]
    assert again.check == str(MAX_CHECKS)


def test_parts_and_checks_are_two_ways_to_say_the_same() -> None:
    """The four parts of an error are its first check that failed."""
    parts = Error("m", check="length", expected=1, seen=2, remedy="cut it")
    checks = Error("m", checks=[Check("sign", 0, 0, ok=True), Check("length", 1, 2, ok=False, remedy="cut it")])
    assert parts.details() == checks.details()
    assert parts.checks == parts.failed
    assert checks.failed == (Check("length", 1, 2, ok=False, remedy="cut it"),)
    assert Error("m").checks == ()


def test_error_does_not_change_after_it_was_made() -> None:
    """The parts cannot be set, and no module tries to (the type checker holds the rest)."""
    with pytest.raises(AttributeError):
        setattr(Error("m", remedy="a"), "remedy", "b")  # noqa: B010 (the type checker refuses the plain assignment)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler) or node.name is None:
                continue
            changed = [
                inner.lineno
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == node.name
                and (isinstance(inner.ctx, ast.Store) or inner.attr == "add_note")
            ]
            assert not changed, f"{path}: an exception is changed at lines {changed}"


def test_tree_is_the_classes_of_its_module() -> None:
    """What can be made by name is exactly what the module defines."""
    assert set(vars(errors)["_TREE"].values()) == set(CLASSES)
