"""Expansion of trusted files: Gramine's order and links, hashes, sizes, modes, times."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, ManifestError
from adyton.manifest.cache import HashCache
from adyton.manifest.model import TrustedFile
from adyton.manifest.trusted import expand
from adyton.values import Digest


def uris(tmp_path: Path, *entries: str) -> list[str]:
    """The URIs that some entries expand to."""
    return [entry.uri for entry in expand([TrustedFile(uri) for uri in entries], tmp_path)]


def make(path: Path, content: bytes = b"x") -> Path:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_folder_is_expanded_depth_first_in_code_point_order(tmp_path: Path) -> None:
    """Upper case before lower case, dot files too, a folder in its place among the files."""
    for name in ("d/b", "d/B", "d/a/z", "d/a/.x", "d/.hidden", "d/c", "d/a.txt", "d/é"):
        make(tmp_path / name)
    assert uris(tmp_path, "file:d/") == [
        "file:d/.hidden",
        "file:d/B",
        "file:d/a/.x",
        "file:d/a/z",
        "file:d/a.txt",
        "file:d/b",
        "file:d/c",
        "file:d/é",
    ]


def test_folder_listed_with_dots_and_slashes_names_files_through_pathlib(tmp_path: Path) -> None:
    """`./d//` gives d/…, and a directly listed file keeps its text."""
    make(tmp_path / "d" / "a")
    assert uris(tmp_path, "file:./d//", "file:./d/a", "file:d/../d/") == ["file:d/a", "file:./d/a", "file:d/../d/a"]
    assert uris(tmp_path, "file:./") == ["file:d/a"]
    assert uris(tmp_path, f"file:{tmp_path}/d/") == [f"file:{tmp_path}/d/a"]


def test_folder_with_links_lists_files_but_enters_no_linked_folder(tmp_path: Path) -> None:
    """A link to a file stands under its own name; links to folders, broken links and FIFOs are passed over."""
    make(tmp_path / "real" / "file", b"content")
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "to_file").symlink_to("../real/file")
    (folder / "to_folder").symlink_to("../real")
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    found = expand([TrustedFile("file:d/")], tmp_path)
    assert [entry.uri for entry in found] == ["file:d/to_file"]
    assert found[0].sha256 == Digest(hashlib.sha256(b"content").digest())
    assert found[0].size_bytes == 7


def test_folder_reached_through_a_link_is_entered_where_it_is_named(tmp_path: Path) -> None:
    """The folder that an entry names may itself be a link."""
    make(tmp_path / "real" / "file")
    (tmp_path / "link").symlink_to("real")
    assert uris(tmp_path, "file:link/") == ["file:link/file"]


def test_duplicates_keep_the_first_place(tmp_path: Path) -> None:
    """The same text twice is one entry; an entry with a hash fills one without."""
    content = make(tmp_path / "b", b"b").read_bytes()
    make(tmp_path / "a", b"a")
    given = Digest(hashlib.sha256(content).digest())
    found = expand([TrustedFile("file:b"), TrustedFile("file:a"), TrustedFile("file:b", given)], tmp_path)
    assert [entry.uri for entry in found] == ["file:b", "file:a"]
    assert found[0].sha256 == given


def test_duplicates_with_two_hashes_are_refused(tmp_path: Path) -> None:
    """Two hashes for one file cannot both be right."""
    make(tmp_path / "a")
    with pytest.raises(MalformedManifest, match="two hashes"):
        expand([TrustedFile("file:a", Digest(bytes(32))), TrustedFile("file:a", Digest(bytes([1] * 32)))], tmp_path)


def test_file_with_another_hash_than_given_is_refused(tmp_path: Path) -> None:
    """A hash in the template is held against the file."""
    make(tmp_path / "a", b"content")
    with pytest.raises(ManifestError, match="another hash") as refused:
        expand([TrustedFile("file:a", Digest(bytes(32)))], tmp_path)
    assert refused.value.seen == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    ("uri", "seen"), [("file:nothing", "nothing there"), ("file:d", "a folder"), ("file:fifo", "something else")]
)
def test_entry_that_is_no_file_is_refused_with_what_it_is(tmp_path: Path, uri: str, seen: str) -> None:
    """A file that is missing, a folder or a FIFO is named."""
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ManifestError, match="expected a file") as refused:
        expand([TrustedFile(uri)], tmp_path)
    assert refused.value.seen == seen


@pytest.mark.parametrize("uri", ["file:nothing/", "file:f/"])
def test_entry_that_is_no_folder_is_refused(tmp_path: Path, uri: str) -> None:
    """A URI that ends in / must be a folder."""
    make(tmp_path / "f")
    with pytest.raises(ManifestError, match="expected a folder"):
        expand([TrustedFile(uri)], tmp_path)


def test_folder_with_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A manifest cannot name such a file, so it is said and not left out."""
    make(tmp_path / "d" / "ok")
    (tmp_path / "d" / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(MalformedManifest, match="UTF-8"):
        expand([TrustedFile("file:d/")], tmp_path)


def test_executable_files_are_marked(tmp_path: Path) -> None:
    """The executable bit is the only bit of the mode that counts."""
    make(tmp_path / "a").chmod(0o755)
    make(tmp_path / "b").chmod(0o640)
    assert [entry.executable for entry in expand([TrustedFile("file:a"), TrustedFile("file:b")], tmp_path)] == [
        True,
        False,
    ]


def pyc(source: bytes, mtime: int, *, flags: int = 0) -> bytes:
    """The header of a cached module, and a little more."""
    return b"\xa7\r\r\n" + b"".join(n.to_bytes(4, "little") for n in (flags, mtime, len(source))) + b"rest"


def test_source_time_comes_from_its_cached_bytecode(tmp_path: Path) -> None:
    """Whatever time the source has on disk, the manifest has the time that its .pyc names."""
    make(tmp_path / "m.py", b"source")
    make(tmp_path / "__pycache__" / "m.cpython-311.pyc", pyc(b"source", 1_600_000_000))
    first = expand([TrustedFile("file:./m.py"), TrustedFile("file:./__pycache__/m.cpython-311.pyc")], tmp_path)
    assert [entry.mtime_s for entry in first] == [1_600_000_000, None]
    os.utime(tmp_path / "m.py", (5, 5))
    assert first == expand([TrustedFile("file:./m.py"), TrustedFile("file:./__pycache__/m.cpython-311.pyc")], tmp_path)


@pytest.mark.parametrize("content", [pyc(b"other size", 7), pyc(b"source", 7, flags=1), b"short"])
def test_source_whose_bytecode_does_not_fit_has_no_time(tmp_path: Path, content: bytes) -> None:
    """Bytecode of another source, checked by hash, or damaged, gives no time."""
    make(tmp_path / "d" / "m.py", b"source")
    make(tmp_path / "d" / "__pycache__" / "m.cpython-311.pyc", content)
    assert all(entry.mtime_s is None for entry in expand([TrustedFile("file:d/")], tmp_path))


def test_cache_saves_hashing_and_forgets_what_changed(tmp_path: Path) -> None:
    """A hash is taken from the cache for as long as device, inode, size and both times are the same."""
    file = make(tmp_path / "a", b"one")
    old = time.time() - 10
    os.utime(file, (old, old))
    place = tmp_path / "cache" / "hashes.json"
    stat = file.stat()
    cache = HashCache.load(place)
    cache.put(stat, Digest(bytes(32)))
    assert cache.get(stat) is None  # changed (ctime) less than a second ago: not remembered
    aged = Path(os.__file__).stat()
    cache.put(aged, Digest(bytes(32)))
    cache.save()
    assert place.stat().st_mode & 0o777 == 0o600
    assert HashCache.load(place).get(aged) == Digest(bytes(32))
    assert HashCache.load(place).get(stat) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "other", "hashes": {}}', b'{"format": 1}'])
def test_cache_that_is_damaged_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    """A cache is a hint: damaged, it is merely empty."""
    place = make(tmp_path / "hashes.json", content)
    make(tmp_path / "a", b"content")
    cache = HashCache.load(place)
    found = expand([TrustedFile("file:a")], tmp_path, cache=cache)
    assert found[0].sha256 == Digest(hashlib.sha256(b"content").digest())


def test_cache_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    """Whoever could write the cache could forge a hash."""
    place = tmp_path / "hashes.json"
    cache = HashCache.load(place)
    aged = Path(os.__file__).stat()
    cache.put(aged, Digest(bytes(32)))
    cache.save()
    assert HashCache.load(place).get(aged) is not None
    place.chmod(0o666)
    assert HashCache.load(place).get(aged) is None


def test_file_that_grows_while_it_is_hashed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash of half old, half new content is worth nothing."""
    file = make(tmp_path / "a", bytes(3 << 20))
    read = os.read

    def growing(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        if data:
            with file.open("ab") as more:
                more.write(b"!")
        return data if file.stat().st_size < (3 << 20) + 5 else b""

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(ManifestError, match="changed while"):
        expand([TrustedFile("file:a")], tmp_path, jobs=1)
