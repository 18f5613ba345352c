"""Staging: verified copies of trusted files, decrypted copies of inputs, nothing of the host's else."""

from __future__ import annotations

import hashlib
import os
import py_compile
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.errors import DigestMismatch, IntegrityError, MountFailed, WrongPath
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.side_files import LINK_SUFFIX, XATTR_SUFFIX
from adyton.storage.files import encrypt_file
from adyton.values import Digest, Key128
from adyton.vfs import stage
from adyton.vfs.owner import Owner
from adyton.vfs.stage import (
    FIXED_TIME_S,
    StagedFile,
    StagedLinks,
    Staging,
    bytecode_source,
    read_verified,
    stage_encrypted,
)

KEY = Key128(bytes(range(16)))


def _entry(path: Path, *targets: str, facts: bool = True, mtime_s: int | None = None) -> StagedFile:
    content = path.read_bytes()
    digest = Digest(hashlib.sha256(content).digest())
    runs = facts and bool(path.stat().st_mode & 0o111)
    return StagedFile(str(path), digest, targets, len(content) if facts else None, runs, mtime_s)


def _stage(root: Path, *files: StagedFile, jobs: int = 2) -> int:
    root.mkdir(exist_ok=True)
    staging = Staging(str(root), files, jobs=jobs)
    staging.start()
    return staging.finish()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A few files of the host."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "small").write_bytes(b"small")
    (folder / "empty").write_bytes(b"")
    (folder / "large").write_bytes(os.urandom(3_000_001))
    (folder / "tool").write_bytes(b"#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    return folder


@pytest.mark.parametrize("facts", [True, False])
@pytest.mark.parametrize("jobs", [1, 3])
def test_staged_files_are_copies_with_fixed_modes_and_times(tmp_path: Path, host: Path, facts: bool, jobs: int) -> None:
    """Content is the host's verified; modes and times are not the host's."""
    names = ("small", "empty", "large", "tool")
    root = tmp_path / "root"
    done = _stage(root, *(_entry(host / name, f"/a/b/{name}", facts=facts) for name in names), jobs=jobs)
    assert done == sum((host / name).stat().st_size for name in names)
    for name in names:
        target = root / "a/b" / name
        assert target.read_bytes() == (host / name).read_bytes()
        assert target.stat().st_mtime == FIXED_TIME_S
        assert stat.S_IMODE(target.stat().st_mode) == (0o555 if name == "tool" else 0o444)
    assert (root / "a/b").stat().st_mtime == FIXED_TIME_S


@pytest.mark.parametrize("change", ["flip", "cut", "grow"])
@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("facts", [True, False])
def test_altered_file_stops_the_start_with_its_name(
    tmp_path: Path, host: Path, change: str, name: str, facts: bool
) -> None:
    """One bit, one byte less, one byte more."""
    entry = _entry(host / name, "/x", facts=facts)
    content = bytearray((host / name).read_bytes())
    if change == "flip":
        content[len(content) // 2] ^= 1
    elif change == "cut":
        del content[-1]
    else:
        content.append(0)
    (host / name).write_bytes(content)
    with pytest.raises(DigestMismatch) as raised:
        _stage(tmp_path / "root", entry)
    assert str(host / name) in raised.value.message
    assert raised.value.expected == entry.digest.hex()


@pytest.mark.parametrize("put", ["nothing", "folder", "fifo", "dangling"])
def test_file_replaced_by_something_else_stops_the_start(tmp_path: Path, host: Path, put: str) -> None:
    """Missing, a folder, a pipe that nobody writes to (no hang), a link to nowhere: all named."""
    entry = _entry(host / "small", "/x")
    (host / "small").unlink()
    if put == "folder":
        (host / "small").mkdir()
    elif put == "fifo":
        os.mkfifo(host / "small")
    elif put == "dangling":
        (host / "small").symlink_to("nowhere")
    with pytest.raises(MountFailed, match="small cannot be read"):
        _stage(tmp_path / "root", entry)


def test_same_content_at_many_places_is_staged_once(tmp_path: Path, host: Path) -> None:
    """Large files share their memory; each path has the content."""
    (host / "again").write_bytes((host / "large").read_bytes())
    root = tmp_path / "root"
    _stage(root, _entry(host / "large", "/a", "/b"), _entry(host / "again", "/c"))
    assert len({(root / name).stat().st_ino for name in "abc"}) == 1
    assert (root / "c").read_bytes() == (host / "large").read_bytes()


def test_same_content_with_two_times_is_not_shared(tmp_path: Path, host: Path) -> None:
    """Times belong to the manifest's entry."""
    (host / "again").write_bytes((host / "large").read_bytes())
    root = tmp_path / "root"
    _stage(root, _entry(host / "large", "/a", mtime_s=1000), _entry(host / "again", "/b", mtime_s=2000))
    assert ((root / "a").stat().st_mtime, (root / "b").stat().st_mtime) == (1000, 2000)


@pytest.mark.parametrize("facts", [True, False])
def test_cached_bytecode_stays_valid_after_staging(tmp_path: Path, facts: bool) -> None:
    """CPython imports from the cached bytecode and does not compile again."""
    host = tmp_path / "host"
    host.mkdir()
    source = host / "mod.py"
    source.write_text("value = 42\n")
    os.utime(source, (1_234_567_890, 1_234_567_890))
    compiled = host / "compiled"
    py_compile.compile(str(source), str(compiled), doraise=True)
    os.utime(source, (5, 5))
    mtime = 1_234_567_890 if facts else None
    name = f"/__pycache__/mod.{sys.implementation.cache_tag}.pyc"
    root = tmp_path / "root"
    _stage(root, _entry(source, "/mod.py", facts=facts, mtime_s=mtime), _entry(compiled, name, facts=facts))
    command = [sys.executable, "-v", "-c", "import mod; print(mod.value)"]
    environment = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"
    assert f"{root}/__pycache__/mod" in done.stderr
    assert "matches" in done.stderr
    assert "bytecode is stale for 'mod'" not in done.stderr


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/a/__pycache__/m.cpython-311.pyc", "/a/m.py"),
        ("/a/__pycache__/m.cpython-311.opt-1.pyc", "/a/m.py"),
        ("/a/m.pyc", None),
        ("/a/__pycache__/m.txt", None),
        ("/a/__pycache__/m.pyc", None),
    ],
)
def test_bytecode_source_is_found_by_pep_3147(path: str, source: str | None) -> None:
    """The name of the source is in the name of its bytecode."""
    assert bytecode_source(path) == source


