"""Trusted files beyond the budget: whole at the first open, chunk by chunk at every read, never after a failure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from adyton.errors import DigestMismatch, StorageFailed
from adyton.values import Digest
from adyton.vfs.stage import StagedFile
from adyton.vfs.trusted import CHUNK_BYTES, TrustedTree

CONTENT = os.urandom(3 * CHUNK_BYTES + 100)


def _tree(path: Path, content: bytes = CONTENT, *, facts: bool = True) -> TrustedTree:
    size = len(content) if facts else None
    return TrustedTree([StagedFile(str(path), Digest(hashlib.sha256(content).digest()), ("/x",), size)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The host's file."""
    (tmp_path / "large").write_bytes(CONTENT)
    return tmp_path / "large"


def _read(tree: TrustedTree, offset: int, size: int) -> bytes:
    opened = tree.open("0")
    buffer = bytearray(size)
    return bytes(buffer[: tree.read_into(opened, offset, memoryview(buffer))])


@pytest.mark.parametrize("facts", [True, False])
def test_file_reads_as_it_was_listed(path: Path, facts: bool) -> None:
    """At and across the edges of chunks, and at the end; with or without its size in the manifest."""
    tree = _tree(path, facts=facts)
    assert tree.node("0").size == len(CONTENT)
    for offset in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, len(CONTENT) - 1, len(CONTENT), 1 << 30):
        for size in (1, 100, CHUNK_BYTES + 2, len(CONTENT)):
            assert _read(tree, offset, size) == CONTENT[offset : offset + size]


def test_empty_file_is_verified_too(tmp_path: Path) -> None:
    """It has no chunk to check later."""
    (tmp_path / "empty").write_bytes(b"")
    assert _read(_tree(tmp_path / "empty", b""), 0, 10) == b""
    (tmp_path / "empty").write_bytes(b"x")
    with pytest.raises(DigestMismatch):
        _tree(tmp_path / "empty", b"").open("0")


def _put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("at", [0, CHUNK_BYTES, len(CONTENT) - 1])
def test_file_altered_before_the_first_open_is_refused(path: Path, at: int) -> None:
    """By its whole digest, and by name."""
    _put(path, at, bytes([CONTENT[at] ^ 1]))
    with pytest.raises(DigestMismatch, match="large is not the file"):
        _tree(path).open("0")


@pytest.mark.parametrize("size", [0, 10, len(CONTENT) - 1, len(CONTENT) + 1])
def test_file_of_another_length_is_refused(path: Path, size: int) -> None:
    """Cut or extended."""
    os.truncate(path, size)
    with pytest.raises(DigestMismatch):
        _tree(path).open("0")


def test_chunk_altered_between_two_reads_is_refused_and_nothing_is_served_after(path: Path) -> None:
    """What was read before the bad chunk is wiped, and the honest bytes put back do not help."""
    tree = _tree(path)
    assert _read(tree, 0, 100) == CONTENT[:100]
    opened = tree.open("0")
    _put(path, CHUNK_BYTES + 7, b"\0" if CONTENT[CHUNK_BYTES + 7] else b"\1")
    buffer = bytearray(CHUNK_BYTES + 50)
    with pytest.raises(DigestMismatch, match="large"):
        tree.read_into(opened, 0, memoryview(buffer))
    assert not any(buffer)
    path.write_bytes(CONTENT)
    with pytest.raises(DigestMismatch):
        tree.read_into(opened, 0, memoryview(buffer))
    with pytest.raises(DigestMismatch):
        tree.open("0")


def test_file_cut_between_two_reads_is_refused(path: Path) -> None:
    """A short chunk is not what was verified."""
    tree = _tree(path)
    opened = tree.open("0")
    os.truncate(path, CHUNK_BYTES + 5)
    with pytest.raises(DigestMismatch):
        tree.read_into(opened, CHUNK_BYTES, memoryview(bytearray(10)))


def test_file_replaced_after_the_first_open_is_not_read(path: Path) -> None:
    """The open file is held on to."""
    tree = _tree(path)
    assert _read(tree, 5, 5) == CONTENT[5:10]
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(b"other")
    assert _read(tree, 5, 5) == CONTENT[5:10]


@pytest.mark.parametrize("kind", ["device", "folder", "fifo", "missing"])
def test_something_else_in_its_place_is_refused_at_once(path: Path, kind: str) -> None:
    """Also a device that never ends, where the manifest does not say how long the file is."""
    path.unlink()
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises((DigestMismatch, StorageFailed), match="large"):
        _tree(path, facts=False).open("0")


def test_everything_that_would_write_is_refused(path: Path) -> None:
    """The mount is read-only."""
    tree = _tree(path)
    opened = tree.open("0")
    for work in (
        lambda: tree.open("0", truncate=True),
        lambda: tree.create("1", 0o644),
        lambda: tree.write(opened, memoryview(b"x"), 0),
        lambda: tree.truncate("0", 0),
        lambda: tree.resize(opened, 0),
        lambda: tree.remove("0"),
        lambda: tree.rename("0", "1", 0),
        lambda: tree.make_folder("d", 0o755),
        lambda: tree.set_mode("0", 0o777),
    ):
        with pytest.raises(OSError, match="Read-only"):
            work()
    with pytest.raises(FileNotFoundError):
        tree.open("7")
    assert tree.listing("") == [("0", 0o100000)]
    tree.close()
