"""tools/setup.sh where it cannot install: it ends, and says which packages somebody else should install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.machine import REPOSITORY


def set_up(folder: Path, purpose: str = "", **programs: str) -> subprocess.CompletedProcess[str]:
    """Run set-up with these programs, each a line of shell, and no other but grep and env in PATH."""
    place = folder / "bin"
    place.mkdir()
    for name, line in {"dpkg-query": "exit 1", "id": "echo 1000", **programs}.items():
        (place / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / name).chmod(0o755)
    for name in ("grep", "env", "sh"):
        (place / name).symlink_to(shutil.which(name) or "/bin/false")
    words = ["/bin/sh", str(REPOSITORY / "tools" / "setup.sh"), "/usr/bin/python3", str(folder / "venv"), purpose]
    return subprocess.run(
        words, cwd=folder, env={"PATH": str(place)}, capture_output=True, text=True, check=False, timeout=30
    )


def test_setup_without_root_and_sudo_names_the_packages(tmp_path: Path) -> None:
    """The whole command for the administrator, and nothing is tried."""
    done = set_up(tmp_path, "test")
    assert done.returncode == 1
    assert "sudo is not installed" in done.stderr
    assert "apt-get install --no-install-recommends fuse3 bubblewrap gcc" in done.stderr
    assert "postgresql" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("user", ["0", "1000"])
def test_setup_whose_packages_cannot_be_installed_names_them(tmp_path: Path, user: str) -> None:
    """A user whom sudo refuses, or root without a mirror, reads which packages are missing."""
    done = set_up(tmp_path, id=f"echo {user}", sudo='exec "$@"', **{"apt-get": '[ "$1" = update ]'})
    assert done.returncode == 1
    assert "could not be installed" in done.stderr
    assert "apt-get install --no-install-recommends fuse3" in done.stderr


def test_setup_installs_what_is_missing_and_no_more(tmp_path: Path) -> None:
    """A package that is there is not asked for; libfuse is named nowhere, since fuse3 brings the release's own."""
    here = 'case "$*" in *strace|*gcc) echo "install ok installed";; *) exit 1;; esac'
    told = tmp_path / "told"
    done = set_up(tmp_path, id="echo 0", **{"dpkg-query": here, "apt-get": f'echo "$*" >> {told}; [ "$1" = update ]'})
    assert done.returncode == 1
    asked = told.read_text().splitlines()[-1].split()
    assert "fuse3" in asked
    assert not {"strace", "gcc"} & set(asked)
    assert not [word for word in asked if word.startswith("libfuse")]


def test_setup_leaves_out_test_packages_that_the_release_lacks(tmp_path: Path) -> None:
    """Ubuntu has no chromium: said, and the others are installed; what a run needs is never left out."""
    told = tmp_path / "told"
    apt = f'echo "$*" >> {told}; [ "$1" = update ]'
    done = set_up(tmp_path, "test", id="echo 0", **{"apt-get": apt, "apt-cache": '[ "$2" = fio ]'})
    asked = told.read_text().splitlines()[-1].split()
    assert "no package chromium: the tests that need it are skipped" in done.stdout
    assert "chromium" not in asked
    assert {"fio", "fuse3", "bubblewrap"} <= set(asked)


def test_setup_takes_the_systems_own_python_first() -> None:
    """make's choice is /usr/bin/python3 where that is new enough, whatever comes first in PATH."""
    new = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run(["/usr/bin/python3", "-c", new], check=False).returncode:
        pytest.skip("the system's own Python is older than 3.11")
    words = ["make", "-n", "-B", "setup", "VENV=elsewhere"]
    shown = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert 'tools/setup.sh "/usr/bin/python3" "elsewhere"' in shown


def test_setup_elsewhere_than_on_debian_says_so(tmp_path: Path) -> None:
    """Without dpkg the packages are named, and nothing is installed."""
    done = set_up(tmp_path, **{"dpkg-query": "exit 1"})
    assert done.returncode == 1
    (tmp_path / "bin" / "dpkg-query").unlink()
    words = ["/bin/sh", str(REPOSITORY / "tools" / "setup.sh"), "/usr/bin/python3", str(tmp_path / "venv")]
    environment = {"PATH": str(tmp_path / "bin")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no dpkg" in done.stderr
    assert "fuse3 bubblewrap" in done.stderr
    assert os.listdir(tmp_path) == ["bin"]
