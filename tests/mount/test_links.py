"""Symbolic links and `user.` attributes in a mounted encrypted folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from adyton.pfile.side_files import LINK_SUFFIX, XATTR_SUFFIX
from adyton.vfs import syscalls
from tests.mount.served import Served, serve

pytestmark = pytest.mark.mount


def _refused(work: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError) as raised:
        work()
    assert raised.value.errno == number, raised.value


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("target", ["a", "../b", "/etc/passwd", "nowhere", ".", "ü/ñ", "x" * 4095])
def test_link_leads_where_it_was_made_to_lead(served: Served, target: str) -> None:
    """Relative, absolute, out of the mount, dangling, very long: only the target's text is kept. It is sealed."""
    link = served.top / "link"
    os.symlink(target, link)
    assert os.readlink(link) == target
    assert link.is_symlink()
    assert os.lstat(link).st_size == len(os.fsencode(target))
    assert [(entry.name, entry.is_symlink()) for entry in os.scandir(served.top)] == [("link", True)]
    assert os.listdir(served.store) == ["link" + LINK_SUFFIX]
    assert served.unmount() == 0
    assert os.fsencode(target) not in (served.store / f"link{LINK_SUFFIX}").read_bytes() or len(target) < 3
    assert served.decrypted("link" + LINK_SUFFIX) == os.fsencode(target)


def test_link_to_a_file_and_to_a_folder_is_followed(served: Served) -> None:
    """Reads, writes and listings go through it; O_NOFOLLOW does not."""
    (served.top / "d").mkdir()
    (served.top / "d/a").write_text("A")
    os.symlink("d", served.top / "folder")
    os.symlink("folder/a", served.top / "file")
    assert (served.top / "folder/a").read_text() == "A"
    (served.top / "file").write_text("B")
    assert (served.top / "d/a").read_text() == "B"
    assert os.listdir(served.top / "folder") == ["a"]
    assert (served.top / "file").resolve() == served.top / "d/a"
    _refused(lambda: os.open(served.top / "file", os.O_RDONLY | os.O_NOFOLLOW), errno.ELOOP)
    _refused(lambda: os.rmdir(served.top / "folder"), errno.ENOTDIR)
    (served.top / "folder").unlink()
    assert (served.top / "d/a").read_text() == "B"


def test_links_stay_over_runs(tmp_path: Path) -> None:
    """And do in a mount that is only read."""
    first = serve(tmp_path)
    try:
        (first.top / "a").write_text("A")
        os.symlink("a", first.top / "link")
        first.unmount()
        second = serve(tmp_path)
        try:
            assert (second.top / "link").read_text() == "A"
            assert os.readlink(second.top / "link") == "a"
        finally:
            second.destroy()
    finally:
        first.destroy()


def test_loop_of_links_is_an_error_and_no_hang(served: Served) -> None:
    """As everywhere."""
    os.symlink("b", served.top / "a")
    os.symlink("a", served.top / "b")
    _refused(lambda: (served.top / "a").read_text(), errno.ELOOP)


def test_name_that_is_taken_is_refused(served: Served) -> None:
    """By a file, a folder or another link; and a link's name is taken for them."""
    (served.top / "file").write_text("A")
    (served.top / "folder").mkdir()
    os.symlink("file", served.top / "link")
    for name in ("file", "folder", "link"):
        _refused(partial(os.symlink, "x", served.top / name), errno.EEXIST)
    _refused(lambda: (served.top / "link").mkdir(), errno.EEXIST)
    _refused(lambda: os.open(served.top / "link", os.O_CREAT | os.O_EXCL), errno.EEXIST)


@pytest.mark.parametrize("source", ["file", "link", "folder"])
@pytest.mark.parametrize("target", ["file", "link", "folder", "nothing"])
def test_rename_of_and_over_links(served: Served, source: str, target: str) -> None:
    """Every kind over every kind, as rename(2) has it."""

    def make(name: str, kind: str) -> None:
        if kind == "file":
            (served.top / name).write_text(name)
        elif kind == "link":
            os.symlink(name + "-target", served.top / name)
        elif kind == "folder":
            (served.top / name).mkdir()

    make("one", source)
    make("two", target)
    if target != "nothing" and (source == "folder") != (target == "folder"):
        number = errno.EISDIR if target == "folder" else errno.ENOTDIR
        _refused(lambda: os.rename(served.top / "one", served.top / "two"), number)
        return
    os.rename(served.top / "one", served.top / "two")
    assert os.listdir(served.top) == ["two"]
    if source == "link":
        assert os.readlink(served.top / "two") == "one-target"
    elif source == "file":
        assert (served.top / "two").read_text() == "one"
    else:
        assert (served.top / "two").is_dir()
    assert os.listdir(served.store) == ["two" + (LINK_SUFFIX if source == "link" else "")]
    assert served.events() == ""


