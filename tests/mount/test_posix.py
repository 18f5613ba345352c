"""The mounted encrypted folder as an ordinary file system."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.side_files import LINK_SUFFIX, XATTR_SUFFIX, parse_attributes
from adyton.vfs import syscalls
from tests.mount.exerciser import Model, Trees
from tests.mount.served import KEY, Served

pytestmark = pytest.mark.mount


def _exercise(served: Served, seed: int, steps: int) -> None:
    model = Model(served.top, seed)
    for _ in range(steps):
        model.step()
    expected = model.close()
    assert {path.name: path.read_bytes() for path in served.top.iterdir()} == expected
    assert served.unmount() == 0
    assert served.events() == ""
    assert {path.name for path in served.store.iterdir()} == set(expected)
    for name, content in expected.items():
        assert served.decrypted(name) == content


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_on_open_files_match_a_model(served: Served, seed: int) -> None:
    """Thousands of random operations give what plain bytes give, and the owner decrypts the same."""
    _exercise(served, seed, 2500)


def _exercise_trees(served: Served, seed: int, steps: int) -> None:
    trees = Trees(served.top, served.store, seed)
    for number in range(steps):
        trees.step()
        if number % 20 == 0:
            trees.check()
    trees.check()
    assert served.unmount() == 0
    assert "bug" not in served.events()
    for path, content in trees.model.items():
        if isinstance(content, str):
            assert served.decrypted(path + LINK_SUFFIX) == os.fsencode(content)
        else:
            assert content is None or served.decrypted(path) == content
    for path, value in trees.attributes.items():
        assert parse_attributes(served.decrypted(path + XATTR_SUFFIX), path) == {b"user.a": value}


@pytest.mark.parametrize("seed", [1, 2])
def test_random_moves_of_folders_match_a_model_whatever_the_host_puts_back(served: Served, seed: int) -> None:
    """Folders made, renamed, exchanged and removed, while the host puts older files back everywhere."""
    _exercise_trees(served, seed, 600)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_moves_of_folders_match_a_model(served: Served) -> None:
    """The same for long."""
    _exercise_trees(served, 3, 30_000)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_random_operations_match_a_model(served: Served) -> None:
    """The same, a million times."""
    _exercise(served, 3, 1_000_000)


def test_file_written_and_read_back_is_sealed_on_the_host(served: Served) -> None:
    """What the program wrote is nowhere on the host in clear, and decrypts under the mount's path."""
    secret = b"a very secret sentence " * 1000
    (served.top / "a").write_bytes(secret)
    assert (served.top / "a").read_bytes() == secret
    assert served.unmount() == 0
    assert secret[:22] not in (served.store / "a").read_bytes()
    assert served.decrypted("a") == secret


def test_folder_tree_renamed_keeps_every_file_readable(served: Served) -> None:
    """Renaming a folder seals the new path into every file below."""
    (served.top / "a/b/c").mkdir(parents=True)
    for name in ("a/1", "a/b/2", "a/b/c/3"):
        (served.top / name).write_text(name)
    os.rename(served.top / "a", served.top / "z")
    assert (served.top / "z/b/c/3").read_text() == "a/b/c/3"
    assert sorted(os.listdir(served.top / "z")) == ["1", "b"]
    assert not (served.top / "a").exists()
    assert served.unmount() == 0
    assert served.decrypted("z/b/c/3") == b"a/b/c/3"


def test_rename_over_a_full_folder_is_refused(served: Served) -> None:
    """ENOTEMPTY, as POSIX has it."""
    (served.top / "a").mkdir()
    (served.top / "b").mkdir()
    (served.top / "b/x").write_text("x")
    with pytest.raises(OSError) as raised:
        os.rename(served.top / "a", served.top / "b")
    assert raised.value.errno == errno.ENOTEMPTY
    os.rename(served.top / "b", served.top / "a")
    assert (served.top / "a/x").read_text() == "x"


def test_rename_flags_are_honoured_and_never_destroy(served: Served) -> None:
    """RENAME_EXCHANGE swaps, RENAME_NOREPLACE refuses; the flags are not lost on the way."""
    (served.top / "a").write_text("A")
    (served.top / "b").write_text("B")
    folder = os.open(served.top, os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError):
            syscalls.rename(folder, "a", folder, "b", syscalls.RENAME_NOREPLACE)
        syscalls.rename(folder, "a", folder, "b", syscalls.RENAME_EXCHANGE)
    finally:
        os.close(folder)
    assert (served.top / "a").read_text() == "B"
    assert (served.top / "b").read_text() == "A"
    assert served.unmount() == 0
    assert served.decrypted("a") == b"B"


