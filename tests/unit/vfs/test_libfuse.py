"""Which libfuse is taken: by name, with the versions whose structures are known, and no other."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.errors import MountFailed
from adyton.vfs import fuse, libfuse

CONFIG = {"entry_timeout": 24, "negative_timeout": 32, "attr_timeout": 40, "use_ino": 64, "kernel_cache": 76}
OFFSETS = {
    (3, 14): {"fh": 16, "capable": 20, "want": 24, "max_background": 28, **CONFIG, "nullpath_ok": 104},
    (3, 17): {"fh": 16, "capable": 20, "want": 24, "max_background": 28, **CONFIG, "nullpath_ok": 96},
}
"""Where the fields that Adyton sets lie, in bytes: offsetof() over Debian 12's fuse.h (3.14.0), and 13's (3.17.2)."""

SHOW = """
import json, mfusepy as m
fields = {m.fuse_file_info: ["fh"], m.fuse_conn_info: ["capable", "want", "max_background"],
          m.fuse_config: ["entry_timeout", "negative_timeout", "attr_timeout", "use_ino", "kernel_cache",
                          "nullpath_ok"]}
info = m.fuse_file_info(direct_io=1, keep_cache=1)
print(json.dumps([{name: getattr(kind, name).offset for kind, names in fields.items() for name in names},
                  list(bytes(info)[4:8]), m.fuse_operations.read.offset, m.fuse_operations.lseek.offset]))
"""


def test_library_that_serves_has_a_known_version() -> None:
    """The one that is bound here is one of the two names, and reports a version that belongs to it."""
    name, version = libfuse.bound_name(fuse.mfusepy), libfuse.bound_version(fuse.mfusepy)
    assert name == libfuse.find()
    libfuse.check(name, version)
    assert ctypes.CDLL(name).fuse_version() == version[0] * 100 + version[1]


@pytest.mark.parametrize(
    ("name", "version"),
    [("libfuse3.so.3", (3, 14)), ("libfuse3.so.3", (3, 16)), ("libfuse3.so.4", (3, 17)), ("libfuse3.so.4", (3, 18))],
)
def test_version_that_belongs_to_its_name_is_taken(name: str, version: tuple[int, int]) -> None:
    """Debian 12 has 3.14 under the older name, Debian 13 has 3.17 under the newer."""
    libfuse.check(name, version)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libfuse.so.2", (2, 9)),
        ("libfuse3.so.3", (2, 9)),
        ("libfuse3.so.3", (3, 10)),
        ("libfuse3.so.3", (3, 17)),
        ("libfuse3.so.4", (3, 16)),
        ("libfuse3.so.4", (4, 0)),
        ("/opt/libfuse3.so.3", (3, 14)),
    ],
)
def test_version_that_does_not_belong_to_its_name_is_refused(name: str, version: tuple[int, int]) -> None:
    """Structures of another layout would be written over: refused before anything is mounted."""
    with pytest.raises(MountFailed, match="does not know") as refused:
        libfuse.check(name, version)
    assert refused.value.remedy is not None


def test_machine_without_libfuse_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names are tried, and the error has the package."""
    monkeypatch.setattr(libfuse, "VERSIONS", {"libno.so.4": ((3, 17), (3, 99)), "libno.so.3": ((3, 14), (3, 16))})
    with pytest.raises(MountFailed, match="not installed") as refused:
        libfuse.find()
    assert "libno.so.4" in str(refused.value.seen)
    assert "libno.so.3" in str(refused.value.seen)
    assert "apt-get install fuse3" in str(refused.value.remedy)


def test_bindings_of_another_library_are_refused(tmp_path: Path) -> None:
    """Where something else had mfusepy bind libfuse 2 before, nothing is served with it."""
    other = double(tmp_path, 29)
    code = f"import os; os.environ['FUSE_LIBRARY_PATH'] = '{other}'; import mfusepy; import adyton.vfs.fuse"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MountFailed" in done.stderr
    assert "libfuse 2.9, which Adyton does not know" in done.stderr


@pytest.mark.parametrize("version", [(3, 14), (3, 15), (3, 16), (3, 17), (3, 18)])
def test_structures_of_the_bindings_are_those_of_the_version(tmp_path: Path, version: tuple[int, int]) -> None:
    """Each field that Adyton sets lies where the headers of that version put it."""
    library = double(tmp_path, version[0] * 100 + version[1])
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={"FUSE_LIBRARY_PATH": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    offsets, flags, read, lseek = json.loads(done.stdout)
    assert offsets == OFFSETS[max(first for first in OFFSETS if first <= version)]
    assert flags == [0b110, 0, 0, 0]
    assert (read, lseek) == (104, 328)


def double(folder: Path, version: int) -> Path:
    """A library that reports this version of libfuse and does nothing."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed (apt-get install gcc)")
    (folder / "double.c").write_text(
        f"int fuse_version(void) {{ return {version}; }}\n"
        "void *fuse_get_context(void) { return 0; }\nint fuse_main_real(void) { return 1; }\n"
        "void fuse_exit(void *f) { (void)f; }\n"
    )
    words = ["gcc", "-shared", "-fPIC", "-o", "double.so", "double.c"]
    subprocess.run(words, cwd=folder, check=True)
    return folder / "double.so"
