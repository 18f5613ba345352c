"""While a program runs, the host does what it wants with the encrypted files: refused or harmless, named, in time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.host.attacks import IN_TIME_S, fails, flip, forget
from tests.mount.served import REPOSITORY, Served, serve
from tests.support import machine

pytestmark = pytest.mark.mount

CONTENT = os.urandom(450_000)
OLDER = os.urandom(450_000)


def put(served: Served, name: str, content: bytes = CONTENT) -> Path:
    """A file that the program wrote and closed; the kernel's copy of its content is dropped."""
    path = served.top / name
    path.write_bytes(content)
    forget(path)
    return path


@pytest.mark.parametrize(
    ("node", "named"), [(0, "node 0"), (1, "node 1"), (2, "node 2"), (50, "node 50"), (98, "node 98"), (99, "node 99")]
)
def test_flipped_bit_is_an_io_error_that_names_the_node(served: Served, node: int, named: str) -> None:
    """In the metadata, a tree node, a data node: reading there fails, and the log says where."""
    path = put(served, "a")
    flip(served.store / "a", node * 4096 + 2000)
    fails(path.read_bytes)
    assert "/a: " in served.events()
    assert named in served.events() or "root of the file" in served.events()


def test_flipped_bit_in_an_open_file_is_an_io_error(tmp_path: Path) -> None:
    """Reads of what was not read before are verified when they happen."""
    first = serve(tmp_path)
    try:
        put(first, "a")
        first.unmount()
        second = serve(tmp_path)
        try:
            with (second.top / "a").open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                assert file.read(100) == CONTENT[:100]
                flip(second.store / "a", 105 * 4096 + 5)
                fails(lambda: os.pread(file.fileno(), 1000, 421_000))
                assert os.pread(file.fileno(), 100, 0) == CONTENT[:100]
        finally:
            second.destroy()
    finally:
        first.destroy()


@pytest.mark.parametrize("size", [0, 4096, 100 * 4096, 99 * 4096 + 1])
def test_cut_file_is_an_io_error(served: Served, size: int) -> None:
    """To nothing, to its first node, by some nodes, to no whole number of nodes."""
    path = put(served, "a")
    os.truncate(served.store / "a", size)
    fails(path.read_bytes)
    assert served.events()


def test_swapped_files_are_refused(served: Served) -> None:
    """Each carries its own path."""
    one, two = put(served, "a"), put(served, "b", OLDER)
    os.rename(served.store / "a", served.store / "x")
    os.rename(served.store / "b", served.store / "a")
    os.rename(served.store / "x", served.store / "b")
    fails(one.read_bytes)
    fails(two.read_bytes)


def test_older_version_put_back_within_a_run_is_refused(served: Served) -> None:
    """The last root of every closed file is remembered."""
    path = put(served, "a", OLDER)
    shutil.copy(served.store / "a", served.store.parent / "older")
    path.write_bytes(CONTENT)
    forget(path)
    shutil.copy(served.store.parent / "older", served.store / "a")
    fails(path.read_bytes)
    assert "not the version that was expected" in served.events()


def test_deleted_file_is_an_io_error_and_never_not_found(served: Served) -> None:
    """What the program knows to be there cannot be made to look as if it were not."""
    path = put(served, "a")
    os.unlink(served.store / "a")
    fails(path.read_bytes)
    fails(lambda: path.open("xb"), errno.EEXIST)
    assert "a" in os.listdir(served.top)
    assert "gone from the host" in served.events()


def test_deleted_folder_is_an_io_error(served: Served) -> None:
    """With everything in it."""
    (served.top / "d").mkdir()
    path = put(served, "d/a")
    shutil.rmtree(served.store / "d")
    fails(path.read_bytes)
    fails(lambda: (served.top / "d/b").write_text("b"))


def test_removed_file_put_back_by_the_host_stays_removed(served: Served) -> None:
    """And its name can be used again."""
    path = put(served, "a", OLDER)
    shutil.copy(served.store / "a", served.store.parent / "kept")
    path.unlink()
    shutil.copy(served.store.parent / "kept", served.store / "a")
    assert os.listdir(served.top) == []
    fails(path.read_bytes, errno.ENOENT)
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert served.unmount() == 0
    assert served.decrypted("a") == b"new"