def test_hard_links_and_devices_are_refused(served: Served) -> None:
    """What cannot be protected is refused: hard links, devices, O_TMPFILE."""
    (served.top / "a").write_text("A")
    with pytest.raises(PermissionError):
        os.link(served.top / "a", served.top / "hard")
    with pytest.raises(OSError):
        os.mkfifo(served.top / "pipe")
    with pytest.raises(OSError) as raised:
        os.open(served.top, os.O_TMPFILE | os.O_RDWR)
    assert raised.value.errno == errno.EOPNOTSUPP


def test_modes_and_times_are_kept_within_a_run(served: Served) -> None:
    """chmod and utime hold, for files and folders; what was never set is fixed and not the host's."""
    (served.top / "a").write_text("A")
    (served.top / "d").mkdir()
    os.chmod(served.top / "a", 0o750)
    os.utime(served.top / "a", (1000, 2000))
    assert stat.S_IMODE(os.stat(served.top / "a").st_mode) == 0o750
    assert os.stat(served.top / "a").st_mtime == 2000
    with pytest.raises(PermissionError):
        os.chown(served.top / "a", 12345, 12345)


def test_host_modes_and_times_are_not_believed(tmp_path: Path) -> None:
    """A new run shows fixed modes and times, whatever the host gives its files."""
    from tests.mount.served import serve

    first = serve(tmp_path)
    try:
        (first.top / "a").write_text("A")
        first.unmount()
        os.chmod(first.store / "a", 0o777)
        os.utime(first.store / "a", (5, 5))
        second = serve(tmp_path)
        try:
            info = os.stat(second.top / "a")
            assert stat.S_IMODE(info.st_mode) == 0o644
            assert info.st_mtime == 315_532_800
        finally:
            second.destroy()
    finally:
        first.destroy()


def test_names_that_gramine_reserves_are_refused(served: Served) -> None:
    """Recovery logs are invisible and cannot be made by the program."""
    with pytest.raises(PermissionError):
        (served.top / "x.gramine.recovery").write_text("x")
    (served.top / "ü ñ 名").write_text("unicode")
    assert os.listdir(served.top) == ["ü ñ 名"]


def test_path_longer_than_the_format_can_seal_is_refused(served: Served) -> None:
    """A path beyond 771 bytes is an error at creation, and nothing is left of it."""
    folder = served.top
    for _ in range(3):
        folder = folder / ("x" * 225)
        folder.mkdir()
    with pytest.raises(OSError):
        (folder / ("y" * 110)).write_text("y")
    assert os.listdir(folder) == []
    (folder / "y").write_text("y")


def test_many_writers_in_one_folder_do_not_disturb_each_other(served: Served) -> None:
    """Several processes write files of their own at once."""
    script = "import sys,random\nr=random.Random(int(sys.argv[2]))\nopen(sys.argv[1],'wb').write(r.randbytes(300000))"
    running = [
        subprocess.Popen([sys.executable, "-S", "-c", script, str(served.top / f"f{number}"), str(number)])
        for number in range(6)
    ]
    assert [process.wait(60) for process in running] == [0] * 6
    for number in range(6):
        assert (served.top / f"f{number}").read_bytes() == random.Random(number).randbytes(300_000)


def test_many_entries_are_created_listed_and_removed(served: Served) -> None:
    """A folder of a thousand files."""
    for number in range(1000):
        (served.top / f"n{number}").write_bytes(b"%d" % number)
    assert len(os.listdir(served.top)) == 1000
    assert (served.top / "n777").read_bytes() == b"777"
    for number in range(1000):
        os.unlink(served.top / f"n{number}")
    assert os.listdir(served.top) == []
    assert os.listdir(served.store) == []


def test_sparse_extension_reads_as_zeros(served: Served) -> None:
    """A hole is zeros, up to the last byte."""
    with (served.top / "a").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"end")
    assert (served.top / "a").read_bytes() == bytes(1_000_000) + b"end"


def test_copy_file_range_and_sendfile_fall_back(served: Served) -> None:
    """The kernel's copying calls work through ordinary reads and writes."""
    (served.top / "a").write_bytes(b"x" * 100_000)
    with (served.top / "a").open("rb") as source, (served.top / "b").open("wb") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, 100_000) == 100_000
    subprocess.run(["cp", "--reflink=auto", str(served.top / "b"), str(served.top / "c")], check=True)
    assert (served.top / "c").read_bytes() == b"x" * 100_000


