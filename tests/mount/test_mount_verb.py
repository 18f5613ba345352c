"""`adyton mount` and `adyton umount` as a person uses them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.errors import IntegrityError, MountFailed, WrongPath
from adyton.runtime.owner_mount import unmount
from tests.support import machine

pytestmark = pytest.mark.mount


def _adyton(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adyton", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A key, an encrypted folder `enc`, a mount point `top`; whatever is mounted there is taken away at the end."""
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_bytes(bytes(range(16)))
    (tmp_path / "enc").mkdir()
    (tmp_path / "top").mkdir()
    try:
        yield tmp_path
    finally:
        while os.path.ismount(tmp_path / "top"):
            subprocess.run(["fusermount3", "-u", "-z", str(tmp_path / "top")], check=False)


def _mount(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return _adyton(folder, "mount", "enc", "top", "--key-file", "key", *more)


def test_mount_returns_once_mounted_and_umount_once_flushed(folder: Path) -> None:
    """What was written is readable with `adyton decrypt` as soon as umount returns."""
    assert _mount(folder).returncode == 0
    assert os.path.ismount(folder / "top")
    (folder / "top/a").write_text("hello")
    assert _adyton(folder, "umount", "top").returncode == 0
    assert not os.path.ismount(folder / "top")
    done = _adyton(folder, "decrypt", "enc/a", "-o", "plain", "--key-file", "key", "--check-path", "enc/a")
    assert done.returncode == 0, done.stderr
    assert (folder / "plain").read_text() == "hello"


def test_wrong_key_is_said_before_anything_is_mounted(folder: Path) -> None:
    """Not at every file afterwards."""
    _mount(folder)
    (folder / "top/a").write_text("hello")
    _adyton(folder, "umount", "top")
    (folder / "key").write_bytes(bytes(16))
    done = _mount(folder)
    assert done.returncode == IntegrityError.exit_code
    assert "the key is wrong" in done.stderr
    assert not os.path.ismount(folder / "top")


def test_moved_folder_is_refused_and_told_what_as_would_be_right(folder: Path) -> None:
    """And with that it works."""
    _mount(folder)
    (folder / "top/d").mkdir()
    (folder / "top/d/a").write_text("hello")
    _adyton(folder, "umount", "top")
    os.rename(folder / "enc", folder / "moved")
    done = _adyton(folder, "mount", "moved", "top", "--key-file", "key")
    assert done.returncode == WrongPath.exit_code
    assert "--as 'enc'" in done.stderr
    assert _adyton(folder, "mount", "moved", "top", "--key-file", "key", "--as", "enc").returncode == 0
    assert (folder / "top/d/a").read_text() == "hello"


def test_folder_in_use_cannot_be_mounted_twice(folder: Path) -> None:
    """Two servers on one folder would destroy each other's files."""
    _mount(folder)
    (folder / "other").mkdir()
    done = _adyton(folder, "mount", "enc", "other", "--key-file", "key")
    assert done.returncode == MountFailed.exit_code
    assert "in use" in done.stderr


def test_busy_mount_is_not_unmounted_and_says_so(folder: Path) -> None:
    """With what to do."""
    _mount(folder)
    with (folder / "top/a").open("w"):
        done = _adyton(folder, "umount", "top")
        assert done.returncode == MountFailed.exit_code
        assert "fuser" in done.stderr
    assert _adyton(folder, "umount", "top").returncode == 0


def test_mount_that_another_namespace_holds_is_said_at_once(folder: Path) -> None:
    """With who holds it: the server goes on for that process, and a minute of waiting would not help."""
    assert _mount(folder).returncode == 0
    (folder / "top/a").write_text("hello")
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 100"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(machine.NO_MOUNTS)
        began = time.monotonic()
        done = _adyton(folder, "umount", "top")
        assert time.monotonic() - began < 20
        assert done.returncode == MountFailed.exit_code
        assert f"{holder.pid} (sleep) at {folder / 'top'}" in " ".join(done.stderr.split())
        assert f"nsenter -t {holder.pid} -m" in " ".join(done.stderr.split())
        assert not os.path.ismount(folder / "top")
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(200):
        if _mount(folder).returncode == 0:
            break
        time.sleep(0.05)
    assert (folder / "top/a").read_text() == "hello"


@pytest.mark.parametrize("what", ["full", "missing", "source"])
def test_what_cannot_be_mounted_is_refused(folder: Path, what: str) -> None:
    """A mount point that is not empty or not there, an encrypted folder that is not there."""
    if what == "full":
        (folder / "top/x").touch()
    elif what == "missing":
        (folder / "top").rmdir()
    else:
        (folder / "enc").rmdir()
    done = _mount(folder)
    assert done.returncode == MountFailed.exit_code
    assert "remedy" in done.stderr or what == "full"


def test_killed_server_leaves_no_mount_and_every_flushed_file(folder: Path) -> None:
    """kill -9 of the file server in the foreground."""
    command = [sys.executable, "-m", "adyton", "mount", "enc", "top", "--key-file", "key", "-f"]
    process = subprocess.Popen(command, cwd=folder)
    try:
        for _ in range(200):
            if os.path.ismount(folder / "top"):
                break
            time.sleep(0.05)
        (folder / "top/a").write_text("hello")
    finally:
        process.kill()
        process.wait()
    for _ in range(100):
        if not os.path.ismount(folder / "top") and "top" in os.listdir(folder):
            mounts = Path("/proc/self/mounts").read_text()
            if str(folder / "top") not in mounts:
                break
        time.sleep(0.05)
    assert str(folder / "top") not in Path("/proc/self/mounts").read_text()
    assert _mount(folder).returncode == 0
    assert (folder / "top/a").read_text() == "hello"


def test_read_only_mount_changes_nothing(folder: Path) -> None:
    """--read-only."""
    _mount(folder)
    (folder / "top/a").write_text("hello")
    _adyton(folder, "umount", "top")
    assert _mount(folder, "--read-only").returncode == 0
    with pytest.raises(OSError):
        (folder / "top/a").write_text("other")
    with pytest.raises(OSError):
        (folder / "top/b").write_text("other")
    assert (folder / "top/a").read_text() == "hello"


@pytest.mark.parametrize("name", ["folder", "nothing"])
def test_umount_of_what_is_not_mounted_says_so(tmp_path: Path, name: str) -> None:
    """Rather than to close what is open in it."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(MountFailed, match="nothing is mounted") as raised:
        unmount(tmp_path / name)
    assert raised.value.remedy is None


def test_mount_holds_more_files_than_a_shells_soft_limit(folder: Path) -> None:
    """Each open file takes two descriptors of the server."""
    command = 'ulimit -Sn 64; exec "$@"'
    mount = [sys.executable, "-m", "adyton", "mount", "enc", "top", "--key-file", "key"]
    subprocess.run(["sh", "-c", command, "sh", *mount], cwd=folder, check=True, timeout=60)
    with contextlib.ExitStack() as opened:
        for number in range(100):
            opened.enter_context((folder / "top" / str(number)).open("wb")).write(b"x")
    assert _adyton(folder, "umount", "top").returncode == 0
    assert len(list((folder / "enc").iterdir())) == 100
