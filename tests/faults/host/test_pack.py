"""Packs that somebody else made: whatever is in them is data, and a pack of another form leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton import pack_archive
from adyton.errors import (
    DigestMismatch,
    Error,
    FileFormatError,
    IntegrityError,
    NotProtectedFile,
    StorageFailed,
    TargetExists,
)
from adyton.pack_archive import FORMAT, INDEX, Item, open_pack, read_contents, unpack, write_pack
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128
from adyton.workflow.pack import _item

FILES = {"README.txt": b"read", "work/a.manifest": b"m", "work/encrypted/in": b"c" * 9000, "host/usr/lib/x.py": b"x"}


def index(files: dict[str, bytes], **other: object) -> bytes:
    """The index of a pack with these files."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    found = {"format": FORMAT, "manifest": "a.manifest", "folders": [], "sha256": digest.hexdigest()}
    return json.dumps({**found, **other}).encode()


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a tar file."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header, content


def packed(*more: tuple[tarfile.TarInfo, bytes], last: bytes | None = None, **options: object) -> bytes:
    """A good pack, with more entries before its index."""
    raw = io.BytesIO()
    names = dict(FILES)
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT, **options) as archive:  # type: ignore[call-overload]
        for header, content in (*(member(name, content) for name, content in FILES.items()), *more):
            archive.addfile(header, io.BytesIO(content))
            names[header.name] = content
        text = index(names) if last is None else last
        archive.addfile(member(INDEX, text)[0], io.BytesIO(text))
    return raw.getvalue()


def refused(folder: Path, raw: bytes, error: type[Error] = FileFormatError, said: str = "") -> None:
    """The pack is refused with check, expected, seen and remedy, and nothing is left of it."""
    (folder / "p.adyton").write_bytes(raw)
    with pytest.raises(error) as caught:
        unpack(folder / "p.adyton", folder / "p")
    assert said in str(caught.value.details())
    assert {"check", "expected", "seen", "remedy"} <= set(caught.value.details())
    assert [path.name for path in folder.iterdir()] == ["p.adyton"]


def test_good_pack_of_this_form_is_unpacked(tmp_path: Path) -> None:
    """So that what is refused below is refused for its fault alone. Files and folders are this user's alone."""
    (tmp_path / "p.adyton").write_bytes(packed(last=index(FILES, folders=["work/encrypted/out"])))
    assert unpack(tmp_path / "p.adyton", tmp_path / "p").files == len(FILES) + 1
    for name, content in FILES.items():
        assert (tmp_path / "p" / name).read_bytes() == content
    assert (tmp_path / "p/work/encrypted/out").is_dir()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700


