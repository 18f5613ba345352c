"""Files of strangers: so many bytes at most, whatever the file is, and secrets from private files alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adyton.capped_read import read_capped, read_prefix, read_private_file
from adyton.errors import ManifestError, StorageFailed, StoreError, UsageError


def test_file_at_the_cap_is_read_and_one_above_it_is_refused(tmp_path: Path) -> None:
    """The cap is the last size that is allowed."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8)
    assert read_capped(file, 8, "document") == b"x" * 8
    assert read_prefix(file, 3) == b"xxx"
    with pytest.raises(UsageError, match="document is longer than 7 bytes"):
        read_capped(file, 7, "document")


def test_device_without_end_is_refused() -> None:
    """The cap holds where the file says that it is empty."""
    with pytest.raises(UsageError, match="longer"):
        read_capped(Path("/dev/zero"), 1 << 16, "document")


def test_missing_file_is_unavailable_and_says_why(tmp_path: Path) -> None:
    """The error of the operating system is the cause, for callers that treat a missing file apart."""
    for read in (read_capped, lambda path, _, what: read_private_file(path, what)):
        with pytest.raises(StorageFailed, match="No such file") as caught:
            read(tmp_path / "none", 8, "document")
        assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_folder_is_no_file(tmp_path: Path) -> None:
    """A folder is refused, and no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageFailed):
        read_capped(tmp_path, 8, "document")
    with pytest.raises(StoreError):
        read_private_file(tmp_path, "secret")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.timeout(20)
def test_pipe_is_not_waited_for_where_a_file_must_be(tmp_path: Path) -> None:
    """A pipe that nobody writes to would hold its reader for ever."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ManifestError, match="is no file"):
        read_capped(tmp_path / "pipe", 8, "list", unreadable=ManifestError, regular_only=True)
    with pytest.raises(StoreError, match="open to others"):
        read_private_file(tmp_path / "pipe", "secret")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_secret_that_others_have_any_right_to_is_refused(tmp_path: Path, mode: int) -> None:
    """The remedy names the file, and the secret is not shown."""
    file = tmp_path / "key"
    file.write_bytes(b"secret bytes")
    file.chmod(mode)
    with pytest.raises(StoreError, match="open to others") as caught:
        read_private_file(file, "key file")
    assert caught.value.remedy == f"chmod 600 {file}"
    assert "secret bytes" not in str(caught.value.details())
    file.chmod(0o600)
    assert read_private_file(file, "key file") == b"secret bytes"
    with pytest.raises(StoreError, match="longer than 4"):
        read_private_file(file, "key file", limit_bytes=4)


def test_secret_through_a_pipe_only_where_pipes_are_meant() -> None:
    """`--key-file <(command)` hands over a pipe. At most one byte more than the cap leaves it."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"0123456789")
        os.close(writing)
        path = Path(f"/proc/self/fd/{reading}")
        with pytest.raises(UsageError, match="longer than 4"):
            read_private_file(path, "key file", limit_bytes=4, refuse=UsageError, pipes=True)
        assert os.read(reading, 100) == b"56789"
    finally:
        os.close(reading)
