"""libfuse 3 on this machine: which library is loaded, and whether mfusepy's structures fit it.

libfuse has two shared library names, and a version lays its structures out as its name says:

==============  ===========  =====================================================
name            versions     found in
==============  ===========  =====================================================
libfuse3.so.3   3.14 - 3.16  Debian 12, Ubuntu 24.04
libfuse3.so.4   from 3.17    Debian 13; its structures have room reserved to grow
==============  ===========  =====================================================

mfusepy chooses its structures by the version that the loaded library reports. Left alone, mfusepy also takes libfuse 2,
which loses the flags of rename(2). So the library is loaded by name here, and its version is held against the name.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any, Final

from adyton.errors import MountFailed

VERSIONS: Final = {"libfuse3.so.4": ((3, 17), (3, 99)), "libfuse3.so.3": ((3, 14), (3, 16))}
"""Library name -> first and last version that Adyton takes under it. The first name that loads is used."""

_EXPECTED: Final = "libfuse 3.14 to 3.16 as libfuse3.so.3, or 3.17 and later as libfuse3.so.4"
_REMEDY: Final = "install fuse3, which brings the library (Debian, Ubuntu: apt-get install fuse3)"


def check(name: str, version: tuple[int, int]) -> None:
    """Raise MountFailed unless the library called `name` has one of the versions that its structures are known for."""
    first, last = VERSIONS.get(name, ((1, 0), (0, 0)))
    if not first <= version <= last:
        raise MountFailed(
            f"{name} is libfuse {version[0]}.{version[1]}, which Adyton does not know",
            check="version of libfuse",
            expected=_EXPECTED,
            seen=f"{version[0]}.{version[1]} as {name}",
            remedy=f"{_REMEDY}; nothing else may import mfusepy before adyton.vfs.fuse",
        )


def find() -> str:
    """The name of the libfuse that this machine has. Raises MountFailed where there is none."""
    refused = []
    for name in VERSIONS:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            refused.append(str(error))
        else:
            return name
    raise MountFailed(
        "libfuse 3 is not installed, or cannot be loaded",
        check="FUSE library",
        expected=_EXPECTED,
        seen="; ".join(refused),
        remedy=_REMEDY,
    )


def load() -> Any:
    """Load libfuse, and the module mfusepy, which binds it and is returned.

    Raises MountFailed where there is no libfuse, where mfusepy cannot bind it, or where its version is unknown.
    """
    name = find()
    saved = os.environ.get("FUSE_LIBRARY_PATH")
    os.environ["FUSE_LIBRARY_PATH"] = name
    try:
        bindings = importlib.import_module("mfusepy")
    except (OSError, AttributeError, AssertionError) as error:
        raise MountFailed(
            f"mfusepy cannot bind {name}: {error}",
            check="FUSE library",
            expected=_EXPECTED,
            seen=str(error),
            remedy=_REMEDY,
        ) from error
    finally:
        if saved is None:
            del os.environ["FUSE_LIBRARY_PATH"]
        else:
            os.environ["FUSE_LIBRARY_PATH"] = saved
    check(bound_name(bindings), bound_version(bindings))
    return bindings


def bound_name(bindings: Any) -> str:
    """The name under which these bindings loaded their library."""
    return str(bindings._libfuse._name)  # mfusepy has no public name for it


def bound_version(bindings: Any) -> tuple[int, int]:
    """The version that the library under these bindings reports."""
    return int(bindings.fuse_version_major), int(bindings.fuse_version_minor)
