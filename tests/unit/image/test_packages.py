"""Lock file, pool and packages: only what the lock file names by hash goes in, and what is missing is named."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import FetchFailed, UsageError
from adyton.image import pool as pool_module
from adyton.image import recipe
from adyton.image.build import build
from adyton.image.deb import unpack_deb, unpack_wheel
from adyton.image.erofs import Node, place, walk
from adyton.image.kernel_modules import SIGNED, load_order
from adyton.image.lock import Lock, Package, Wheel, parse_lock
from adyton.image.pool import Pool
from adyton.image.root_tree import check_tree, root_tree
from adyton.values import Digest
from adyton.workflow.image import OWN_LOCK


def digest(raw: bytes) -> Digest:
    """SHA-256 of bytes."""
    return Digest(hashlib.sha256(raw).digest())


def locked(raw: bytes = b"deb") -> Lock:
    """A lock file of one package and one wheel."""
    package = Package(
        name="libc6", version="2.36-9", sha256=digest(raw), bytes=len(raw), path="pool/main/g/glibc/a.deb"
    )
    wheel = Wheel(name="cffi", version="2.1", sha256=digest(b"wheel"), file="cffi-2.1-py3-none-any.whl")
    return Lock(1_700_000_000, "7.3.4-cloud-amd64", (package,), (wheel,))


def test_lock_of_this_release_parses_and_names_what_the_recipe_takes() -> None:
    """All packages, the stub, the firmware, the kernel, the wheels."""
    found = parse_lock(OWN_LOCK.read_bytes())
    names = {item.name for item in found.packages}
    kernel = {f"linux-binary-{found.kernel}", f"linux-modules-{found.kernel}"}
    assert names == {*recipe.SYSTEM, recipe.STUB, recipe.FIRMWARE} | kernel
    assert {item.name for item in found.wheels} == set(recipe.WHEELS)
    assert found.to_bytes() == OWN_LOCK.read_bytes()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "adyton-image-lock/2"),
        ("kernel", "../../etc"),
        ("source_date_epoch", -1),
        ("packages.path", "../a.deb"),
        ("packages.path", "pool/main/../../../etc/passwd"),
        ("packages.path", "http://evil/pool/main/a/a.deb"),
        ("packages.name", "a b"),
        ("packages.name", "../a"),
        ("packages.sha256", "11"),
        ("packages.bytes", 1 << 40),
        ("wheels.file", "../a.whl"),
        ("wheels.file", "a.tar.gz"),
        ("wheels.version", "2.1 --index-url=evil"),
        ("more", 1),
    ],
)
def test_lock_with_anything_else_is_refused(path: str, value: Any) -> None:
    """Names become files of the pool and words of commands, so each has one plain form."""
    document = json.loads(locked().to_bytes())
    place_in, _, name = path.rpartition(".")
    (document[place_in][0] if place_in else document)[name] = value
    with pytest.raises(UsageError, match=r"lock file|image lock"):
        parse_lock(json.dumps(document).encode())


def test_lock_with_a_name_twice_is_refused() -> None:
    """Which of the two would count?"""
    document = json.loads(locked().to_bytes())
    document["packages"] *= 2
    with pytest.raises(UsageError, match="each once"):
        parse_lock(json.dumps(document).encode())


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror that is a folder, and an apt-helper that copies from it without any check of its own."""
    folder = tmp_path / "mirror/debian"
    helper = tmp_path / "apt-helper"
    helper.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "assert sys.argv[1] == 'download-file' and sys.argv[4].startswith('SHA256:')\n"
        "shutil.copy(sys.argv[2].removeprefix('file://'), sys.argv[3])\n"
    )
    helper.chmod(0o755)
    monkeypatch.setattr(pool_module, "APT_HELPER", str(helper))
    target = folder / "pool/main/g/glibc/a.deb"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"deb")
    return folder


def filled(tmp_path: Path, mirror: Path) -> Pool:
    """A pool that has the wheel already."""
    (tmp_path / "pool").mkdir(exist_ok=True)
    (tmp_path / "pool/cffi-2.1-py3-none-any.whl").write_bytes(b"wheel")
    return Pool(tmp_path / "pool", (f"file://{tmp_path}/empty/debian", f"file://{mirror}"), lambda _text: None)