def test_folder_put_in_place_of_another_holds_nothing_older(served: Served, tmp_path: Path) -> None:
    """The way checkpoints are written: what lay in the folder that was replaced does not come back with its name."""
    (served.top / "ck").mkdir()
    put(served, "ck/shard", OLDER)
    shutil.copy(served.store / "ck/shard", tmp_path / "kept")
    shutil.rmtree(served.top / "ck")
    (served.top / "ck.tmp").mkdir()
    put(served, "ck.tmp/model")
    os.rename(served.top / "ck.tmp", served.top / "ck")
    shutil.copy(tmp_path / "kept", served.store / "ck/shard")
    assert os.listdir(served.top / "ck") == ["model"]
    fails((served.top / "ck/shard").read_bytes, errno.ENOENT)
    assert (served.top / "ck/model").read_bytes() == CONTENT


def test_folder_made_again_after_a_rename_holds_nothing_older(served: Served, tmp_path: Path) -> None:
    """What went away with a renamed folder does not come back under the old name."""
    (served.top / "ck.tmp").mkdir()
    put(served, "ck.tmp/model", OLDER)
    shutil.copy(served.store / "ck.tmp/model", tmp_path / "kept")
    os.rename(served.top / "ck.tmp", served.top / "ck")
    (served.store / "ck.tmp").mkdir()
    shutil.copy(tmp_path / "kept", served.store / "ck.tmp/model")
    fails(lambda: os.listdir(served.top / "ck.tmp"), errno.ENOENT)
    (served.top / "ck.tmp").mkdir()
    assert os.listdir(served.top / "ck.tmp") == []
    fails((served.top / "ck.tmp/model").read_bytes, errno.ENOENT)
    (served.top / "ck.tmp/model").write_bytes(b"new")
    assert (served.top / "ck.tmp/model").read_bytes() == b"new"


def test_removed_file_does_not_come_back_with_its_folder_renamed(served: Served, tmp_path: Path) -> None:
    """Neither under its old name nor under the new one, also where the folder was there before the run."""
    (served.store / "d").mkdir()
    put(served, "d/a", OLDER)
    shutil.copy(served.store / "d/a", tmp_path / "kept")
    (served.top / "d/a").unlink()
    os.rename(served.top / "d", served.top / "e")
    shutil.copy(tmp_path / "kept", served.store / "e/a")
    assert os.listdir(served.top / "e") == []
    fails((served.top / "e/a").read_bytes, errno.ENOENT)


def test_file_that_was_only_listed_and_vanishes_is_an_io_error(tmp_path: Path) -> None:
    """Never "no such file", and it stays listed."""
    first = serve(tmp_path)
    try:
        put(first, "shard0")
        first.unmount()
    finally:
        first.destroy()
    second = serve(tmp_path)
    try:
        assert os.listdir(second.top) == ["shard0"]
        os.unlink(second.store / "shard0")
        fails((second.top / "shard0").read_bytes)
        assert os.listdir(second.top) == ["shard0"]
        assert "gone from the host" in second.events()
    finally:
        second.destroy()


