"""A program's own manifest asks for the kernel's interfaces, to get evidence past the domain of programs.

In a guest the host chooses which programs run besides the approved one, and each brings a manifest of its own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.mount import world

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("source", ["/sys", "/sys/kernel", "/proc", "/proc/sys", "/dev", "/dev/null", "/", "link"])
def test_kernels_interfaces_are_not_shown(tmp_path: Path, source: str) -> None:
    """Neither by name, nor below a folder, nor through a link; /sys/kernel/config/tsm gives evidence over any bytes."""
    (tmp_path / "link").symlink_to("/sys/kernel")
    mounts = [["chroot", "/shown", f"file:{source}"]]
    result = world.run(tmp_path, world.shell("ls /shown", allowed=[f"file:{source}"], mounts=mounts))
    assert result.status != 0
    assert result.out == ""
    assert result.ended["check"] == "sgx.allowed_files"
    assert "no interface of the kernel" in str(result.ended["expected"])


def test_folders_of_files_are_shown(tmp_path: Path) -> None:
    """What allowed files are for goes on."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("content")
    mounts = [["chroot", "/data", "file:data"]]
    result = world.run(tmp_path, world.shell("cat /data/a", allowed=["file:data/"], mounts=mounts))
    assert (result.status, result.out) == (0, "content")


def test_device_in_an_allowed_folder_cannot_be_opened(tmp_path: Path) -> None:
    """A device file that lies among the files, as a host would make one, is no way to the device."""
    (tmp_path / "data").mkdir()
    try:
        os.mknod(tmp_path / "data" / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        (tmp_path / "data" / "zero").chmod(0o666)
        (tmp_path / "data" / "zero").open("rb").close()
    except OSError as error:
        pytest.skip(f"a device file cannot be made and opened here ({error.strerror}); it needs root")
    mounts = [["chroot", "/data", "file:data"]]
    result = world.run(tmp_path, world.shell("head -c 1 /data/zero", allowed=["file:data/"], mounts=mounts))
    assert result.status != 0
    assert "Permission denied" in result.err
