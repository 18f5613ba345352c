"""Symbolic links of whole folders: sealed, made again, and refused where they are dangerous."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import IntegrityError, StorageFailed, TargetExists, UsageError, WrongPath
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.side_files import LINK_SUFFIX, XATTR_SUFFIX, encode_attributes
from adyton.storage.links import leads_out, link_name, make_links
from adyton.storage.trees import JOURNAL, decrypt_tree, encrypt_tree, rekey_tree
from adyton.values import Key128

KEY = Key128(bytes(range(16)))
NEW = Key128(bytes(range(1, 17)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with links as a hub's cache has them, and dangling ones."""
    root = tmp_path / "source"
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots/1").mkdir(parents=True)
    (root / "blobs/b").write_bytes(os.urandom(10_000))
    os.symlink("../../blobs/b", root / "snapshots/1/model")
    os.symlink("1", root / "snapshots/latest")
    os.symlink("./latest//model", root / "snapshots/model")
    os.symlink("nowhere", root / "dangling")
    return root


def _seal(place: Path, path: str, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with ProtectedFile.create(OSFile(place, create=True), KEY, path=path) as file:
        file.write_at(0, content)


def _tree(root: Path) -> dict[str, str | bytes | None]:
    found: dict[str, str | bytes | None] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


def test_links_go_in_and_out(tmp_path: Path, source: Path) -> None:
    """Letter by letter, also under another key; on the way they are sealed files of reserved names."""
    done = encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    assert done.files == 5
    sealed = tmp_path / "sealed"
    assert not any(path.is_symlink() for path in sealed.rglob("*"))
    with ProtectedFile.open(
        OSFile(sealed / f"snapshots/model{LINK_SUFFIX}"), KEY, path=f"in/snapshots/model{LINK_SUFFIX}"
    ) as file:
        assert file.read_at(0, 100) == b"./latest//model"
    rekey_tree(sealed, tmp_path / "again", KEY, NEW, new_path="other")
    assert decrypt_tree(tmp_path / "again", tmp_path / "out", NEW, path="other").files == 5
    assert _tree(tmp_path / "out") == _tree(source)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "blobs/../../x", "circle", "up/up/.."])
def test_link_that_leads_out_is_refused_on_both_ways(tmp_path: Path, source: Path, target: str) -> None:
    """In clear it would lead to any file of the owner's. Nothing is written; --all-links takes it."""
    os.symlink(".", source / "up")
    os.symlink(target, source / "circle")
    with pytest.raises(UsageError, match="circle leads to") as raised:
        encrypt_tree(source, tmp_path / "sealed", KEY)
    assert "--follow-links" in (raised.value.remedy or "")
    assert not (tmp_path / "sealed").exists()
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in", all_links=True)
    with pytest.raises(UsageError, match="circle leads to") as raised:
        decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY)
    assert "--all-links" in (raised.value.remedy or "")
    assert not (tmp_path / "out").exists()
    decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, all_links=True)
    assert _tree(tmp_path / "out") == _tree(source)


def test_nothing_is_written_through_a_link_of_the_folder(tmp_path: Path) -> None:
    """A link and a folder of one name: the files of the folder would land where the link leads."""
    outside = tmp_path / "outside"
    outside.mkdir()
    _seal(tmp_path / f"sealed/d{LINK_SUFFIX}", f"in/d{LINK_SUFFIX}", os.fsencode(outside))
    _seal(tmp_path / "sealed/d/a", "in/d/a", b"content")
    with pytest.raises(IntegrityError, match="d is there as a link and as a file or a folder"):
        decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, all_links=True)
    assert not (tmp_path / "out").exists()
    assert list(outside.iterdir()) == []


def test_link_in_the_place_of_a_file_is_refused_without_force(tmp_path: Path, source: Path) -> None:
    """On both ways; with force it is replaced, and what the name was sealed as before goes."""
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dangling").write_text("mine")
    with pytest.raises(TargetExists, match="dangling"):
        decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY)
    assert (tmp_path / "out/dangling").read_text() == "mine"
    decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, force=True)
    assert _tree(tmp_path / "out") == _tree(source)
    (source / "dangling").unlink()
    (source / "dangling").write_text("a file now")
    with pytest.raises(TargetExists, match=f"dangling{LINK_SUFFIX}"):
        encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    assert (tmp_path / f"sealed/dangling{LINK_SUFFIX}").exists()
    (source / "blobs/b").unlink()
    os.symlink("../dangling", source / "blobs/b")
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in", force=True)
    decrypt_tree(tmp_path / "sealed", tmp_path / "second", KEY)
    assert _tree(tmp_path / "second") == _tree(source)


