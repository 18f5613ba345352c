"""The host and the files that stand for links and attributes: nothing of it can be turned into something else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.side_files import LINK_SUFFIX, XATTR_SUFFIX
from tests.faults.host.attacks import ATTACKS, fails, forget, swap
from tests.mount.served import KEY, Served, serve

pytestmark = pytest.mark.mount

LINK = f"link{LINK_SUFFIX}"
ATTRIBUTES = f"a{XATTR_SUFFIX}"


@pytest.fixture
def used(tmp_path: Path) -> Served:
    """A folder with `a` (user.level = secret), `link` -> a, and what each was before, in `kept` beside the store."""
    first = serve(tmp_path)
    try:
        kept = tmp_path / "kept"
        kept.mkdir()
        (first.top / "a").write_bytes(b"A" * 5000)
        (first.top / "other").write_bytes(b"other" * 1000)
        os.setxattr(first.top / "a", "user.level", b"public")
        os.symlink("other", first.top / "link")
        os.symlink("a", first.top / "removed")
        for name in (LINK, ATTRIBUTES, f"removed{LINK_SUFFIX}"):
            shutil.copy(first.store / name, kept / name)
        os.setxattr(first.top / "a", "user.level", b"secret")
        (first.top / "link").unlink()
        (first.top / "removed").unlink()
        os.symlink("a", first.top / "link")
        first.unmount()
    finally:
        first.destroy()
    return first


def _again(used: Served) -> Served:
    return serve(used.store.parent)


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"deleted", "older", "older-replaced", "swapped"}))
@pytest.mark.parametrize("name", [LINK, ATTRIBUTES])
def test_altered_file_of_a_link_or_of_attributes_is_an_io_error(used: Served, name: str, attack: str) -> None:
    """Flipped, cut, grown to no whole number of nodes, or a link, a pipe, a folder of the host's in its place."""
    ATTACKS[attack](used.store / name)
    served = _again(used)
    try:
        if name == LINK:
            fails(lambda: os.readlink(served.top / "link"))
            fails(lambda: (served.top / "link").read_bytes())
        else:
            fails(lambda: os.getxattr(served.top / "a", "user.level"))
            fails(lambda: os.rename(served.top / "a", served.top / "b"))
            assert (served.top / "a").read_bytes() == b"A" * 5000
        assert name in served.events()
        assert "bug" not in served.events()
    finally:
        served.destroy()


def test_host_cannot_turn_a_file_into_a_link_or_back(used: Served) -> None:
    """The suffix is in the sealed path: the same bytes under the other name are refused."""
    (used.store / "other").rename(used.store / f"other{LINK_SUFFIX}")
    (used.store / LINK).rename(used.store / "link")
    served = _again(used)
    try:
        fails(lambda: os.readlink(served.top / "other"))
        fails((served.top / "link").read_bytes)
        assert "sealed under another path" in served.events()
    finally:
        served.destroy()


def test_host_cannot_give_a_file_another_ones_attributes(used: Served) -> None:
    """Nor a link another one's target, nor a link's target as attributes."""
    shutil.copy(used.store / ATTRIBUTES, used.store / f"other{XATTR_SUFFIX}")
    shutil.copy(used.store / LINK, used.store / f"new{LINK_SUFFIX}")
    served = _again(used)
    try:
        fails(lambda: os.listxattr(served.top / "other"))
        fails(lambda: os.readlink(served.top / "new"))
        assert os.getxattr(served.top / "a", "user.level") == b"secret"
    finally:
        served.destroy()


def test_own_link_of_the_host_stays_refused(used: Served) -> None:
    """Under a name of its own, in a file's place, and under the name of a link's file."""
    (used.store / "other").unlink()
    (used.store / "other").symlink_to("a")
    (used.store / "mine").symlink_to("/etc/passwd")
    (used.store / f"mine2{LINK_SUFFIX}").symlink_to("a")
    served = _again(used)
    try:
        for name in ("other", "mine", "mine2"):
            fails(partial(os.lstat, served.top / name))
            fails((served.top / name).read_bytes)
    finally:
        served.destroy()