def test_rename_flags_hold_for_links(served: Served) -> None:
    """NOREPLACE refuses, EXCHANGE swaps two links. A link and a file cannot change places in one step: EINVAL."""
    os.symlink("A", served.top / "a")
    os.symlink("B", served.top / "b")
    (served.top / "file").write_text("F")
    top = str(served.top)

    def rename(old: str, new: str, flags: int) -> None:
        syscalls.rename(-1, f"{top}/{old}", -1, f"{top}/{new}", flags)

    _refused(lambda: rename("a", "b", syscalls.RENAME_NOREPLACE), errno.EEXIST)
    _refused(lambda: rename("a", "file", syscalls.RENAME_NOREPLACE), errno.EEXIST)
    _refused(lambda: rename("a", "file", syscalls.RENAME_EXCHANGE), errno.EINVAL)
    rename("a", "b", syscalls.RENAME_EXCHANGE)
    assert (os.readlink(served.top / "a"), os.readlink(served.top / "b")) == ("B", "A")
    assert (served.top / "file").read_text() == "F"


def test_links_move_with_their_folder(served: Served) -> None:
    """Their new paths are sealed in, as for files."""
    (served.top / "a/b").mkdir(parents=True)
    os.symlink("../x", served.top / "a/b/link")
    os.rename(served.top / "a", served.top / "z")
    assert os.readlink(served.top / "z/b/link") == "../x"
    shutil.rmtree(served.top / "z")
    assert os.listdir(served.store) == []


def test_times_of_a_link_itself_can_be_set(served: Served) -> None:
    """As `cp -a` and `tar` do; its mode cannot."""
    (served.top / "a").write_text("A")
    os.symlink("a", served.top / "link")
    before = os.stat(served.top / "a").st_mtime
    os.utime(served.top / "link", (5, 6), follow_symlinks=False)
    assert os.lstat(served.top / "link").st_mtime == 6
    assert os.stat(served.top / "a").st_mtime == before


@pytest.mark.parametrize("suffix", [LINK_SUFFIX, XATTR_SUFFIX])
def test_reserved_names_are_refused_and_said(served: Served, suffix: str) -> None:
    """A program cannot make a file that would be taken for a link, and does not see one."""
    (served.top / "a").write_text("A")
    for work in (
        lambda: (served.top / f"x{suffix}").write_text("x"),
        lambda: (served.top / f"x{suffix}").mkdir(),
        lambda: os.symlink("a", served.top / f"x{suffix}"),
        lambda: os.rename(served.top / "a", served.top / f"x{suffix}"),
    ):
        _refused(work, errno.EACCES)
    assert "are Adyton's own: take another" in served.events()
    os.symlink("a", served.top / "link")
    os.setxattr(served.top / "a", "user.a", b"1")
    assert not (served.top / f"link{suffix}").exists()
    assert not (served.top / f"a{suffix}").exists()
    assert sorted(os.listdir(served.top)) == ["a", "link"]


def test_link_that_was_never_written_is_no_link(tmp_path: Path) -> None:
    """A run that is killed between the making of the link's file and its first commit leaves an empty one."""
    from adyton.pfile.backing import OSFile
    from adyton.pfile.file import ProtectedFile
    from tests.mount.served import KEY

    (tmp_path / "store").mkdir()
    path = f"link{LINK_SUFFIX}"
    ProtectedFile.create(OSFile(tmp_path / "store" / path, create=True), KEY, path=f"enc/{path}").close()
    served = serve(tmp_path)
    try:
        assert not os.path.lexists(served.top / "link")
        assert "not yet written" in served.events()
        os.symlink("a", served.top / "link")
        assert os.readlink(served.top / "link") == "a"
    finally:
        served.destroy()


