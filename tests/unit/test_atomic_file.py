"""Files that are written whole or not at all: the old one or the new one, never a part, never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from adyton import atomic_file
from adyton.atomic_file import atomic_target, replace_private_file, write_file, write_private_file
from adyton.errors import StorageFailed, TargetExists


@pytest.fixture(params=["nameless", "named"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With files that have no name yet, and on a file system that has none of them."""
    if request.param == "named":
        monkeypatch.setattr(atomic_file, "_open_nameless", lambda *_: None)
    return str(request.param)


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    """An error while the content is made changes nothing."""
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def write_half() -> None:
        with atomic_target(target, force=True) as fd:
            os.write(fd, b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """Without force, a file that somebody else made while this one was written stays as it is."""
    target = tmp_path / "target"

    def write_late() -> None:
        with atomic_target(target, force=False) as fd:
            os.write(fd, b"late")
            target.write_bytes(b"first")

    with pytest.raises(TargetExists):
        write_late()
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


def test_link_at_the_target_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """What a link leads to is not touched."""
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "target").symlink_to("other")
    write_file(tmp_path / "target", b"new")
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "other").read_bytes() == b"other"


@pytest.mark.parametrize("write", [write_private_file, replace_private_file])
def test_private_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path, write: object) -> None:
    """The mode is 0600 from the first moment on, also where an open file is replaced."""
    before = os.umask(0)
    try:
        if write is replace_private_file:
            (tmp_path / "key").write_bytes(b"old")
            replace_private_file(tmp_path / "key", b"secret")
        else:
            write_private_file(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"


@pytest.mark.parametrize("there", ["file", "dangling link"])
def test_new_private_file_never_replaces_what_is_there(tmp_path: Path, there: str) -> None:
    """A key that is there stays, and a link that leads nowhere is not written through."""
    path = tmp_path / "key"
    if there == "file":
        path.write_bytes(b"old")
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(StorageFailed, match="exists already"):
        write_private_file(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert path.is_symlink() or path.read_bytes() == b"old"


def test_private_file_makes_no_folder(tmp_path: Path) -> None:
    """A folder for secrets is made by who knows its mode."""
    with pytest.raises(StorageFailed, match="No such file"):
        write_private_file(tmp_path / "missing" / "key", b"secret")
    assert not list(tmp_path.iterdir())
