"""The embedded path in its normal form."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import UsageError
from adyton.pfile.paths import normalise, path_bytes, path_text

CASES = {
    "": "",
    ".": "",
    "/": "/",
    "a": "a",
    "./a//b/": "a/b",
    "a/../b": "b",
    "../a": "../a",
    "../../a": "../../a",
    "a/../../b": "../b",
    "/..": "/",
    "/../a": "/a",
    "//a": "/a",
    "///a/./b/..": "/a",
    "a/..": "",
}


@pytest.mark.parametrize(("path", "expected"), CASES.items())
def test_normalise_known_path_gives_known_form(path: str, expected: str) -> None:
    """The rule, case by case."""
    assert normalise(path) == expected


@given(st.text(alphabet="ab./ü", max_size=40))
def test_normalise_any_path_is_as_posixpath_but_for_two_cases(path: str) -> None:
    """Like `posixpath.normpath`, except that nothing is "" and not ".", and "//x" is "/x"."""
    expected = posixpath.normpath(path) if path else ""
    expected = "" if expected == "." else expected
    if expected.startswith("//"):
        expected = expected[1:]
    assert normalise(path) == expected
    assert normalise(normalise(path)) == normalise(path)


def test_path_of_771_bytes_is_taken_and_of_772_refused() -> None:
    """The field holds 771 bytes and a NUL; bytes count, not characters."""
    assert len(path_bytes("a" * 771)) == 771
    with pytest.raises(UsageError, match="771"):
        path_bytes("a" * 772)
    with pytest.raises(UsageError, match="771"):
        path_bytes("ü" * 386)


def test_path_with_nul_is_refused() -> None:
    """A NUL would end the path early."""
    with pytest.raises(UsageError, match="NUL"):
        path_bytes("a\0b")


def test_path_of_bytes_that_are_no_text_survives() -> None:
    """What the host wrote in another encoding comes back the same."""
    assert path_bytes(path_text(b"a\xff\xfeb")) == b"a\xff\xfeb"
