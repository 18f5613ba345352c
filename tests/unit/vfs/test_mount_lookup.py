"""The mount table: Gramine's rules about which mount serves what."""

from __future__ import annotations

import pytest

from adyton.errors import MalformedManifest
from adyton.manifest.model import Mount
from adyton.vfs.mount_lookup import MountTable, below


def _table(*mounts: tuple[str, str | None], root: str = "file:.") -> MountTable:
    made = [Mount("chroot", "/", root)]
    made += [Mount("tmpfs" if uri is None else "chroot", path, uri) for path, uri in mounts]
    return MountTable(made)


@pytest.mark.parametrize(
    ("path", "base", "expected"),
    [
        ("a/b", "", "a/b"),
        ("/a", "", None),
        ("../a", "", None),
        ("..", "", None),
        ("a", "a", ""),
        ("a/b", "a", "b"),
        ("ab", "a", None),
        ("/usr/lib/x", "/usr", "lib/x"),
        ("/usr/lib/x", "/", "usr/lib/x"),
        ("usr", "/usr", None),
    ],
)
def test_below_follows_the_lexical_rule(path: str, base: str, expected: str | None) -> None:
    """A relative path is never below an absolute one, nor a longer name below a shorter."""
    assert below(path, base) == expected


def test_trusted_file_is_seen_where_its_mount_shows_it() -> None:
    """The path inside is the mount's path and what is below its URI."""
    table = _table(("/lib", "file:/usr/lib64"), ("/app.py", "file:app.py"))
    assert list(table.inside("/usr/lib64/x/libc.so")) == ["/lib/x/libc.so"]
    assert list(table.inside("./app.py")) == ["/app.py", "/app.py"] or list(table.inside("app.py")) == ["/app.py"]


def test_same_file_under_two_mounts_is_seen_twice() -> None:
    """Each mount shows it."""
    table = _table(("/a", "file:/d"), ("/b", "file:/d"), root="file:nothing")
    assert list(table.inside("/d/x")) == ["/a/x", "/b/x"]


def test_later_mount_covers_what_was_below_its_path() -> None:
    """A file under a covered part is not seen there."""
    table = _table(("/a", "file:/d"), ("/a/b", None), root="file:nothing")
    assert list(table.inside("/d/b/x")) == []
    assert list(table.inside("/d/c/x")) == ["/a/c/x"]
    covered = _table(("/a/b", "file:/d"), ("/a", "file:/e"), root="file:nothing")
    assert list(covered.inside("/d/x")) == []


def test_relative_and_absolute_paths_to_one_file_differ() -> None:
    """As in Gramine, `file:x` is not below a mount of its absolute folder."""
    table = _table(("/a", "file:/work"), root="file:nothing")
    assert list(table.inside("x")) == []


def test_serving_is_the_last_mount_at_or_above_a_path() -> None:
    """Order decides, not length."""
    table = _table(("/a", "file:/d"), ("/a/b", None))
    assert table.serving("/a/b/c").mount.type == "tmpfs"
    assert table.serving("/a/c").source == "/d"
    assert table.serving("/z").path == ""


def test_device_mount_is_refused_with_what_to_do() -> None:
    """dev: mounts exist only under SGX."""
    with pytest.raises(MalformedManifest, match="only under SGX") as raised:
        _table(("/dev/tty", "dev:/dev/tty"))
    assert raised.value.remedy is not None
