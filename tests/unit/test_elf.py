"""Which libraries come with an ELF file: the loader's own answer is the measure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton import elf

PROGRAMS = [path for name in ("bwrap", "fusermount3", "git", "sh") if (path := shutil.which(name))]
NO_COMPILER = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (apt-get install gcc)")


def of_loader(path: str) -> dict[str, str]:
    """What the dynamic loader would load with this program, as ldd tells it."""
    shown = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\t(?:(\S+) => )?(/\S+) \(", shown, re.MULTILINE)
    return {(name or place).rpartition("/")[2]: os.path.realpath(place) for name, place in found}


def library(folder: Path, name: str, *words: str) -> Path:
    """A shared library of one function."""
    folder.mkdir(exist_ok=True)
    (folder / "x.c").write_text(f"int f_{re.sub('[^a-z]', '_', name)}(void) {{ return 1; }}\n")
    command = ["gcc", "-shared", "-o", name, "x.c", "-Wl,--no-as-needed", *words]
    subprocess.run(command, cwd=folder, check=True)
    return folder / name


@pytest.mark.parametrize("path", [*PROGRAMS, os.path.realpath(sys.executable)])
def test_libraries_of_a_program_are_what_the_loader_loads(path: str) -> None:
    """The same names at the same places, for programs of this machine."""
    assert elf.libraries([path], []) == of_loader(path)


@pytest.mark.parametrize("path", [*PROGRAMS, os.path.realpath(sys.executable)])
def test_paths_that_the_loader_opens_are_told_as_it_tells_them(path: str) -> None:
    """Links and all, without the loader itself."""
    shown = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert elf.opened(path) == sorted(set(re.findall(r"^\t\S+ => (/\S+) \(", shown, re.MULTILINE)))


@NO_COMPILER
def test_library_is_looked_for_where_the_loader_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DT_RPATH first, then LD_LIBRARY_PATH, then DT_RUNPATH; one that is nowhere is left out."""
    for place in ("beside", "ahead"):
        library(tmp_path / place, "libinner.so")
    link = ("-L../beside", "-linner")
    late = library(tmp_path / "late", "liblate.so", *link, "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../beside")
    early = library(tmp_path / "early", "libearly.so", *link, "-Wl,--disable-new-dtags,-rpath,${ORIGIN}/../beside")
    bare = library(tmp_path / "bare", "libbare.so", *link)
    beside, ahead = str(tmp_path / "beside/libinner.so"), str(tmp_path / "ahead/libinner.so")
    assert elf.libraries([str(late)], [])["libinner.so"] == beside
    assert "libinner.so" not in elf.libraries([str(bare)], [])
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path}/ahead")
    assert elf.libraries([str(late)], [])["libinner.so"] == ahead == of_loader(str(late))["libinner.so"]
    assert elf.libraries([str(early)], [])["libinner.so"] == beside == of_loader(str(early))["libinner.so"]
    assert elf.libraries([str(bare)], [])["libinner.so"] == ahead
    for path, place in ((late, ahead), (early, beside), (bare, ahead)):
        assert [os.path.realpath(found) for found in elf.opened(str(path)) if "inner" in found] == [place]


@NO_COMPILER
def test_library_that_is_mapped_already_is_the_one_that_counts(tmp_path: Path) -> None:
    """The loader takes what is loaded under a name, wherever it lies, and known by its own name and not its file's."""
    library(tmp_path, "libplanted.so", "-Wl,-soname,libchosen.so.7")
    code = f"import ctypes; ctypes.CDLL('{tmp_path}/libplanted.so')\nfrom adyton import elf\n"
    code += "print(elf.libraries([], ['libchosen.so.7'])['libchosen.so.7'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "libplanted.so")


@NO_COMPILER
def test_variants_for_newer_processors_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them runs depends on the processor, so each is listed, and what it needs."""
    library(tmp_path, "libinner.so")
    library(tmp_path, "libouter.so")
    newer = tmp_path / "glibc-hwcaps/x86-64-v9"
    newer.mkdir(parents=True)
    library(newer, "libouter.so", "-L../..", "-linner")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = elf.libraries([], ["libouter.so"])
    assert found["libouter.so"] == str(tmp_path / "libouter.so")
    assert found["x86-64-v9/libouter.so"] == str(newer / "libouter.so")
    assert found["libinner.so"] == str(tmp_path / "libinner.so")


def test_file_that_is_no_elf_asks_for_nothing(tmp_path: Path) -> None:
    """Text, an empty file, a cut program, and one with impossible tables: no library, and no exception."""
    raw = Path(os.path.realpath("/bin/sh")).read_bytes()
    segments = raw[:56] + b"\xff\xff" + raw[58:]
    for number, content in enumerate((b"", b"#!/bin/sh\n", raw[:60], raw[:200], segments, b"\x7fELF" + bytes(200))):
        path = tmp_path / str(number)
        path.write_bytes(content)
        assert elf.libraries([str(path)], []) == {} or content == raw[:200]


def test_loaders_cache_that_is_absent_or_damaged_is_no_answer(tmp_path: Path) -> None:
    """The default folders are searched then."""
    path = tmp_path / "cache"
    assert elf._cached(*elf._stamp(str(path))) == {}
    raw = Path("/etc/ld.so.cache").read_bytes() if Path("/etc/ld.so.cache").exists() else b""
    assert not raw or elf._cached(*elf._stamp("/etc/ld.so.cache"))
    for content in (b"", b"glibc-ld.so.cache1.1", raw[:48] if raw else b"x", b"another" + raw[7:]):
        path.write_bytes(content)
        assert elf._cached(*elf._stamp(str(path))) == {}