def test_many_small_files_are_staged(tmp_path: Path) -> None:
    """More files than one batch holds, in several folders."""
    host = tmp_path / "host"
    host.mkdir()
    entries = []
    for number in range(1000):
        path = host / str(number)
        path.write_bytes(b"%d" % number)
        entries.append(_entry(path, f"/d{number % 9}/{number}"))
    assert _stage(tmp_path / "root", *entries) == sum(len(b"%d" % number) for number in range(1000))
    assert (tmp_path / "root/d3/777").read_bytes() == b"777"


def test_path_that_is_file_and_folder_is_refused(tmp_path: Path, host: Path) -> None:
    """A file at /a and one at /a/b cannot both be."""
    with pytest.raises(MountFailed):
        _stage(tmp_path / "root", _entry(host / "small", "/a"), _entry(host / "large", "/a/b"))


def test_abandoned_staging_leaves_no_worker(tmp_path: Path, host: Path) -> None:
    """Workers end when the start is given up."""
    root = tmp_path / "root"
    root.mkdir()
    staging = Staging(str(root), [_entry(host / "large", "/a")], jobs=2)
    staging.start()
    workers = list(staging._workers.values())
    staging.abandon()
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_read_verified_refuses_other_content_and_too_much(host: Path) -> None:
    """Small trusted files are read through the same check."""
    digest = Digest(hashlib.sha256(b"small").digest())
    assert read_verified(str(host / "small"), digest, most_bytes=10) == b"small"
    with pytest.raises(MountFailed, match="longer"):
        read_verified(str(host / "small"), digest, most_bytes=4)
    (host / "small").write_bytes(b"smalx")
    with pytest.raises(DigestMismatch):
        read_verified(str(host / "small"), digest, most_bytes=10)


def _encrypted(folder: Path, sealed: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        plain = folder.parent / "plain"
        plain.write_bytes(content)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        encrypt_file(plain, folder / name, KEY, path=f"{sealed}/{name}")


def test_encrypted_folder_is_decrypted_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a folder, in folders, with the mount's path sealed in."""
    monkeypatch.chdir(tmp_path)
    files = {"a": b"A" * 100, "d/b": os.urandom(500_000), "d/e/c": b""}
    _encrypted(tmp_path / "in", "in", files)
    (tmp_path / "in/a.gramine.recovery").write_bytes(b"stale")
    assert stage_encrypted("in", str(tmp_path / "root/data"), KEY, jobs=2) == 500_100
    for name, content in files.items():
        assert (tmp_path / "root/data" / name).read_bytes() == content
        assert stat.S_IMODE((tmp_path / "root/data" / name).stat().st_mode) == 0o444
    assert not (tmp_path / "root/data/a.gramine.recovery").exists()


@pytest.mark.parametrize("limit", [2, 100])
def test_planted_folders_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Too many of them, or too deep for a path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "MAX_FOLDERS", limit)
    deep = "in" + ("/" + "d" * 250) * 15
    os.makedirs(deep)
    with pytest.raises(MountFailed, match="encrypted input in/d"):
        stage_encrypted("in", str(tmp_path / ("x" * 200) / ("y" * 200) / "out"), Key128(bytes(16)), jobs=1)


