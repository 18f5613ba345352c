"""The lock between processes: one holder, free again when the block ends, and never through a link."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.errors import StorageFailed
from adyton.file_lock import file_lock


def test_second_holder_is_told_and_the_first_one_frees_it(tmp_path: Path) -> None:
    """Without waiting, who comes second does not have it; an error in the block frees it, too."""

    def fail() -> None:
        with file_lock(tmp_path) as first, file_lock(tmp_path, wait=False) as second:
            assert (first, second) == (True, False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with file_lock(tmp_path, wait=False) as again:
        assert again


def test_lock_file_is_made_private_and_never_through_a_link(tmp_path: Path) -> None:
    """A link in the lock's place would make a file somewhere else."""
    with file_lock(tmp_path / "lock", create=True) as held:
        assert held
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageFailed), file_lock(tmp_path / "link", create=True):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_lock_of_what_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """The folder is named."""
    with pytest.raises(StorageFailed, match="none"), file_lock(tmp_path / "none"):
        pass
