"""What the C parts are built to: the same from the same sources, wherever they lie and whenever it is done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.pfile import seal
from adyton.runtime import identity
from tests.conftest import REPOSITORY

PACKAGE = Path(identity.__file__).parent.parent
PARTS = sorted(PACKAGE.glob("*/*.so"))

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("cc") is None,
    reason="no C compiler (apt-get install gcc)",
)


@pytest.mark.skipif(not seal.NATIVE, reason="the C parts were not built (gcc and libssl-dev, then make setup)")
def test_built_parts_hold_no_place_of_the_build() -> None:
    """Neither the checkout's folder, nor a temporary one, nor the interpreter's own: no debugging data, no run path."""
    assert [part.name.partition(".")[0] for part in PARTS] == ["_init", "_gcm", "_launcher", "_reads"]
    for part in PARTS:
        content = part.read_bytes()
        for place in (str(REPOSITORY), str(Path.home()), "/tmp/", sys.prefix, sys.base_prefix):
            if place not in ("/", "/usr"):
                assert place.encode() not in content, f"{part.name} names {place}"
        assert b".debug_info" not in content
        tags = subprocess.run(["readelf", "-d", str(part)], capture_output=True, text=True, check=True).stdout
        assert "RUNPATH" not in tags
        assert "RPATH" not in tags


def clone(folder: Path) -> Path:
    """The repository's sources once more, without anything built, and then built in place."""
    folder.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    unbuilt = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=unbuilt)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def identity_in(folder: Path) -> str:
    """The runtime's identity when Adyton runs from this clone."""
    code = "from adyton.runtime.identity import runtime_identity as r; i = r(); print(i.digest, i.parts['adyton'])"
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


@needs_compiler
def test_two_clones_have_one_identity(tmp_path: Path) -> None:
    """Two folders with names of different lengths, built apart: every compiled file and the identity are the same."""
    one, other = clone(tmp_path / "a"), clone(tmp_path / "in another place" / "clone")
    parts = [{path.name: path.read_bytes() for path in folder.glob("src/adyton/*/*.so")} for folder in (one, other)]
    assert len(parts[0]) == 4
    assert parts[0] == parts[1]
    assert identity_in(one) == identity_in(other)
    with (other / "src/adyton/pfile/gcm.c").open("a") as source:
        source.write("/* changed */\n")
    assert identity_in(one) != identity_in(other)