def test_package_is_fetched_once_from_the_first_mirror_that_has_it(tmp_path: Path, mirror: Path) -> None:
    """And comes from the pool afterwards, also where no mirror has it any more."""
    lock = locked()
    filled(tmp_path, mirror).fetch(lock)
    assert filled(tmp_path, mirror).read(lock.packages[0]) == b"deb"
    (mirror / lock.packages[0].path).unlink()
    filled(tmp_path, mirror).fetch(lock)
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == [
        lock.packages[0].file,
        lock.wheels[0].file,
    ]


def test_package_that_no_mirror_has_is_named(tmp_path: Path, mirror: Path) -> None:
    """Never another one in its place."""
    (mirror / locked().packages[0].path).unlink()
    with pytest.raises(FetchFailed, match=r"libc6 2\.36-9") as refused:
        filled(tmp_path, mirror).fetch(locked())
    assert "--update-lock" in str(refused.value.remedy)


def test_package_with_other_bytes_is_not_taken(tmp_path: Path, mirror: Path) -> None:
    """A mirror that lies, and a pool that somebody changed."""
    lock = locked()
    (mirror / lock.packages[0].path).write_bytes(b"evil")
    with pytest.raises(FetchFailed, match="libc6"):
        filled(tmp_path, mirror).fetch(lock)
    (tmp_path / "pool" / lock.packages[0].file).write_bytes(b"evil")
    with pytest.raises(FetchFailed, match="not the one of the lock file"):
        filled(tmp_path, mirror).read(lock.packages[0])


def test_lock_without_a_package_of_the_recipe_is_refused(tmp_path: Path, mirror: Path) -> None:
    """Before anything is fetched."""
    (mirror / locked().packages[0].path).unlink()
    with pytest.raises(UsageError, match="none of that name"):
        build(locked(), filled(tmp_path, mirror), lambda _text: None)


# --- unpacking ---------------------------------------------------------------------------------------------------


def deb(*members: tarfile.TarInfo, content: bytes = b"x") -> bytes:
    """A Debian package."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            member.size = len(content) if member.isfile() else 0
            archive.addfile(member, io.BytesIO(content))
    out = b"!<arch>\n"
    for name, raw in (("debian-binary", b"2.0\n"), ("data.tar.xz", lzma.compress(stream.getvalue()))):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(raw):<10}`\n".encode() + raw + b"\n" * (len(raw) % 2)
    return out


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    """A member of a package."""
    found = tarfile.TarInfo(name)
    found.type, found.mode, found.linkname = kind, mode, link
    return found


def test_package_gives_files_and_links_without_special_bits() -> None:
    """A set-uid program becomes an ordinary one, a hard link a second file."""
    raw = deb(
        member("./usr/bin", tarfile.DIRTYPE),
        member("./usr/bin/mount", mode=0o4755),
        member("./usr/bin/link", tarfile.SYMTYPE, link="mount"),
        member("./usr/bin/hard", tarfile.LNKTYPE, link="./usr/bin/mount"),
    )
    found = dict(unpack_deb(raw, "mount"))
    assert oct(found["usr/bin/mount"].mode) == "0o100755"
    assert found["usr/bin/link"].content == b"mount"
    assert found["usr/bin/hard"] == found["usr/bin/mount"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"!<arch>\n", deb(member("dev/x", tarfile.CHRTYPE)), deb(member("a"))[:-20], b"!<arch>\n" + b"x" * 60],
)
def test_package_that_is_damaged_is_refused(raw: bytes) -> None:
    """It was checked by hash, so this is a fault of the lock file; it is named all the same."""
    with pytest.raises(UsageError, match="pkg cannot be unpacked"):
        list(unpack_deb(raw, "pkg"))


def test_wheel_gives_its_modules_and_not_its_programs() -> None:
    """What pip would put into bin is left out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pkg/__init__.py", "1")
        archive.writestr("pkg-1.data/scripts/tool", "#!")
    assert [name for name, _ in unpack_wheel(stream.getvalue(), "pkg")] == ["pkg/__init__.py"]
    with pytest.raises(UsageError, match="cannot be unpacked"):
        list(unpack_wheel(b"no zip", "pkg"))


