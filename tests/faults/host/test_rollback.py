"""The host puts back what a pinned folder held before: single files, folders, all of it, its history, the server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adyton.errors import IntegrityError
from adyton.roots.first_root import pin_folder
from adyton.roots.journal import journal_of
from adyton.roots.pinned_folder import PinnedFolder, confirm
from adyton.vfs.linked import LinkedTree
from tests.support.pinned import ID, KEY, PinnedWorld, every_path, read, write


@pytest.fixture
def world(tmp_path: Path) -> PinnedWorld:
    """Two runs: the first wrote everything, the second changed everything. `old` is what lay there in between."""
    world = PinnedWorld(tmp_path / "host")
    with world.run("g-1") as tree:
        tree.make_folder("sub", 0o755)
        tree.make_folder("sub/empty", 0o755)
        tree.make_folder("gone", 0o755)
        for name in ("a", "sub/b", "gone/c", "renamed"):
            write(tree, name, b"first " + name.encode())
        tree.make_link("link", b"a")
        tree.set_attribute("a", b"user.mark", b"1", 0)
    world.copy(tmp_path / "old")
    with world.run("g-2") as tree:
        for name in ("a", "sub/b"):
            write(tree, name, b"second " + name.encode())
        tree.remove("gone/c")
        tree.remove_folder("gone")
        tree.rename("renamed", "sub/moved", 0)
        tree.remove("link")
        tree.make_link("link", b"sub/b")
        tree.set_attribute("a", b"user.mark", b"2", 0)
        write(tree, "new", b"second new")
    return world


OLD = ["a", "a.adyton.xattr", "gone", "gone/c", "link.adyton.link", "renamed", "sub/b"]
NEW = ["a", "a.adyton.xattr", "link.adyton.link", "new", "sub", "sub/b", "sub/empty", "sub/moved"]


def _refused(world: PinnedWorld) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        world.check()
    assert caught.value.check == "root of the folder"
    assert caught.value.remedy
    return caught.value


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def test_newest_folder_is_taken(world: PinnedWorld) -> None:
    """Nothing was put back, so nothing is refused. The lists of this file name everything."""
    assert sorted(NEW) == every_path(world.folder)
    checked = world.check()
    assert checked.judged.taken_back == ()
    with world.run("g-3") as tree:
        assert read(tree, "a") == b"second a"
        assert tree.node("link").target == b"sub/b"


@pytest.mark.parametrize("path", OLD)
def test_one_older_file_or_folder_is_refused(world: PinnedWorld, tmp_path: Path, path: str) -> None:
    """Each file and folder of the first run, put back alone."""
    _replace(tmp_path / "old" / "out" / path, world.folder / path)
    refusal = _refused(world)
    assert path.partition("/")[0] in str(refusal.seen)
    if path in NEW:
        assert "an older or another version" in str(refusal.seen)
        assert "by g-2" in str(refusal.seen)


@pytest.mark.parametrize("path", NEW)
def test_one_missing_file_or_folder_is_refused(world: PinnedWorld, path: str) -> None:
    """Each file and folder of the second run, removed alone."""
    place = world.folder / path
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    refusal = _refused(world)
    assert f"{path}: missing" in str(refusal.seen)
    assert "by g-" in str(refusal.seen)


def test_whole_folder_put_back_is_refused(world: PinnedWorld, tmp_path: Path) -> None:
    """All files at once, with and without the history of that time."""
    newest = journal_of(str(world.folder)).read_bytes()
    world.put_back(tmp_path / "old")
    refusal = _refused(world)
    assert "is older than its key server knows it" in refusal.message
    assert "by g-2" in str(refusal.expected)
    assert "by g-1" in str(refusal.seen)
    journal_of(str(world.folder)).write_bytes(newest)
    assert "is not what was written last" in _refused(world).message


def test_history_alone_put_back_is_refused(world: PinnedWorld, tmp_path: Path) -> None:
    """The older history beside the newest files, and none at all."""
    shutil.copy2(tmp_path / "old" / "out.adyton-roots", journal_of(str(world.folder)))
    assert "is older" in _refused(world).message
    journal_of(str(world.folder)).unlink()
    assert "is gone" in _refused(world).message


def test_emptied_folder_is_refused(world: PinnedWorld) -> None:
    """Missing is never empty: not even with a history that begins anew, which nobody without the key can make."""
    shutil.rmtree(world.folder)
    world.folder.mkdir()
    _refused(world)
    journal_of(str(world.folder)).unlink()
    _refused(world)
    # even whoever has the key cannot begin the history anew: the server knows another head
    pin_folder(str(world.folder), KEY, ID, sealed_as="out", known=None)
    assert "is older" in _refused(world).message


@pytest.mark.parametrize("cut", ["half", "last record", "first byte"])
def test_cut_history_is_refused(world: PinnedWorld, cut: str) -> None:
    """Once the server has a commit, nothing of the history before it can be cut."""
    place = journal_of(str(world.folder))
    raw = place.read_bytes()
    place.write_bytes({"half": raw[: len(raw) // 2], "last record": raw[:-1], "first byte": b""}[cut])
    with pytest.raises(IntegrityError):
        world.check()


def test_every_changed_byte_of_the_history_is_refused(world: PinnedWorld) -> None:
    """A byte of each 13 is changed: the history does not open, or ends before what the server knows."""
    place = journal_of(str(world.folder))
    raw = place.read_bytes()
    for at in range(0, len(raw), 13):
        place.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(IntegrityError):
            world.check()


def test_file_put_back_during_a_run_is_refused(world: PinnedWorld, tmp_path: Path) -> None:
    """Before the program opens it for the first time: the root of the last run holds from the start."""
    with world.run("g-3") as tree:
        shutil.copy2(tmp_path / "old" / "out" / "a", world.folder / "a")
        with pytest.raises(IntegrityError, match="not the version that was expected"):
            tree.open("a")
        shutil.copy2(tmp_path / "old" / "out" / "renamed", world.folder / "renamed")
        assert "renamed" not in dict(tree.listing(""))
        with pytest.raises(FileNotFoundError):
            tree.open("renamed")
        (world.folder / "new").unlink()
        with pytest.raises(OSError, match="Input/output error"):
            tree.open("new")
    _refused(world)


def test_clone_that_wrote_is_refused(world: PinnedWorld, tmp_path: Path) -> None:
    """Two copies of one folder are written to. Only the one that the server learned of goes on."""
    world.copy(tmp_path / "clone")
    known = world.server
    with world.run("g-3") as tree:
        write(tree, "a", b"third")
    third = world.server
    world.copy(tmp_path / "third")
    world.put_back(tmp_path / "clone")
    world.server = known
    with world.run("g-4") as tree:
        write(tree, "a", b"fourth")
    world.server = third
    refusal = _refused(world)
    assert "by another run" in str(refusal.seen)
    world.put_back(tmp_path / "third")
    world.check()


def test_server_put_back_is_said_to_be(world: PinnedWorld) -> None:
    """A folder that is newer than its server, and that knows it."""
    before = world.server
    with world.run("g-3") as tree:
        write(tree, "a", b"third")
    confirm(str(world.folder), KEY, ID, world.server)
    world.check()
    world.server = before
    refusal = _refused(world)
    assert "the server was put back" in refusal.message
    assert "backup" in str(refusal.remedy)


def test_commit_that_the_server_did_not_learn_of_is_no_fault(world: PinnedWorld) -> None:
    """A run ended without its key server: the folder comes from the root that the server knows."""
    before = world.server
    with world.run("g-3") as tree:
        write(tree, "a", b"third")
    world.server = before
    with world.run("g-4") as tree:
        assert read(tree, "a") == b"third"


def test_owner_accepts_what_is_left(world: PinnedWorld, tmp_path: Path) -> None:
    """After a loss the owner pins what is there. From then on nothing older is taken, nor what was lost."""
    lost = (world.folder / "new").read_bytes()
    (world.folder / "new").unlink()
    _refused(world)
    world.server = pin_folder(str(world.folder), KEY, ID, sealed_as="out", known=world.server)
    assert world.check().entries["a"].writer == "g-2"
    (world.folder / "new").write_bytes(lost)
    assert "new: is there, and was not there or was removed" in str(_refused(world).seen)
    world.put_back(tmp_path / "old")
    _refused(world)


def test_unclean_end_takes_back_only_its_own_window(world: PinnedWorld, tmp_path: Path) -> None:
    """A run was killed: what it changed since its last commit may be lost, and what it had committed may not."""
    pinned = PinnedFolder(world.check(), "g-3")
    tree = LinkedTree(str(world.folder), KEY, sealed_as="out", power_safe=True, pinned=lambda: pinned)
    write(tree, "a", b"third")
    tree.sync_folder("")
    committed = (world.folder / "a").read_bytes()
    old = (tmp_path / "old" / "out" / "a").read_bytes()
    write(tree, "a", b"third and a half")
    pinned.close()  # killed here: no commit
    tree._files._host.close()  # the kernel lets go of a dead run's lock
    newest = (world.folder / "a").read_bytes()
    (world.folder / "a").write_bytes(committed)
    assert world.check().judged.taken_back == ("a",)
    (world.folder / "a").write_bytes(old)
    assert "a: an older or another version" in str(_refused(world).seen)
    (world.folder / "a").unlink()
    assert "a: missing" in str(_refused(world).seen)
    (world.folder / "a").write_bytes(newest)
    with world.run("g-5") as again:
        assert read(again, "a") == b"third and a half"


@pytest.mark.parametrize("put", ["older", "missing"])
def test_file_that_was_renamed_over_another_is_not_lost(world: PinnedWorld, tmp_path: Path, put: str) -> None:
    """What was committed under its first name is under one of its names, and an older file there does not stand in."""
    pinned = PinnedFolder(world.check(), "g-3")
    tree = LinkedTree(str(world.folder), KEY, sealed_as="out", power_safe=True, pinned=lambda: pinned)
    write(tree, "made", b"third")
    tree.sync_folder("")
    older = (world.folder / "a").read_bytes()
    tree.rename("made", "a", 0)
    pinned.close()  # killed here: no commit
    tree._files._host.close()  # the kernel lets go of a dead run's lock
    assert world.check().judged.taken_back == ()
    if put == "older":
        (world.folder / "a").write_bytes(older)
    else:
        (world.folder / "a").unlink()
    assert "missing, and was made before" in str(_refused(world).seen)