def test_older_link_and_older_attributes_within_a_run_are_refused(used: Served) -> None:
    """The last root of every closed file is remembered, for these files too."""
    served = _again(used)
    try:
        os.setxattr(served.top / "a", "user.level", b"newest")
        assert os.readlink(served.top / "link") == "a"
        for name in (LINK, ATTRIBUTES):
            shutil.copy(used.store.parent / "kept" / name, used.store / name)
        assert os.getxattr(served.top / "a", "user.level") == b"newest"
        assert os.readlink(served.top / "link") == "a"
        fails(lambda: os.setxattr(served.top / "a", "user.level", b"later"))
        fails(lambda: os.rename(served.top / "link", served.top / "moved"))
        assert "not the version that was expected" in served.events()
    finally:
        served.destroy()


def test_removed_link_put_back_stays_removed(used: Served) -> None:
    """And so do removed attributes."""
    served = _again(used)
    try:
        (served.top / "link").unlink()
        os.removexattr(served.top / "a", "user.level")
        for name in (LINK, ATTRIBUTES):
            shutil.copy(used.store.parent / "kept" / name, used.store / name)
        assert not os.path.lexists(served.top / "link")
        assert os.listxattr(served.top / "a") == []
        assert sorted(os.listdir(served.top)) == ["a", "other"]
        (served.top / "link").write_bytes(b"a file now")
        assert (served.top / "link").read_bytes() == b"a file now"
    finally:
        served.destroy()


@pytest.mark.parametrize("seen", ["made", "read", "listed"])
def test_older_link_does_not_take_the_place_of_a_file(used: Served, seen: str) -> None:
    """What the run has made, looked at or listed as a file stays a file, whatever genuine link is put beside it."""
    served = _again(used)
    try:
        name = served.top / "removed"
        if seen == "made":
            name.write_bytes(b"content")
        else:
            name.write_bytes(b"content")
            assert served.unmount() == 0
            served = _again(used)
            name = served.top / "removed"
            if seen == "read":
                assert name.read_bytes() == b"content"
            else:
                assert "removed" in os.listdir(served.top)
        shutil.copy(used.store.parent / "kept" / f"removed{LINK_SUFFIX}", used.store / f"removed{LINK_SUFFIX}")
        assert sorted(os.listdir(served.top)) == ["a", "link", "other", "removed"]
        forget(name)
        assert not name.is_symlink()
        assert name.read_bytes() == b"content"
        (served.top / "folder").mkdir()
        assert sorted(os.listdir(served.top)) == ["a", "folder", "link", "other", "removed"]
    finally:
        served.destroy()


@pytest.mark.parametrize("how", ["unlinked", "renamed", "folder"])
@pytest.mark.parametrize("seen", ["made", "read"])
def test_older_link_does_not_come_where_the_program_took_something_away(used: Served, how: str, seen: str) -> None:
    """A name that the program removed or renamed stays free, whatever genuine link the host puts there."""
    served = _again(used)
    try:
        name = served.top / "removed"
        name.mkdir() if how == "folder" else name.write_bytes(b"content")
        if seen == "read":
            assert served.unmount() == 0
            served = _again(used)
            name.lstat()
        shutil.copy(used.store.parent / "kept" / f"removed{LINK_SUFFIX}", used.store / f"removed{LINK_SUFFIX}")
        if how == "folder":
            name.rmdir()
        elif how == "unlinked":
            name.unlink()
        else:
            name.rename(served.top / "elsewhere")
        assert not os.path.lexists(name)
        assert sorted(os.listdir(served.top)) == ["a", *(["elsewhere"] if how == "renamed" else []), "link", "other"]
        name.write_bytes(b"a file again")
        assert name.read_bytes() == b"a file again"
        assert (served.top / "a").read_bytes() == b"A" * 5000
    finally:
        served.destroy()


@pytest.mark.parametrize("how", ["unlinked", "renamed"])
def test_older_file_does_not_come_where_the_program_took_a_link_away(used: Served, tmp_path: Path, how: str) -> None:
    """The other way round: an older file of the name, put back by the host, is not shown either."""
    served = _again(used)
    try:
        (served.top / "twice").write_bytes(b"older")
        shutil.copy(used.store / "twice", tmp_path / "kept" / "twice")
        (served.top / "twice").unlink()
        os.symlink("a", served.top / "twice")
        assert served.unmount() == 0
        served = _again(used)
        name = served.top / "twice"
        assert os.readlink(name) == "a"
        name.unlink() if how == "unlinked" else name.rename(served.top / "elsewhere")
        shutil.copy(tmp_path / "kept" / "twice", used.store / "twice")
        assert not os.path.lexists(name)
        os.symlink("other", name)
        assert os.readlink(name) == "other"
    finally:
        served.destroy()


