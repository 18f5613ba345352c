"""Needs of a test on the machine, and skips that say what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SYSTEM_PYTHON = os.path.realpath("/usr/bin/python3")
"""The distribution's own interpreter, which tests run as a protected program."""

NO_DEVICES = "device files cannot be made here: that takes root, outside of a container (mknod)"
NO_MOUNTS = "a small file system cannot be mounted here: that takes root, outside of a container (mount)"


def need_fuse() -> None:
    """Skip where this machine, or this user, has no FUSE."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse: modprobe fuse; for a container, --device /dev/fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this user may not open /dev/fuse: root can allow it with chmod 0666 /dev/fuse")


def not_installed(program: str, package: str | None = None) -> str:
    """The reason of a skip where a program is missing: its Debian package, if it is not called the same."""
    return f"{program} is not installed (apt-get install {package or program})"


def need_program(program: str, package: str | None = None) -> None:
    """Skip where a program is not in PATH."""
    if shutil.which(program) is None:
        pytest.skip(not_installed(program, package))


def closed_to_others(*paths: Path | str) -> str | None:
    """The first folder or file that another user cannot read, as a reason. None where all are readable."""
    for path in map(Path, paths):
        for place in (*reversed(path.parents), path):
            wanted = 0o005 if place.is_dir() and place == path else 0o001 if place.is_dir() else 0o004
            if place.stat().st_mode & wanted != wanted:
                return (
                    f"this test runs Adyton as another user, to whom {place} is closed:"
                    " put the checkout where everybody may read it (as /srv), or open that folder (chmod o+rx)"
                )
    return None


def open_python() -> str:
    """An interpreter of the tests' version that other users may run. Skips where there is none."""
    version = sys.version_info[:2]
    candidates = [os.path.realpath(sys.executable)]
    candidates += [SYSTEM_PYTHON] if SYSTEM_PYTHON.endswith(f"python{version[0]}.{version[1]}") else []
    reasons = [closed_to_others(path) for path in candidates]
    if None not in reasons:
        pytest.skip(str(reasons[0]))
    return candidates[reasons.index(None)]


def need_open_checkout() -> None:
    """Skip where other users cannot read the checkout, or the virtual environment that the tests run in."""
    packages = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    reason = closed_to_others(REPOSITORY / "src" / "adyton", REPOSITORY / "tests", packages / "cryptography")
    if reason is not None:
        pytest.skip(reason)
