"""Whole directories in, out and under another key; interrupted and continued."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton import atomic_file
from adyton.errors import (
    IntegrityError,
    SourceChanged,
    StorageFailed,
    TargetExists,
    UsageError,
    WrongPath,
)
from adyton.pfile.backing import RECOVERY_SUFFIX, OSFile
from adyton.pfile.file import ProtectedFile
from adyton.storage import trees
from adyton.storage.files import encrypt_file, verify_file
from adyton.storage.trees import JOURNAL, TreeDone, decrypt_tree, encrypt_tree, rekey_tree
from adyton.values import Key128

KEY = Key128(bytes(range(16)))
NEW = Key128(bytes(range(1, 17)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree: files of several sizes, directories, an empty one, odd names."""
    root = tmp_path / "source"
    (root / "a" / "b").mkdir(parents=True)
    (root / "empty").mkdir()
    for number, name in enumerate(("one", "a/two", "a/b/three", "a/b/ünï ☃", "a/.hidden", "zero")):
        (root / name).write_bytes(os.urandom(0 if name == "zero" else 3000 * number + 1))
    (root / "large").write_bytes(os.urandom(17 << 20))
    for number in range(30):
        (root / "a" / f"many{number:02}").write_bytes(b"%d" % number * 100)
    return root


def _content(root: Path) -> dict[str, bytes | None]:
    return {
        str(each.relative_to(root)): each.read_bytes() if each.is_file() else None for each in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_tree_goes_in_and_out(tmp_path: Path, source: Path, jobs: int) -> None:
    """Names, directories and contents are the same again, and every file carries its own path."""
    told: list[int] = []
    done = encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=jobs, advance=told.append)
    assert done == TreeDone(37, 0, sum(told))
    assert set(_content(tmp_path / "sealed")) == set(_content(source))
    with ProtectedFile.open(OSFile(tmp_path / "sealed" / "a" / "b" / "three"), KEY) as file:
        assert file.path == "in/a/b/three"
    assert decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, path="in", jobs=jobs).files == 37
    assert _content(tmp_path / "out") == _content(source)


def test_tree_embeds_its_target_by_default(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line does for one file."""
    monkeypatch.chdir(tmp_path)
    encrypt_tree(source, Path("./enc"), KEY)
    decrypt_tree(Path("enc"), Path("out"), KEY, path="enc")
    with pytest.raises(WrongPath):
        decrypt_tree(Path("enc"), Path("out2"), KEY, path="other")


@pytest.mark.parametrize("in_place", [True, False])
def test_tree_is_keyed_anew(tmp_path: Path, source: Path, in_place: bool) -> None:
    """In place or elsewhere, under the new key alone."""
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    target = tmp_path / ("sealed" if in_place else "again")
    assert rekey_tree(tmp_path / "sealed", target, KEY, NEW, new_path="new").files == 37
    decrypt_tree(target, tmp_path / "out", NEW, path="new")
    assert _content(tmp_path / "out") == _content(source)
    with pytest.raises(IntegrityError):
        verify_file(target / "one", KEY)


# ---------------------------------------------------------------- interrupted


def _stop_after(count: int, monkeypatch: pytest.MonkeyPatch, name: str = "encrypt_file") -> Callable[[], int]:
    """Let the `count`-th file fail; how many were tried."""
    real = getattr(trees, name)
    calls: list[Path] = []

    def limited(source: Path, *args: object, **options: object) -> object:
        calls.append(source)
        if len(calls) > count:
            raise KeyboardInterrupt
        return real(source, *args, **options)

    monkeypatch.setattr(trees, name, limited)
    return lambda: len(calls)


@pytest.mark.parametrize("count", [0, 1, 5, 30])
def test_interrupted_run_continues(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Said again in the same words, it makes only what is missing."""
    with monkeypatch.context() as patch:
        _stop_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1)
    assert (tmp_path / "sealed" / JOURNAL).exists()
    done = encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1)
    assert (done.resumed, done.files) == (count, 37 - count)
    assert not (tmp_path / "sealed" / JOURNAL).exists()
    assert decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, path="in").files == 37
    assert _content(tmp_path / "out") == _content(source)