@pytest.mark.parametrize("work", ["chmod", "utime", "truncate", "open"])
def test_link_in_a_files_place_leads_nowhere(served: Served, tmp_path: Path, work: str) -> None:
    """No operation on attributes or content reaches the file that the host's link points to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim")
    victim.chmod(0o600)
    before = victim.stat()
    path = put(served, "a")
    (served.store / "a").unlink()
    (served.store / "a").symlink_to("../victim")
    calls: dict[str, Callable[[], object]] = {
        "chmod": lambda: path.chmod(0o777),
        "utime": lambda: os.utime(path, (1, 1)),
        "truncate": lambda: os.truncate(path, 0),
        "open": lambda: path.open("r+b"),
    }
    with contextlib.suppress(OSError):
        calls[work]()
    after = victim.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)
    assert victim.read_bytes() == b"victim"


def test_extending_a_file_far_is_no_stall(tmp_path: Path) -> None:
    """Zeros for seconds are many answers of the host, not one that is late."""
    script = (
        "import os, time\nfrom adyton.vfs.encrypted import EncryptedTree\nfrom adyton.values import Key128\n"
        "from adyton.vfs.storage_watchdog import StorageWatchdog\n"
        "os.makedirs('s')\np = StorageWatchdog(answer_s=0.05)\n"
        "t = EncryptedTree('s', Key128(bytes(16)), sealed_as='s', watchdog=p)\n"
        "f = t.create('a', 0o644)\np.watch(print)\np.start('truncate')\nbegan = time.monotonic()\n"
        "t.resize(f, 200 << 20)\np.stop()\nprint('done', time.monotonic() - began > 0.1)\nt.release(f)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/src"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "done True\n", done.stderr


def test_renamed_file_is_refused_under_both_names(served: Served) -> None:
    """The old name is lost, the new one is not what was sealed."""
    path = put(served, "a")
    os.rename(served.store / "a", served.store / "b")
    fails(path.read_bytes)
    fails((served.top / "b").read_bytes)
    assert "sealed under another path" in served.events()


def test_hard_link_to_another_file_is_refused(served: Served) -> None:
    """Two names for one protected file: the second is not what was sealed."""
    path = put(served, "a")
    os.link(served.store / "a", served.store / "b")
    fails((served.top / "b").read_bytes)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "device"])
def test_file_replaced_by_something_else_is_refused_at_once(served: Served, kind: str) -> None:
    """A link (even to the right content), a folder, a pipe that nobody feeds, a device."""
    path = put(served, "a")
    host = served.store / "a"
    os.rename(host, served.store.parent / "a")
    if kind == "link":
        host.symlink_to(served.store.parent / "a")
    elif kind == "folder":
        host.mkdir()
    elif kind == "fifo":
        os.mkfifo(host)
    else:
        try:
            os.mknod(host, 0o20666, os.makedev(1, 5))
        except PermissionError:
            pytest.skip(machine.NO_DEVICES)
    fails(path.read_bytes)
    named = "not a regular file" if kind in ("fifo", "device") else "a link, a folder, a device"
    assert named in served.events()
    assert "bug" not in served.events()


def test_folder_replaced_by_a_link_leads_nowhere(served: Served, tmp_path: Path) -> None:
    """Nothing is read from or written to where the host's link points."""
    (served.top / "d").mkdir()
    put(served, "d/a")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(served.store / "d", elsewhere)
    (served.top / "e").mkdir()
    shutil.rmtree(served.store / "e")
    (served.store / "e").symlink_to(elsewhere)
    fails(lambda: (served.top / "e/new").write_text("new"))
    fails(lambda: os.rename(served.top / "d/a", served.top / "e/a"))
    fails(lambda: os.listdir(served.top / "e"))
    assert sorted(os.listdir(elsewhere)) == ["a"]
    assert "a link" in served.events()


def test_planted_file_is_refused(served: Served) -> None:
    """Listed, as names are the host's; but never read."""
    (served.store / "planted").write_bytes(b"not a protected file" * 1000)
    assert os.listdir(served.top) == ["planted"]
    fails((served.top / "planted").read_bytes)