def test_locks_of_the_kernel_work(served: Served) -> None:
    """flock and record locks exclude."""
    import fcntl

    (served.top / "a").write_text("A")
    with (served.top / "a").open("r+") as one, (served.top / "a").open("r+") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_fallocate_reserves_room_in_files_that_are_only_written_too(served: Served, flags: int) -> None:
    """posix_fallocate extends, and never cuts. glibc cannot stand in for the file system on a write-only file."""
    fd = os.open(served.top / "a", flags | os.O_CREAT)
    try:
        os.write(fd, b"1" * 100)
        os.posix_fallocate(fd, 0, 50)
        assert os.fstat(fd).st_size == 100
        os.posix_fallocate(fd, 100, 8900)
        assert os.fstat(fd).st_size == 9000
        assert (served.store / "a").stat().st_size >= 9000
    finally:
        os.close(fd)
    assert (served.top / "a").read_bytes() == b"1" * 100 + bytes(8900)


def test_holes_are_refused_by_name(served: Served) -> None:
    """Only room at the end can be reserved: EOPNOTSUPP, so that programs write zeros."""
    keep_size, punch_hole = 1, 2
    with (served.top / "a").open("wb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.fallocate(file.fileno(), keep_size | punch_hole, ctypes.c_long(0), ctypes.c_long(4096))
        assert (done, ctypes.get_errno()) == (-1, errno.EOPNOTSUPP)


@pytest.mark.parametrize("length", [225, 226, 238, 239, 255])
def test_long_names_work_wholly_or_are_refused_when_they_are_made(served: Served, length: int) -> None:
    """As statvfs says: never at close, when the content would be lost."""
    assert os.statvfs(served.top).f_namemax == 225
    path = served.top / ("n" * length)
    (served.top / "short").write_text("old")
    works: list[Callable[[], object]] = [
        lambda: path.write_text("new"),
        lambda: (served.top / ("d" * length)).mkdir(),
        lambda: os.symlink("n", served.top / ("l" * length)),
        lambda: os.rename(served.top / "short", served.top / ("r" * length)),
    ]
    for work in works:
        if length <= 225:
            work()
        else:
            with pytest.raises(OSError) as raised:
                work()
            assert raised.value.errno == errno.ENAMETOOLONG
    if length <= 225:
        os.setxattr(path, "user.a", b"1")
        with path.open("r+") as file:
            file.write("NEW")
        assert (path.read_text(), os.getxattr(path, "user.a")) == ("NEW", b"1")
    else:
        assert os.listdir(served.top) == ["short"]


def test_file_with_a_longer_name_made_elsewhere_can_be_changed(served: Served) -> None:
    """It has no recovery log, as there is no room for its name."""
    name = "n" * 255
    with ProtectedFile.create(OSFile(served.store / name, create=True), KEY, path=f"enc/{name}", use_log=False) as file:
        file.write_at(0, b"old" * 5000)
    path = served.top / name
    with path.open("r+b") as opened:
        opened.write(b"new")
    assert path.read_bytes() == b"new" + (b"old" * 5000)[3:]
    os.rename(path, served.top / "short")
    assert (served.top / "short").read_bytes()[:3] == b"new"
    assert served.unmount() == 0
    assert served.events() == ""


def test_removed_file_that_is_open_works_wholly(served: Served) -> None:
    """Content, size, mode, times, attributes and room, by the descriptor alone."""
    path = served.top / "a"
    path.write_text("A")
    os.setxattr(path, "user.a", b"1")
    fd = os.open(path, os.O_RDWR)
    try:
        path.unlink()
        assert os.listdir(served.top) == []
        assert os.write(fd, b"12345") == 5
        os.ftruncate(fd, 3)
        os.posix_fallocate(fd, 0, 10)
        os.fchmod(fd, 0o640)
        os.utime(fd, (1, 2))
        os.setxattr(fd, "user.b", b"2")
        assert (os.getxattr(fd, "user.a"), os.listxattr(fd)) == (b"1", ["user.a", "user.b"])
        facts = os.fstat(fd)
        assert (facts.st_size, facts.st_nlink, facts.st_mode & 0o777, facts.st_mtime) == (10, 0, 0o640, 2)
        assert os.pread(fd, 20, 0) == b"123" + bytes(7)
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"123" + bytes(7)
        path.write_text("another")
        assert os.listxattr(path) == []
    finally:
        os.close(fd)
    assert [name.name for name in served.store.iterdir()] == ["a"]