# --- the tree ----------------------------------------------------------------------------------------------------

PROGRAMS = {
    f"usr/bin/{name}": Node.file(b"\x7fELF", executable=True) for name in ("python3.11", "bwrap", "fusermount3")
}


def tree(**packages: Node) -> Node:
    """A tree with these files beside what every image has."""
    files = PROGRAMS | {name.replace("__", "/"): node for name, node in packages.items()}
    return root_tree([files.items()], [], {"__init__.py": b""}, {"tun": b"module"})


def test_only_wanted_files_are_taken() -> None:
    """No shell of a package, no documentation, no configuration, no compiled module without its library."""
    found = {
        path
        for path, node in walk(
            root_tree(
                [
                    (
                        PROGRAMS
                        | dict.fromkeys(
                            (
                                "bin/sh",
                                "usr/bin/bash",
                                "usr/share/doc/x",
                                "etc/passwd",
                                "lib/x86_64-linux-gnu/libc.so.6",
                                "usr/lib/python3.11/lib-dynload/_curses.cpython-311-x86_64-linux-gnu.so",
                                "usr/lib/python3.11/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so",
                            ),
                            Node.file(b""),
                        )
                    ).items()
                ],
                [],
                {"__init__.py": b""},
                {"tun": b"module", "wireguard": b"module"},
            )
        )
        if not node.is_folder
    }
    assert "usr/lib/x86_64-linux-gnu/libc.so.6" in found
    assert "usr/lib/python3.11/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so" in found
    assert {"usr/lib/adyton/modules/00-tun.ko", "usr/lib/adyton/modules/01-wireguard.ko"} <= found
    assert not any("_curses" in path or "share" in path for path in found)
    assert {path for path in found if path.startswith("usr/bin")} == {*PROGRAMS, "usr/bin/python3"}


@pytest.mark.parametrize("name", ["sh", "bash", "login", "sshd", "busybox"])
def test_tree_with_a_shell_or_a_login_is_refused(name: str) -> None:
    """Whatever way it came."""
    root = tree()
    place(root, f"usr/bin/{name}", Node.file(b"", executable=True))
    with pytest.raises(UsageError, match="programs that no image may have"):
        check_tree(root)


def test_tree_without_a_program_that_it_needs_is_refused() -> None:
    """A package was renamed, for example."""
    root = tree()
    del root.members["usr"].members["bin"].members["bwrap"]
    with pytest.raises(UsageError, match="without usr/bin/bwrap"):
        check_tree(root)


def module(depends: str, *, signed: bool = True) -> bytes:
    """A kernel module in xz."""
    return lzma.compress(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0" + (SIGNED if signed else b""))


def test_modules_come_after_what_they_need() -> None:
    """Each once, under either spelling, and nothing that is loaded already."""
    packed = {
        "dm-mod": module(""),
        "dm-bufio": module("dm-mod"),
        "dm-verity": module("dm-bufio,dm-mod"),
        "x": module(""),
    }
    assert list(load_order(["dm-verity", "dm_mod"], packed)) == ["dm_mod", "dm_bufio", "dm_verity"]
    assert list(load_order(["dm-verity"], packed, loaded=["dm-mod"])) == ["dm_bufio", "dm_verity"]
    assert list(load_order(["none", "x"], packed, optional=True)) == ["x"]


@pytest.mark.parametrize(
    "packed",
    [{}, {"a": module("b")}, {"a": module("a")}, {"a": module("", signed=False)}, {"a": b"no xz"}],
    ids=["missing", "needs what is missing", "needs itself", "unsigned", "no xz"],
)
def test_module_that_cannot_be_used_is_refused(packed: dict[str, bytes]) -> None:
    """At the build, and not when a guest starts."""
    with pytest.raises(UsageError, match="kernel module"):
        load_order(["a"], packed)