@pytest.mark.parametrize("winner", ["link-over-file", "file-over-link"])
def test_rename_that_was_killed_between_its_two_steps(tmp_path: Path, winner: str) -> None:
    """Both the link's file and the file are there: the link counts, so what is seen is whole, and goes as one."""
    first = serve(tmp_path)
    try:
        (first.top / "name").write_text("file")
        shutil.copy(first.store / "name", tmp_path / "kept")
        (first.top / "name").unlink()
        os.symlink("a", first.top / "name")
        first.unmount()
    finally:
        first.destroy()
    shutil.copy(tmp_path / "kept", tmp_path / "store/name")
    served = serve(tmp_path)
    try:
        assert os.listdir(served.top) == ["name"]
        assert os.readlink(served.top / "name") == "a"
        if winner == "link-over-file":
            (served.top / "name").unlink()
            assert not os.path.lexists(served.top / "name")
            assert os.listdir(served.store) == []
        else:
            (served.top / "new").write_text("new")
            os.rename(served.top / "new", served.top / "name")
            assert (served.top / "name").read_text() == "new"
            assert os.listdir(served.store) == ["name"]
    finally:
        served.destroy()


# ---------------------------------------------------------------- attributes


def test_attributes_of_files_and_folders(served: Served) -> None:
    """Set, read, list, replace, remove; the flags; what is not `user.`; links have none of their own."""
    path = served.top / "a"
    path.write_text("A")
    (served.top / "d").mkdir()
    os.symlink("a", served.top / "link")
    for each in (path, served.top / "d", served.top):
        os.setxattr(each, "user.one", b"1")
        os.setxattr(each, "user.zero", b"")
        os.setxattr(each, "user.one", b"2", os.XATTR_REPLACE)
        assert os.listxattr(each) == ["user.one", "user.zero"]
        assert (os.getxattr(each, "user.one"), os.getxattr(each, "user.zero")) == (b"2", b"")
        _refused(partial(os.setxattr, each, "user.one", b"", os.XATTR_CREATE), errno.EEXIST)
        _refused(partial(os.setxattr, each, "user.new", b"", os.XATTR_REPLACE), errno.ENODATA)
        _refused(partial(os.removexattr, each, "user.new"), errno.ENODATA)
        _refused(partial(os.getxattr, each, "user.new"), errno.ENODATA)
        os.removexattr(each, "user.one")
        assert os.listxattr(each) == ["user.zero"]
    assert os.getxattr(served.top / "link", "user.zero") == b""
    _refused(lambda: os.setxattr(served.top / "link", "user.x", b"", follow_symlinks=False), errno.EPERM)
    for name in ("trusted.x", "security.x"):
        _refused(partial(os.setxattr, path, name, b""), errno.EOPNOTSUPP)
    os.removexattr(path, "user.zero")
    assert not (served.store / f"a{XATTR_SUFFIX}").exists()
    assert "bug" not in served.events()


def test_attributes_are_limited(served: Served) -> None:
    """The name to 255 bytes, a value to 64 KiB, all together to 48 KiB; what was there before stays."""
    path = served.top / "a"
    path.write_text("A")
    os.setxattr(path, "user.a", b"1" * 40_000)
    _refused(lambda: os.setxattr(path, "user.b", b"1" * 10_000), errno.ENOSPC)
    _refused(lambda: os.setxattr(path, "user.b", b"1" * 65_537), errno.E2BIG)
    _refused(lambda: os.setxattr(path, "user." + "b" * 251, b""), errno.ERANGE)
    os.setxattr(path, "user." + "b" * 250, b"")
    assert os.getxattr(path, "user.a") == b"1" * 40_000


def test_attributes_follow_a_rename_and_end_with_their_file(tmp_path: Path) -> None:
    """Over runs. A file that is made under the name later has none, and neither has one that is renamed to it."""
    first = serve(tmp_path)
    try:
        (first.top / "d").mkdir()
        for name in ("a", "b", "c", "d"):
            (first.top / name).write_text(name) if name != "d" else None
            os.setxattr(first.top / name, "user.name", name.encode())
        (first.top / "plain").write_text("plain")
        first.unmount()
    finally:
        first.destroy()
    second = serve(tmp_path)
    try:
        top = second.top

        def attributes(name: str) -> dict[str, bytes]:
            return {each: os.getxattr(top / name, each) for each in os.listxattr(top / name)}

        os.rename(top / "a", top / "b")
        assert attributes("b") == {"user.name": b"a"}
        os.rename(top / "d", top / "e")
        assert attributes("e") == {"user.name": b"d"}
        (top / "a").write_text("new")
        (top / "d").mkdir()
        assert (attributes("a"), attributes("d")) == ({}, {})
        os.rename(top / "plain", top / "c")
        assert attributes("c") == {}
        syscalls.rename(-1, str(top / "b"), -1, str(top / "c"), syscalls.RENAME_EXCHANGE)
        assert (attributes("b"), attributes("c")) == ({}, {"user.name": b"a"})
        shutil.rmtree(top / "e")
        (top / "c").unlink()
        assert sorted(os.listdir(second.store)) == ["a", "b", "d"]
    finally:
        second.destroy()


