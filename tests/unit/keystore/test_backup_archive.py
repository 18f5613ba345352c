"""The tar inside a backup: a backup's files come back, and nothing that no backup holds is written anywhere."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from adyton.errors import FileFormatError
from adyton.keystore.backup import archive as backup_archive

GOOD = {"home/config.toml": b"c", "home/collateral/a b+c.json": b"{}", "store.sqlite": b"tables"}


def tar_of(entries: list[tuple[tarfile.TarInfo, bytes]]) -> io.BytesIO:
    """A tar of these entries, as a stream."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w|") as made:
        for information, content in entries:
            made.addfile(information, io.BytesIO(content))
    raw.seek(0)
    return raw


def entry(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a tar; a field replaces what a regular file has."""
    information = tarfile.TarInfo(name)
    information.size = len(content)
    for field, value in fields.items():
        setattr(information, field, value)
    return information, content


def unpack(raw: io.BytesIO, folder: Path) -> None:
    """Unpack as restore does: from a stream that cannot seek back."""
    folder.mkdir()
    with tarfile.open(fileobj=raw, mode="r|") as inner:
        backup_archive.unpack(inner, folder)


def test_unpack_writes_the_files_privately(tmp_path: Path) -> None:
    """Files have mode 600 and folders 700, whatever the archive says."""
    unpack(tar_of([entry(name, content, mode=0o7777) for name, content in GOOD.items()]), tmp_path / "new")
    for name, content in GOOD.items():
        path = tmp_path / "new" / name
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o7777 == 0o600
        assert path.parent.stat().st_mode & 0o77 == 0 or path.parent == tmp_path / "new"


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "home/../../out",
        "/out",
        "home//out",
        "home/.ssh/authorized_keys",
        "home/./out",
        "home",
        "home/",
        "store.sqlite/x",
        "other.txt",
        "content",
        "home/a\nb",
        "home/a/b/c/d/e/f/g",
        "home/" + "a" * 256,
        "Home/a",
    ],
)
def test_unpack_name_that_no_backup_has_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing is written under another name, above the folder, or as a hidden file."""
    with pytest.raises(FileFormatError, match="name that no backup has"):
        unpack(tar_of([entry(name), *(entry(good) for good in GOOD)]), tmp_path / "new")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"9"],
)
def test_unpack_entry_that_is_no_regular_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    """Links could lead a later entry out of the folder; devices and pipes are no files of a home."""
    (tmp_path / "out").mkdir()
    hostile = entry("home/link", b"", type=kind, linkname="../../out", devmajor=1, devminor=3)
    with pytest.raises(FileFormatError, match="not a regular file"):
        unpack(tar_of([hostile, entry("home/link/x")]), tmp_path / "new")
    assert os.listdir(tmp_path / "out") == []


def test_unpack_sparse_entry_is_refused(tmp_path: Path) -> None:
    """A few bytes could stand for gigabytes of nothing."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "home/big"}
    hostile = entry("home/big", b"0\n".ljust(512, b"\0"), pax_headers={**headers, "GNU.sparse.realsize": str(1 << 40)})
    with pytest.raises(FileFormatError, match="not a regular file"):
        unpack(tar_of([hostile]), tmp_path / "new")


def test_unpack_file_twice_is_refused(tmp_path: Path) -> None:
    """The later one does not replace the earlier one."""
    with pytest.raises(FileFormatError, match="twice"):
        unpack(tar_of([entry("home/a", b"1"), entry("home/a", b"2")]), tmp_path / "new")
    assert (tmp_path / "new/home/a").read_bytes() == b"1"


def test_unpack_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the home has a largest size, and a backup a largest number of files."""
    monkeypatch.setattr(backup_archive, "MAX_HOME_FILE_BYTES", 10)
    monkeypatch.setattr(backup_archive, "MAX_FILES", 3)
    with pytest.raises(FileFormatError, match="11 bytes"):
        unpack(tar_of([entry("home/a", bytes(11))]), tmp_path / "size")
    with pytest.raises(FileFormatError, match="more than 3 files"):
        unpack(tar_of([entry(f"home/{number}") for number in range(4)]), tmp_path / "number")
    unpack(tar_of([entry("store.sqlite", bytes(1000)), entry("home/config.toml")]), tmp_path / "store")


@pytest.mark.parametrize("left_out", ["home/config.toml", "store.sqlite"])
def test_unpack_without_what_every_backup_has_is_refused(tmp_path: Path, left_out: str) -> None:
    """A home without its configuration, or without its store, is no home."""
    with pytest.raises(FileFormatError, match=f"lacks {left_out}"):
        unpack(tar_of([entry(name) for name in GOOD if name != left_out]), tmp_path / "new")


def test_pack_takes_what_a_link_leads_to_and_refuses_what_unpack_would(tmp_path: Path) -> None:
    """Every backup can be unpacked: a linked file goes in as a file, and a name that is refused never goes in."""
    (tmp_path / "real").write_bytes(b"configuration")
    (tmp_path / "link").symlink_to("real")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w|") as made:
        packed: set[str] = set()
        backup_archive.pack(made, "home/config.toml", tmp_path / "link", packed)
        backup_archive.pack(made, "store.sqlite", tmp_path / "real", packed)
        with pytest.raises(FileFormatError, match="name that no backup has"):
            backup_archive.pack(made, "home/a\nb", tmp_path / "real", packed)
    raw.seek(0)
    unpack(raw, tmp_path / "new")
    assert (tmp_path / "new/home/config.toml").read_bytes() == b"configuration"
