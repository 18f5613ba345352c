"""What a program says of its privacy budget: a small plain file, and nothing else that it puts in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adyton.runtime.privacy_report import MAX_BYTES, NAME, read_report


def test_report_is_read_as_it_is(tmp_path: Path) -> None:
    """Unparsed: its owner's key server judges it."""
    assert read_report(str(tmp_path)) is None
    (tmp_path / NAME).write_bytes(b"x" * MAX_BYTES)
    assert read_report(str(tmp_path)) == b"x" * MAX_BYTES


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "long"])
def test_what_is_no_small_file_is_no_report(tmp_path: Path, kind: str) -> None:
    """The keeper follows no link, waits for no pipe and reads no more than the limit."""
    path = tmp_path / NAME
    if kind == "link":
        (tmp_path / "other").write_bytes(b"{}")
        path.symlink_to("other")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x" * (MAX_BYTES + 1))
    assert read_report(str(tmp_path)) is None