def test_rename_that_fails_takes_no_attributes_away(tmp_path: Path) -> None:
    """Those of the file that was to be replaced are put back on the host."""
    first = serve(tmp_path)
    try:
        for name in ("a", "b"):
            (first.top / name).write_text(name)
            os.setxattr(first.top / name, "user.name", name.encode())
        (first.store / "a").unlink()  # the host's fault, so that the rename fails half-way
        _refused(lambda: os.rename(first.top / "a", first.top / "b"), errno.EIO)
        first.unmount()
    finally:
        first.destroy()
    second = serve(tmp_path)
    try:
        assert os.getxattr(second.top / "b", "user.name") == b"b"
    finally:
        second.destroy()


def test_attributes_without_their_file_stop_nothing(tmp_path: Path) -> None:
    """A crash between a file's removal and theirs leaves them: nobody gets them, and the folder can be removed."""
    first = serve(tmp_path)
    try:
        (first.top / "d").mkdir()
        for name in ("d/a", "d/b"):
            (first.top / name).write_text("A")
            os.setxattr(first.top / name, "user.a", b"1")
        first.unmount()
    finally:
        first.destroy()
    (tmp_path / "store/d/a").unlink()
    (tmp_path / "store/d/b").unlink()
    served = serve(tmp_path)
    try:
        assert os.listdir(served.top / "d") == []
        (served.top / "d/a").write_text("new")
        assert os.listxattr(served.top / "d/a") == []
        (served.top / "d/a").unlink()
        (served.top / "d").rmdir()
        assert os.listdir(served.store) == []
    finally:
        served.destroy()


_REPLACE = """
import os, sys
os.chdir(sys.argv[1])
n = 0
while True:
    n += 1
    if n % 2:
        os.symlink(f"target-{n}", "new")
    else:
        open("new", "w").write(f"content-{n}" * 500)
        os.setxattr("new", "user.n", b"%d" % n)
    os.rename("new", "current")
    print(n, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.15, 0.3, 0.45, 0.6])
def test_killed_server_leaves_a_link_or_a_file_that_is_whole(tmp_path: Path, delay_s: float) -> None:
    """A link and a file replace each other by renames: after kill -9 the name is one of them, and attributes fit it."""
    served = serve(tmp_path)
    program = None
    try:
        command = [sys.executable, "-c", _REPLACE, str(served.top)]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert program.stdout is not None
        while int(program.stdout.readline()) < 4:
            continue
        time.sleep(delay_s)
        served.process.kill()
        program.communicate(timeout=60)
    finally:
        if program is not None:
            program.kill()
        served.destroy()
    for path in served.store.iterdir():
        if path.stat().st_size == 0:  # made in that very moment, and nothing written yet: its owner removes it
            path.unlink()
    again = serve(tmp_path)
    try:
        current = again.top / "current"
        if current.is_symlink():
            assert re.fullmatch("target-[0-9]+", os.readlink(current))
        else:
            number = re.fullmatch(r"(content-([0-9]+))\1{499}", current.read_text())
            assert number is not None
            assert [os.getxattr(current, name) for name in os.listxattr(current)] in ([], [number[2].encode()])
        (again.top / "new").unlink(missing_ok=True)
        current.unlink()
        assert os.listdir(again.top) == []
        assert "bug" not in again.events()
    finally:
        again.destroy()


# ---------------------------------------------------------------- programs


def _run(*words: str | Path, cwd: Path | None = None) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _tree(top: Path) -> dict[str, str | bytes | None]:
    found: dict[str, str | bytes | None] = {}
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An ordinary folder with links of all kinds."""
    top = tmp_path / "plain"
    (top / "d/e").mkdir(parents=True)
    (top / "d/a").write_bytes(os.urandom(10_000))
    os.symlink("a", top / "d/link")
    os.symlink("../..", top / "d/e/up")
    os.symlink("/etc/hostname", top / "absolute")
    os.symlink("nowhere", top / "dangling")
    return top