def test_run_interrupted_between_a_files_placing_and_its_count_continues(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C can come when the first file is in its place and nothing knows yet: the journal must stay."""

    def make(*arguments: object, **options: object) -> object:
        encrypt_file(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trees, "encrypt_file", make)
        with pytest.raises(KeyboardInterrupt):
            encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    assert (tmp_path / "sealed" / JOURNAL).exists()
    assert encrypt_tree(source, tmp_path / "sealed", KEY, path="in").files == 37


def test_new_file_has_no_other_name_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed leaves no part of a file under a name of its own: it gets its name in one step."""

    def refused(*_: object) -> None:
        raise AssertionError("a second step")

    monkeypatch.setattr(atomic_file, "_name", refused)
    monkeypatch.setattr(atomic_file, "_put_in_place", refused)
    for force in (False, True):
        with atomic_file.atomic_target(tmp_path / f"new-{force}", force=force) as fd:
            os.write(fd, b"whole")
            assert not list(tmp_path.glob(f"*{atomic_file.PART_SUFFIX}"))
        assert (tmp_path / f"new-{force}").read_bytes() == b"whole"


def test_interrupted_decryption_and_rekeying_continue(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do the other two; rekeying in place too, whose sources are no longer what they were."""
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    with monkeypatch.context() as patch:
        _stop_after(7, patch, "decrypt_file")
        with pytest.raises(KeyboardInterrupt):
            decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, jobs=1)
    assert decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, jobs=1).resumed == 7
    assert _content(tmp_path / "out") == _content(source)
    with monkeypatch.context() as patch:
        _stop_after(7, patch, "rekey_file")
        with pytest.raises(KeyboardInterrupt):
            rekey_tree(tmp_path / "sealed", tmp_path / "sealed", KEY, NEW, jobs=1)
    assert rekey_tree(tmp_path / "sealed", tmp_path / "sealed", KEY, NEW, jobs=1).resumed == 7
    decrypt_tree(tmp_path / "sealed", tmp_path / "again", NEW, path="in")
    assert _content(tmp_path / "again") == _content(source)


def test_finished_run_removes_the_log_that_a_killed_one_left(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill can come when the journal's recovery log was made and nothing of it is in the journal."""
    with monkeypatch.context() as patch:
        _stop_after(37, patch)
        encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1)
        _stop_after(0, patch)
        (tmp_path / "sealed" / "zero").unlink()
        with pytest.raises(TargetExists):
            encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1)
        with pytest.raises(KeyboardInterrupt):
            encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1, force=True)
    (tmp_path / "sealed" / f"{JOURNAL}{RECOVERY_SUFFIX}").write_bytes(b"cut short")
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1)
    assert set(_content(tmp_path / "sealed")) == set(_content(source))