def test_single_encrypted_file_is_decrypted_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount may be one file."""
    monkeypatch.chdir(tmp_path)
    _encrypted(tmp_path / "in", "in", {"a": b"A"})
    assert stage_encrypted("in/a", str(tmp_path / "root/model"), KEY, jobs=1) == 1
    assert (tmp_path / "root/model").read_bytes() == b"A"


@pytest.mark.parametrize("how", ["flip", "swap", "link", "missing"])
def test_tampered_input_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A flipped bit, two files exchanged, a link, a folder that is gone; no plaintext is left of the bad file."""
    monkeypatch.chdir(tmp_path)
    _encrypted(tmp_path / "in", "in", {"a": b"A" * 9000, "b": b"B" * 9000})
    target = tmp_path / "root/data"
    if how == "flip":
        raw = bytearray((tmp_path / "in/b").read_bytes())
        raw[2 * 4096 + 5] ^= 1
        (tmp_path / "in/b").write_bytes(raw)
        with pytest.raises(IntegrityError) as raised:
            stage_encrypted("in", str(target), KEY, jobs=1)
        assert "node 2" in raised.value.message
        assert (target / "b").stat().st_size == 0
    elif how == "swap":
        os.rename("in/a", "in/c")
        os.rename("in/b", "in/a")
        os.rename("in/c", "in/b")
        with pytest.raises(WrongPath):
            stage_encrypted("in", str(target), KEY, jobs=1)
    elif how == "link":
        os.unlink("in/b")
        os.symlink("a", "in/b")
        with pytest.raises(MountFailed, match="in/b"):
            stage_encrypted("in", str(target), KEY, jobs=1)
    else:
        with pytest.raises(MountFailed, match="nowhere"):
            stage_encrypted("nowhere", str(target), KEY, jobs=1)


def _staged_links(folder: Path, content: dict[str, bytes]) -> tuple[Path, StagedLinks]:
    """Seal and stage; the links are not made yet."""
    for name, plain in content.items():
        place = folder / "in" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with ProtectedFile.create(OSFile(place, create=True), KEY, path=f"in/{name}") as file:
            file.write_at(0, plain)
    links = StagedLinks()
    stage_encrypted("in", str(folder / "root/data"), KEY, jobs=1, links=links)
    return folder / "root/data", links


def test_links_of_an_input_are_made_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute and relative ones, dangling ones; attributes and links that were never written are left out."""
    monkeypatch.chdir(tmp_path)
    content = {
        "d/a": b"A",
        f"d/link{LINK_SUFFIX}": b"a",
        f"out{LINK_SUFFIX}": b"/etc/passwd",
        f"empty{LINK_SUFFIX}": b"",
        f"d/a{XATTR_SUFFIX}": b"whatever",
    }
    target, links = _staged_links(tmp_path, content)
    assert sorted(os.listdir(target)) == ["d"]
    links.make(Owner.caller())
    assert sorted(os.listdir(target)) == ["d", "out"]
    assert (os.readlink(target / "out"), (target / "d/link").read_bytes()) == ("/etc/passwd", b"A")
    assert os.lstat(target / "out").st_mtime == os.lstat(target).st_mtime == FIXED_TIME_S


@pytest.mark.parametrize("other", ["d/a", "d"])
def test_link_and_something_else_of_one_name_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Nothing is ever made through a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").mkdir()
    content = {"d/a": b"A", f"{other}{LINK_SUFFIX}": os.fsencode(tmp_path / "victim")}
    _, links = _staged_links(tmp_path, content)
    with pytest.raises(MountFailed, match="File exists"):
        links.make(Owner.caller())
    assert os.listdir(tmp_path / "victim") == []


def test_altered_link_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapped with another, or something that is no link."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IntegrityError, match="no symbolic link"):
        _staged_links(tmp_path, {f"a{LINK_SUFFIX}": b"x\0y"})
    os.rename(f"in/a{LINK_SUFFIX}", f"in/b{LINK_SUFFIX}")
    with pytest.raises(WrongPath):
        stage_encrypted("in", str(tmp_path / "second"), KEY, jobs=1, links=StagedLinks())