KINDS: dict[str, dict[str, object]] = {
    "link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "work/a.manifest"},
    "folder": {"type": tarfile.DIRTYPE},
    "device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    "block device": {"type": tarfile.BLKTYPE},
    "pipe": {"type": tarfile.FIFOTYPE},
    "old file": {"type": tarfile.AREGTYPE},
    "contiguous": {"type": tarfile.CONTTYPE},
    "unknown": {"type": b"Z"},
    "sparse": {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "work/s"}},
    "odd record": {"pax_headers": {"SCHILY.xattr.user.x": "1"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_taken(tmp_path: Path, kind: str) -> None:
    """A link could lead out of the folder, a device be opened, a sparse file fill the disk."""
    content = b"1\n0\n0\n".ljust(1024, b"\0") if kind == "sparse" else b""
    refused(tmp_path, packed(member("work/odd", content, **KINDS[kind])))


NAMES = [
    *("/etc/passwd", "../x", "work/../../x", "work/./x", "work//x", "work/", "work", "host", "x", "etc/x", ""),
    *("work/a\nb", "work/\x7f", "work/" + "x" * 256, "work" + "/y" * 70, "work/" + "/".join(["z" * 200] * 21)),
    *("work/a.manifest", "work/a.manifest/b", "work/encrypted", "README.txt", "pack.json/x", "Work/x"),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    """Neither out of the folder nor onto another file of the pack."""
    refused(tmp_path, packed(member(name, b"1")))


@pytest.mark.parametrize("folder", ["/tmp/x", "work/../../x", "work/a.manifest", "work/a.manifest/x", "x", "work/a\0"])
def test_folders_lead_nowhere_else(tmp_path: Path, folder: str) -> None:
    """The same rule for the folders that the index names."""
    refused(tmp_path, packed(last=index(FILES, folders=[folder])))


INDEXES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "another format": index(FILES, format="adyton-pack/2"),
    "a member more": index(FILES, more=1),
    "no manifest of this name": index(FILES, manifest="b.manifest"),
    "a manifest elsewhere": index(FILES, manifest="../a.manifest"),
    "a number for a name": index(FILES, manifest=1),
    "folders of another type": index(FILES, folders=[1]),
    "a digest of another form": index(FILES, sha256="00"),
    "too large": index(FILES, more="x" * (1 << 20)),
    "too many folders": index(FILES, folders=["work/f"] * 10_001),
}


@pytest.mark.parametrize("what", INDEXES)
def test_index_has_one_form(tmp_path: Path, what: str) -> None:
    """Strictly parsed, whatever it says."""
    refused(tmp_path, packed(last=INDEXES[what]))


def _changed(raw: bytes, at: int, value: bytes) -> bytes:
    changed = bytearray(raw)
    changed[at : at + len(value)] = value
    head = bytearray(changed[:512])
    head[148:156] = b" " * 8
    changed[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(changed)


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "cut in a file": lambda raw: raw[:6000],
    "cut before the index": lambda raw: raw[: raw.index(INDEX.encode())],
    "cut to nothing": lambda _raw: b"",
    "no tar": lambda _raw: b"x" * 10_000,
    "gzip": lambda _raw: packed_with("w:gz"),
    "after the index": lambda _raw: packed_after(),
    "a size below zero": lambda raw: _changed(raw, 124, b"\xff" * 12),
    "a size beyond the file": lambda raw: _changed(raw, 124, b"77777777777\0"),
    "a header of 1 MiB": lambda raw: _changed(_changed(raw, 156, b"x"), 124, b"00004000000\0"),
    "records that lead back": lambda raw: _records(b"20 size=-1000000000\n") + raw,
    "records of no form": lambda raw: _records(b"99999999999 x") + raw,
    "records for all": lambda _raw: packed(pax_headers={"path": "work/all"}),
    "records upon records": lambda raw: _records(b"12 path=abc\n") * 3000 + raw,
    "bytes that are no text": lambda raw: _changed(raw, 0, b"\xff\xfe"),
}


def packed_with(mode: str) -> bytes:
    """The good pack, compressed."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as archive:  # type: ignore[call-overload]
        header, content = member(INDEX, index({}))
        archive.addfile(header, io.BytesIO(content))
    return raw.getvalue()


def packed_after() -> bytes:
    """A pack with a file after its index."""
    raw = io.BytesIO(packed())
    with tarfile.open(fileobj=raw, mode="a") as archive:
        archive.addfile(member("work/late", b"1")[0], io.BytesIO(b"1"))
    return raw.getvalue()


def _records(content: bytes) -> bytes:
    header = tarfile.TarInfo("records")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0")


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_pack_is_refused_within_bounds(tmp_path: Path, what: str) -> None:
    """Cut, compressed, with headers that name sizes of their own, or lead tarfile back without end."""
    refused(tmp_path, SPOILT[what](packed()))


def test_pack_that_was_altered_on_its_way_is_told(tmp_path: Path) -> None:
    """One flipped bit of one file; the fault is said of the way, and not of the program."""
    raw = bytearray(packed())
    raw[raw.index(b"c" * 9000) + 5] ^= 1
    refused(tmp_path, bytes(raw), IntegrityError, "damaged on its way")


def test_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At reading and at writing."""
    monkeypatch.setattr(pack_archive, "MAX_FILES", len(FILES))
    refused(tmp_path, packed(), said="number of files")


@pytest.mark.parametrize("there", ["folder", "file", "link", "dangling link", "another pack"])
def test_what_is_there_is_never_replaced(tmp_path: Path, there: str) -> None:
    """It may hold outputs, and a link would lead elsewhere."""
    target, elsewhere = tmp_path / "p", tmp_path / "elsewhere"
    (tmp_path / "p.adyton").write_bytes(packed())
    elsewhere.mkdir()
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("mine")
    elif there == "another pack":
        (tmp_path / "q.adyton").write_bytes(packed(member("work/more", b"1")))
        unpack(tmp_path / "q.adyton", target)
    else:
        target.symlink_to(elsewhere if there == "link" else "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TargetExists):
        unpack(tmp_path / "p.adyton", target)
    assert sorted(tmp_path.rglob("*")) == before


def test_same_pack_is_unpacked_once(tmp_path: Path) -> None:
    """What the program wrote since then stays."""
    (tmp_path / "p.adyton").write_bytes(packed())
    unpack(tmp_path / "p.adyton", tmp_path / "p")
    (tmp_path / "p/work/encrypted/in").write_bytes(b"written")
    unpack(tmp_path / "p.adyton", tmp_path / "p")
    assert (tmp_path / "p/work/encrypted/in").read_bytes() == b"written"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nothing"])
def test_what_is_no_file_is_no_pack(tmp_path: Path, kind: str) -> None:
    """And nothing waits for whoever would write to it."""
    path = tmp_path / "p.adyton"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises((FileFormatError, StorageFailed)):
        unpack(path, tmp_path / "p")
    assert not (tmp_path / "p").exists()


# ---------------------------------------------------------------- what is written


def items(folder: Path, files: dict[str, bytes]) -> list[Item]:
    """These files, on the disk."""
    found = []
    for number, (name, content) in enumerate(files.items()):
        (folder / str(number)).write_bytes(content)
        found.append(Item(name, folder / str(number)))
    return found


def test_same_files_make_the_same_pack(tmp_path: Path) -> None:
    """Whatever their order, times and modes are; long and foreign names come back as they were."""
    files = {
        "work/a.manifest": b"m",
        "work/größe/" + "n" * 255: b"1" * 70_000,
        "host/" + "d" * 120 + "/" + "e" * 120: b"",
    }
    made = []
    for turn in (1, -1):
        found = items(tmp_path, files)
        os.utime(found[0].path, (turn * 10**8 + 2 * 10**8, 1))
        found[1].path.chmod(0o755 if turn == 1 else 0o600)
        target = tmp_path / f"{turn}.adyton"
        write_pack(target, found[::turn], manifest="a.manifest", folders=["work/o", "work/é"][::turn], readme="r")
        made.append(target.read_bytes())
        with open_pack(target) as file:
            assert read_contents(file).index.folders == ("work/o", "work/é")
    assert made[0] == made[1]
    unpack(tmp_path / "1.adyton", tmp_path / "p")
    assert {name: (tmp_path / "p" / name).read_bytes() for name in files} == files
    with tarfile.open(tmp_path / "1.adyton") as archive:
        assert {(member.uid, member.gid, member.uname, member.mode, member.mtime) for member in archive} == {
            (0, 0, "", 0o644, 315_532_800)
        }


@pytest.mark.parametrize("name", ["work/../x", "/x", "work/\udcff", "x"])
def test_names_that_no_pack_has_are_not_written(tmp_path: Path, name: str) -> None:
    """Every pack that is written can be read."""
    found = items(tmp_path, {"work/a.manifest": b"m", name: b""})
    with pytest.raises(FileFormatError):
        write_pack(tmp_path / "p.adyton", found, manifest="a.manifest", folders=[], readme="")
    assert not (tmp_path / "p.adyton").exists()


def test_file_that_changed_since_the_manifest_was_built_is_not_packed(tmp_path: Path) -> None:
    """It would be refused on the other machine."""
    found = Item("work/x.py", items(tmp_path, {"": b"changed"})[0].path, hashlib.sha256(b"as built").digest())
    with pytest.raises(DigestMismatch, match="what the manifest was built from"):
        write_pack(tmp_path / "p.adyton", [found], manifest="a.manifest", folders=[], readme="")
    assert not (tmp_path / "p.adyton").exists()


@pytest.mark.parametrize("how", ["link", "folder", "plain"])
def test_ciphertext_that_becomes_something_else_while_it_is_packed_is_refused(tmp_path: Path, how: str) -> None:
    """Whoever has the folder of ciphertext, a share for example, cannot have a key of the owner's packed by a link."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "share").mkdir()
    (tmp_path / "keys/file").write_bytes(b"-----BEGIN PRIVATE KEY-----\n" * 400)
    place = tmp_path / "share/file"
    with ProtectedFile.create(OSFile(place, create=True), Key128(bytes(range(16))), path="share/file") as file:
        file.write_at(0, b"data")
    found = [_item("work/share/file", place)]
    assert write_pack(tmp_path / "good.adyton", found, manifest="a.manifest", folders=[], readme="").files == 3
    if how == "folder":
        (tmp_path / "share").rename(tmp_path / "away")
        (tmp_path / "share").symlink_to("keys")
    else:
        place.unlink()
        place.symlink_to("../keys/file") if how == "link" else place.write_bytes(b"plain " * 2000)
    with pytest.raises(StorageFailed if how == "link" else NotProtectedFile):
        write_pack(tmp_path / "p.adyton", found, manifest="a.manifest", folders=[], readme="")
    assert not (tmp_path / "p.adyton").exists()