def test_log_that_cannot_be_removed_is_named(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage may put a folder in its place at any moment; here it stands where only the removal looks."""
    monkeypatch.setattr(trees, "RECOVERY_SUFFIX", ".planted")
    (tmp_path / "sealed" / f"{JOURNAL}.planted").mkdir(parents=True)
    with pytest.raises(StorageFailed, match=r"removing .*planted failed"):
        encrypt_tree(source, tmp_path / "sealed", KEY, path="in", jobs=1)


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("verb", ["encrypt", "rekey"])
def test_killed_run_continues(tmp_path: Path, source: Path, verb: str, delay: float) -> None:
    """Killed at any moment, the next run ends with everything whole; nothing half made is trusted."""
    sealed = tmp_path / "sealed"
    if verb == "rekey":
        encrypt_tree(source, sealed, KEY, path="in")
    child = os.fork()
    if child == 0:
        try:
            if verb == "rekey":
                rekey_tree(sealed, sealed, KEY, NEW)
            else:
                encrypt_tree(source, sealed, NEW, path="in")
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if verb == "rekey":
        rekey_tree(sealed, sealed, KEY, NEW)
    else:
        encrypt_tree(source, sealed, NEW, path="in", force=not (sealed / JOURNAL).exists())
    decrypt_tree(sealed, tmp_path / "out", NEW, path="in")
    assert _content(tmp_path / "out") == _content(source)
    assert not [each for each in sealed.rglob(".*") if each.name != ".hidden"]


def test_continued_run_trusts_nothing_that_changed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that changed, a target replaced by an older one, cut or removed: all made again."""
    sealed = tmp_path / "sealed"
    encrypt_tree(source, sealed, KEY, path="in")
    older = (sealed / "a/many01").read_bytes()
    with monkeypatch.context() as patch:
        _stop_after(30, patch)
        with pytest.raises(KeyboardInterrupt):
            encrypt_tree(source, sealed, KEY, path="in", jobs=1, force=True)
    (sealed / "a/many01").write_bytes(older)
    (sealed / "a/b/three").write_bytes((sealed / "a/b/three").read_bytes()[:4096])
    (sealed / "a/.hidden").unlink()
    (source / "a/many00").write_bytes(b"new")
    done = encrypt_tree(source, sealed, KEY, path="in", jobs=1)
    assert done.resumed == 26
    decrypt_tree(sealed, tmp_path / "out", KEY, path="in")
    assert _content(tmp_path / "out") == _content(source)


def test_journal_is_not_believed_from_others(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed journal, one under another key, and one of another run are refused, each with what to do."""
    sealed = tmp_path / "sealed"
    with monkeypatch.context() as patch:
        _stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            encrypt_tree(source, sealed, KEY, path="in", jobs=1)
    with pytest.raises(IntegrityError, match="journal") as refusal:
        encrypt_tree(source, sealed, NEW, path="in")
    assert "remove" in (refusal.value.remedy or "")
    with pytest.raises(UsageError, match="another run"):
        encrypt_tree(source, sealed, KEY, path="other")
    raw = bytearray((sealed / JOURNAL).read_bytes())
    raw[100] ^= 1
    (sealed / JOURNAL).write_bytes(raw)
    with pytest.raises(IntegrityError, match="journal"):
        encrypt_tree(source, sealed, KEY, path="in")
    (sealed / JOURNAL).unlink()
    with pytest.raises(TargetExists):
        encrypt_tree(source, sealed, KEY, path="in")
    assert encrypt_tree(source, sealed, KEY, path="in", force=True).files == 37


# ---------------------------------------------------------------- refused


def test_existing_file_below_the_target_is_left_and_nothing_made(tmp_path: Path, source: Path) -> None:
    """Looked for before the first file is written; other files there do not matter."""
    sealed = tmp_path / "sealed"
    (sealed / "a").mkdir(parents=True)
    (sealed / "a" / "two").write_bytes(b"precious")
    (sealed / "unrelated").write_bytes(b"x")
    with pytest.raises(TargetExists, match="a/two"):
        encrypt_tree(source, sealed, KEY)
    assert sorted(_content(sealed)) == ["a", "a/two", "unrelated"]
    assert (sealed / "a" / "two").read_bytes() == b"precious"


def test_odd_entries_are_refused_by_name(tmp_path: Path, source: Path) -> None:
    """Nothing is left out silently."""
    os.mkfifo(source / "odd")
    with pytest.raises(UsageError, match="odd"):
        encrypt_tree(source, tmp_path / "sealed", KEY)
    assert not (tmp_path / "sealed").exists()


def test_links_are_followed_where_asked(tmp_path: Path, source: Path) -> None:
    """To files and directories; a circle is refused, a dangling one too."""
    (source / "link").symlink_to(source / "one")
    (source / "directory").symlink_to(source / "a")
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in", follow_links=True)
    decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY, path="in")
    assert (tmp_path / "out" / "link").read_bytes() == (source / "one").read_bytes()
    assert _content(tmp_path / "out" / "directory") == _content(source / "a")
    (source / "a" / "circle").symlink_to(source)
    with pytest.raises(UsageError, match="circle"):
        encrypt_tree(source, tmp_path / "other", KEY, follow_links=True)
    (source / "a" / "circle").unlink()
    (source / "dangling").symlink_to(source / "nowhere")
    with pytest.raises(StorageFailed):
        encrypt_tree(source, tmp_path / "other", KEY, follow_links=True)


def test_target_within_the_source_is_refused(source: Path) -> None:
    """It would find its own output."""
    with pytest.raises(UsageError, match="lies in"):
        encrypt_tree(source, source / "sealed", KEY)
    with pytest.raises(UsageError, match="lies in"):
        encrypt_tree(source, source, KEY, force=True)


def test_source_that_is_no_directory_is_refused(tmp_path: Path, source: Path) -> None:
    """Missing, or a file."""
    for root in (tmp_path / "missing", source / "one"):
        with pytest.raises(StorageFailed, match="not a directory"):
            encrypt_tree(root, tmp_path / "sealed", KEY)


def test_one_bad_file_stops_the_run_and_is_named(tmp_path: Path, source: Path) -> None:
    """The others that were made stay, in the journal, for the next run."""
    encrypt_tree(source, tmp_path / "sealed", KEY, path="in")
    raw = bytearray((tmp_path / "sealed" / "a" / "many07").read_bytes())
    raw[3000] ^= 1
    (tmp_path / "sealed" / "a" / "many07").write_bytes(raw)
    with pytest.raises(IntegrityError, match="many07"):
        decrypt_tree(tmp_path / "sealed", tmp_path / "out", KEY)
    assert not (tmp_path / "out" / "a" / "many07").exists()
    assert (tmp_path / "out" / JOURNAL).exists()


@pytest.mark.parametrize("root", ["in", "/", "", "/in/deep"])
def test_swapped_files_of_a_tree_are_refused(tmp_path: Path, source: Path, root: str) -> None:
    """Without being told the root, all files must agree on one; keying anew does not launder a swapped file."""
    sealed = tmp_path / "sealed"
    encrypt_tree(source, sealed, KEY, path=root)
    assert decrypt_tree(sealed, tmp_path / "good", KEY).files == 37
    (sealed / "one").rename(sealed / "swap")
    (sealed / "zero").rename(sealed / "one")
    (sealed / "swap").rename(sealed / "zero")
    with pytest.raises(WrongPath):
        decrypt_tree(sealed, tmp_path / "out", KEY, jobs=1)
    with pytest.raises(WrongPath):
        rekey_tree(sealed, tmp_path / "again", KEY, NEW, new_path="new", jobs=1)
    shutil.rmtree(sealed)
    encrypt_tree(source, sealed, KEY, path="in")
    (sealed / "large").unlink()
    (sealed / "a" / ".hidden").rename(sealed / "a" / "!first")
    with pytest.raises(WrongPath, match="does not end"):
        decrypt_tree(sealed, tmp_path / "other", KEY, jobs=1)


def test_interrupted_rekeying_to_another_path_continues(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, where the first files carry the new path already."""
    sealed = tmp_path / "sealed"
    encrypt_tree(source, sealed, KEY, path="in")
    with monkeypatch.context() as patch:
        _stop_after(7, patch, "rekey_file")
        with pytest.raises(KeyboardInterrupt):
            rekey_tree(sealed, sealed, KEY, NEW, new_path="new", jobs=1)
    (sealed / JOURNAL).unlink()  # as if it had been killed before the journal knew
    assert rekey_tree(sealed, sealed, KEY, NEW, new_path="new", jobs=1).resumed == 0
    decrypt_tree(sealed, tmp_path / "out", NEW, path="new")
    assert _content(tmp_path / "out") == _content(source)


def test_changing_source_is_named(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the tree that is written to meanwhile."""
    real = encrypt_file

    def meddled(plain: Path, *args: object, **options: object) -> object:
        if plain.name == "large":
            options["advance"] = lambda _done: os.utime(plain, (1, 1))
        return real(plain, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trees, "encrypt_file", meddled)
    with pytest.raises(SourceChanged, match="large"):
        encrypt_tree(source, tmp_path / "sealed", KEY)