def test_interrupted_decryption_makes_the_links_when_it_goes_on(tmp_path: Path, source: Path) -> None:
    """They come last, so none is there before."""
    (source / "z").write_bytes(b"z")
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    whole = (tmp_path / "sealed/z").read_bytes()
    (tmp_path / "sealed/z").write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(IntegrityError, match="/z"):
        decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, jobs=1)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert (tmp_path / "out" / JOURNAL).exists()
    (tmp_path / "sealed/z").write_bytes(whole)
    done = decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, jobs=1)
    assert (done.files, done.resumed) == (5, 1)
    assert _tree(tmp_path / "out") == _tree(source)


def test_altered_link_is_refused_before_anything_is_written(tmp_path: Path, source: Path) -> None:
    """A flipped bit, another link's file, a file that is no link, a link of the host's own."""
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    place = tmp_path / f"sealed/dangling{LINK_SUFFIX}"
    whole = place.read_bytes()

    def refused(error: type[Exception]) -> None:
        with pytest.raises(error):
            decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, path="in")
        assert not (tmp_path / "out").exists()

    place.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    refused(IntegrityError)
    place.write_bytes((tmp_path / f"sealed/snapshots/latest{LINK_SUFFIX}").read_bytes())
    refused(WrongPath)
    _seal(place, f"in/dangling{LINK_SUFFIX}", b"a\0b")
    refused(IntegrityError)
    place.unlink()
    place.symlink_to("snapshots")
    refused(UsageError)


def test_attributes_and_links_that_were_never_written_are_left_out(tmp_path: Path) -> None:
    """So are names that would be `.` or `..` as links."""
    _seal(tmp_path / "sealed/a", "in/a", b"A")
    _seal(tmp_path / f"sealed/a{XATTR_SUFFIX}", f"in/a{XATTR_SUFFIX}", encode_attributes({b"user.a": b"1"}))
    for name in ("link", "", ".", ".."):
        _seal(tmp_path / f"sealed/{name}{LINK_SUFFIX}", f"in/{name}{LINK_SUFFIX}", b"" if name == "link" else b"a")
    assert decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY).files == 1
    assert _tree(tmp_path / "out") == {"a": b"A"}
    assert [link_name(name + LINK_SUFFIX) for name in ("d/a", "", "d/.", "..")] == ["d/a", None, None, None]


@pytest.mark.parametrize("suffix", [LINK_SUFFIX, XATTR_SUFFIX])
@pytest.mark.parametrize("is_folder", [True, False])
def test_source_with_a_reserved_name_is_refused(tmp_path: Path, source: Path, suffix: str, is_folder: bool) -> None:
    """It would be taken for a link or for attributes."""
    place = source / f"a{suffix}"
    place.mkdir() if is_folder else place.write_text("a")
    with pytest.raises(UsageError, match="stands for a link or for attributes"):
        encrypt_tree(source, tmp_path / "sealed", KEY)
    assert not (tmp_path / "sealed").exists()


def test_folder_in_the_place_of_a_link_is_an_error(tmp_path: Path) -> None:
    """It is not removed, and no temporary name stays."""
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageFailed, match="making the link"):
        make_links(tmp_path, {"a": "b"}, replace=True)
    assert os.listdir(tmp_path) == ["a"]


_PARTS = st.sampled_from(["a", "b", "c", "..", "..", ".", ""])
_TARGETS = st.lists(_PARTS, min_size=1, max_size=5).map("/".join).filter(lambda text: text != "")
_LINKS = st.dictionaries(st.sampled_from(["a", "b", "c/a", "c/b", "c/c/a"]), _TARGETS, min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(_LINKS)
def test_link_that_passes_stays_within_as_the_kernel_follows_it(links: dict[str, str]) -> None:
    """For any set of links: what is not refused leads, in a real folder, to a place below it."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve() / "deep/top"
        (top / "c/c").mkdir(parents=True)
        for link, text in links.items():
            os.symlink(text, top / link)
        for link in links:
            if not leads_out(link, links):
                assert (top / link).resolve().is_relative_to(top), links


@pytest.mark.timeout(10)
def test_links_cost_little_whatever_they_say() -> None:
    """Links that lead through one another, each twice: refused, and not followed for ever."""
    links = {f"l{number}": "/".join([f"l{number + 1}/.."] * 600)[:4095] for number in range(60)}
    assert all(leads_out(link, links) for link in links if link != "l59")
