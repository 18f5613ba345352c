"""What was copied out of a pinned folder is held to its entries."""

from __future__ import annotations

import pytest

from adyton.errors import IntegrityError
from adyton.roots.entry import Entry
from adyton.roots.judge import judge_staged

ENTRIES = {
    "a": Entry(b"\1" * 48, 7, 5, "g-1"),
    "a.adyton.xattr": Entry(b"\2" * 48, 7, 5, "g-1"),
    "d": Entry(b"", 0, 5, "owner"),
}


def judge(files: dict[str, bytes], folders: set[str]) -> None:
    """Attributes are not copied."""
    judge_staged("in", ENTRIES, files, folders, left_out=lambda path: path.endswith(".adyton.xattr"), now_s=9)


def test_copy_of_everything_is_taken() -> None:
    """Files, and folders that are empty."""
    judge({"a": b"\1" * 48}, {"d"})


@pytest.mark.parametrize(
    ("files", "folders", "what"),
    [
        ({"a": b"\3" * 48}, {"d"}, "a: an older or another version"),
        ({}, {"d"}, "a: missing"),
        ({"a": b"\1" * 48}, set(), "d: missing"),
        ({"a": b"\1" * 48, "b": b"\1" * 48}, {"d"}, "b: is there"),
        ({"a": b"\1" * 48}, {"d", "e"}, "e: is there"),
    ],
)
def test_copy_that_differs_is_refused(files: dict[str, bytes], folders: set[str], what: str) -> None:
    """Whatever the host exchanged between the check and the copy."""
    with pytest.raises(IntegrityError, match="was changed while it was read") as caught:
        judge(files, folders)
    assert caught.value.check == "root of the folder"
    assert what in str(caught.value.seen)