def test_cp_and_tar_keep_links(served: Served, plain: Path, tmp_path: Path) -> None:
    """In and out again: `cp -a`, `tar`, `ln -s`, `ln -sfn`, `mv`, `rm -r`."""
    expected = _tree(plain)
    _run("cp", "-a", plain, served.top / "copy")
    assert _tree(served.top / "copy") == expected
    (served.top / "tar").mkdir()
    _run("tar", "-C", served.top / "copy", "-cf", tmp_path / "x.tar", ".")
    _run("tar", "-C", served.top / "tar", "-xf", tmp_path / "x.tar")
    assert _tree(served.top / "tar") == expected
    _run("cp", "-a", served.top / "tar", tmp_path / "out")
    assert _tree(tmp_path / "out") == expected
    _run("ln", "-s", "first", served.top / "current")
    _run("ln", "-sfn", "second", served.top / "current")
    assert os.readlink(served.top / "current") == "second"
    _run("mv", "-T", served.top / "current", served.top / "copy/dangling")
    assert os.readlink(served.top / "copy/dangling") == "second"
    _run("rm", "-r", served.top / "copy", served.top / "tar")
    assert os.listdir(served.top) == []
    assert served.unmount() == 0
    assert (os.listdir(served.store), served.events()) == ([], "")


def test_git_keeps_a_repository_with_links(served: Served, tmp_path: Path) -> None:
    """It finds out by trying whether links work, and then stores, checks out and clones them."""
    work = served.top / "work"
    _run("git", "init", "-q", work)
    (work / "a").write_text("A")
    os.symlink("a", work / "link")
    settings = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    _run("git", *settings, "add", ".", cwd=work)
    _run("git", *settings, "commit", "-q", "-m", "first", cwd=work)
    assert "120000" in _run("git", "ls-files", "-s", "link", cwd=work)
    (work / "link").unlink()
    (work / "link").write_text("no link")
    _run("git", "checkout", "-q", "link", cwd=work)
    assert os.readlink(work / "link") == "a"
    _run("git", "clone", "-q", work, served.top / "clone")
    assert os.readlink(served.top / "clone/link") == "a"
    assert _run("git", "status", "--porcelain", cwd=work) == ""
    _run("git", "fsck", "--strict", cwd=work)
    assert served.events() == ""


def _store_as_the_hub_does(cache: Path, name: str, content: bytes, revision: str) -> Path:
    """The calls of huggingface_hub's file_download: a blob under a temporary name, a lock, a relative link to it."""
    root = cache / "models--made--tiny"
    blobs, snapshot = root / "blobs", root / "snapshots" / revision
    for folder in (blobs, snapshot, root / "refs", cache / ".locks/models--made--tiny"):
        folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()
    (cache / f".locks/models--made--tiny/{digest}.lock").touch()
    part = blobs / f"{digest}.incomplete"
    part.write_bytes(content)
    shutil.move(part, blobs / digest)
    probe = cache / "tmp-probe"  # are_symlinks_supported
    probe.mkdir()
    (probe / "dummy_file_src").touch()
    os.symlink("dummy_file_src", probe / "dummy_file_dst")
    shutil.rmtree(probe)
    link = snapshot / name
    if link.is_symlink():
        link.unlink()
    os.symlink(os.path.relpath(blobs / digest, link.parent), link)
    (root / "refs/main").write_text(revision)
    return link


def test_hub_cache_lives_on_links_over_runs(tmp_path: Path) -> None:
    """Two revisions that share a blob; a blob that is replaced; a reader of the next run finds both by their links."""
    first = serve(tmp_path)
    try:
        weights, other = os.urandom(400_000), os.urandom(5000)
        for revision in ("0" * 40, "1" * 40):
            _store_as_the_hub_does(first.top, "model.safetensors", weights, revision)
        _store_as_the_hub_does(first.top, "config.json", b"{}", "0" * 40)
        _store_as_the_hub_does(first.top, "config.json", other, "0" * 40)
        first.unmount()
    finally:
        first.destroy()
    second = serve(tmp_path)
    try:
        root = second.top / "models--made--tiny"
        assert (root / "refs/main").read_text() == "0" * 40
        for revision in ("0" * 40, "1" * 40):
            assert (root / f"snapshots/{revision}/model.safetensors").read_bytes() == weights
        assert (root / f"snapshots/{'0' * 40}/config.json").read_bytes() == other
        assert (root / f"snapshots/{'0' * 40}/config.json").resolve().parent == root / "blobs"
        assert len(os.listdir(root / "blobs")) == 3
    finally:
        second.destroy()
    assert second.events() == ""