@pytest.mark.parametrize("name", [LINK, "a", ATTRIBUTES])
def test_deleted_file_within_a_run_is_an_io_error(used: Served, name: str) -> None:
    """A link that was seen cannot vanish, nor attributes that were changed."""
    served = _again(used)
    try:
        assert os.readlink(served.top / "link") == "a"
        os.setxattr(served.top / "a", "user.level", b"newest")
        (used.store / name).unlink()
        works: dict[str, Callable[[], object]] = {
            LINK: lambda: os.rename(served.top / "link", served.top / "moved"),
            "a": (served.top / "a").read_bytes,
            ATTRIBUTES: lambda: os.setxattr(served.top / "a", "user.level", b"later"),
        }
        fails(works[name])
        assert "gone from the host" in served.events()
    finally:
        served.destroy()


@pytest.mark.parametrize(
    ("name", "content"),
    [(LINK, b"a\0b"), (LINK, b"x" * 4096), (ATTRIBUTES, b"no attributes"), (ATTRIBUTES, b"x" * (49 << 10))],
    ids=["NUL", "long", "other", "much"],
)
def test_sealed_file_that_holds_something_else_is_an_io_error(used: Served, name: str, content: bytes) -> None:
    """Another program under the same key can write such files: they are parsed strictly."""
    (used.store / name).unlink()
    with ProtectedFile.create(OSFile(used.store / name, create=True), KEY, path=f"enc/{name}") as file:
        file.write_at(0, content)
    served = _again(used)
    try:
        if name == LINK:
            fails(lambda: os.readlink(served.top / "link"))
        else:
            fails(lambda: os.listxattr(served.top / "a"))
        assert name in served.events()
        assert "bug" not in served.events()
    finally:
        served.destroy()


def test_folder_under_a_reserved_name_is_never_shown(used: Served) -> None:
    """Folders have no integrity, so the host could make one."""
    (used.store / f"x{LINK_SUFFIX}").mkdir()
    (used.store / f"y{XATTR_SUFFIX}").mkdir()
    served = _again(used)
    try:
        assert sorted(os.listdir(served.top)) == ["a", "link", "other"]
        fails(lambda: os.lstat(served.top / "x"))
        fails(lambda: os.listdir(served.top / f"x{LINK_SUFFIX}"), errno.ENOENT)
    finally:
        served.destroy()


def test_links_of_the_program_lead_the_server_nowhere(used: Served, tmp_path: Path) -> None:
    """A link out of the mount is text to the server: what is done through it is done by the program's own kernel."""
    victim = tmp_path / "victim"
    victim.mkdir()
    served = _again(used)
    try:
        os.symlink(victim, served.top / "out")
        shutil.rmtree(served.top / "out", ignore_errors=True)
        os.rename(served.top / "a", served.top / "b")
        with pytest.raises(OSError):
            os.rename(served.top / "b", served.top / "out/b")  # another file system
        assert list(victim.iterdir()) == []
        assert (served.top / "b").read_bytes() == b"A" * 5000
    finally:
        served.destroy()


def test_link_and_attributes_deleted_or_older_between_two_runs_are_not_noticed_a_stated_limit(used: Served) -> None:
    """NOT guaranteed: as for every file. Only a record of the folder's state could tell."""
    shutil.copy(used.store.parent / "kept" / ATTRIBUTES, used.store / ATTRIBUTES)
    (used.store / LINK).unlink()
    served = _again(used)
    try:
        assert os.getxattr(served.top / "a", "user.level") == b"public"
        assert not os.path.lexists(served.top / "link")
    finally:
        served.destroy()


def test_swapped_files_of_two_links_are_refused(used: Served) -> None:
    """Each carries its own path."""
    served = _again(used)
    try:
        os.symlink("x", served.top / "second")
        served.unmount()
        swap(used.store / LINK, used.store / f"second{LINK_SUFFIX}")
        served = _again(used)
        fails(lambda: os.readlink(served.top / "link"))
        fails(lambda: os.readlink(served.top / "second"))
    finally:
        served.destroy()