def test_planted_recovery_log_is_harmless(served: Served) -> None:
    """A recovery log made of garbage, or of an older state, does not bring anything back."""
    path = put(served, "a", OLDER)
    older = (served.store / "a").read_bytes()
    path.write_bytes(CONTENT)
    forget(path)
    records = b"".join(
        n.to_bytes(8, "little") + older[n * 4096 : n * 4096 + 4096] for n in range(1, len(older) // 4096)
    )
    (served.store / "a.gramine.recovery").write_bytes(records + bytes(8) + older[:4096])
    assert path.read_bytes() == CONTENT
    with (served.store / "a").open("r+b") as file:
        file.write(older[:4096])
    time.sleep(0.2)
    fails(lambda: forget(path))


def test_stalled_storage_fails_every_operation_in_time(tmp_path: Path) -> None:
    """The backing folder is a file system that stops answering: the program gets an error, not a hang."""
    below = tmp_path / "below"
    below.mkdir()
    lower = serve(below, believe_host=True)
    try:
        upper = serve(tmp_path, store=lower.top)
        try:
            path = upper.top / "a"
            path.write_bytes(CONTENT)
            forget(path)
            lower.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(OSError):
                path.read_bytes()
            assert time.monotonic() - began < IN_TIME_S
            with pytest.raises(OSError):
                (upper.top / "b").write_bytes(b"b")
            assert time.monotonic() - began < IN_TIME_S
            assert "did not answer" in upper.events()
        finally:
            lower.process.send_signal(signal.SIGCONT)
            upper.destroy()
    finally:
        lower.destroy()


def test_full_disk_is_no_space_and_earlier_files_stay_whole(tmp_path: Path) -> None:
    """The program is told; what was flushed before stays readable."""
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(store)], check=False).returncode:
        pytest.skip(machine.NO_MOUNTS)
    try:
        served = serve(tmp_path)
        try:
            put(served, "a")

            def fill() -> None:
                with (served.top / "big").open("wb", buffering=0) as file:
                    for _ in range(100):
                        file.write(os.urandom(100_000))
                    os.fsync(file.fileno())

            fails(fill, errno.ENOSPC)
            assert (served.top / "a").read_bytes() == CONTENT
            os.unlink(served.top / "big")
            (served.top / "c").write_bytes(b"room again")
            assert served.unmount() == 0
            assert served.decrypted("a") == CONTENT
            assert served.decrypted("c") == b"room again"
        finally:
            served.destroy()
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def test_older_file_between_two_runs_is_not_noticed_a_stated_limit(tmp_path: Path) -> None:
    """NOT guaranteed: across runs an older whole file cannot be told from the newest by the format alone."""
    first = serve(tmp_path)
    try:
        (first.top / "a").write_bytes(b"older")
        forget(first.top / "a")
        shutil.copy(first.store / "a", tmp_path / "kept")
        (first.top / "a").write_bytes(b"newer")
        first.unmount()
    finally:
        first.destroy()
    shutil.copy(tmp_path / "kept", tmp_path / "store/a")
    second = serve(tmp_path)
    try:
        assert (second.top / "a").read_bytes() == b"older"
    finally:
        second.destroy()


def test_output_deleted_between_two_runs_is_not_noticed_a_stated_limit(tmp_path: Path) -> None:
    """NOT guaranteed: a file that the new run never saw is simply not there."""
    first = serve(tmp_path)
    try:
        (first.top / "a").write_bytes(b"output")
        first.unmount()
    finally:
        first.destroy()
    (tmp_path / "store/a").unlink()
    second = serve(tmp_path)
    try:
        assert not (second.top / "a").exists()
    finally:
        second.destroy()


def test_without_the_checks_the_older_version_would_be_read(tmp_path: Path) -> None:
    """The same replay, opened by a server that remembers nothing, is accepted: so it is the memory that refuses it."""
    script = (
        "import sys, os, shutil\nfrom adyton.vfs.encrypted import EncryptedTree\nfrom adyton.values import Key128\n"
        "os.makedirs('s')\nt = EncryptedTree('s', Key128(bytes(16)), sealed_as='s')\n"
        "def put(x):\n    f = t.create('a', 0o644) if not os.path.exists('s/a') else t.open('a', truncate=True)\n"
        "    t.write(f, memoryview(x), 0); t.release(f)\n"
        "put(b'older'); shutil.copy('s/a', 'k'); put(b'newer'); shutil.copy('k', 's/a')\n"
        "if sys.argv[1] == 'forget':\n    t.node('a').root = b''\n"
        "b = bytearray(5)\nf = t.open('a'); t.read_into(f, 0, memoryview(b)); print(b.decode())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/src"}
    results = []
    for how in ("forget", "remember"):
        folder = tmp_path / how
        folder.mkdir()
        command = [sys.executable, "-c", script, how]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        results.append((done.returncode, done.stdout.strip(), "IntegrityError" in done.stderr))
    assert results == [(0, "older", False), (1, "", True)]
