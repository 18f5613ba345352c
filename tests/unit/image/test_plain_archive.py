"""The archive that crosses a guest's border: what tar makes of plain files is read, and everything else refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from adyton.errors import MalformedManifest, UsageError
from adyton.image import plain_archive
from adyton.image.plain_archive import Member, Reader, Writer, build_header, parse_header


def packed(*members: tuple[Member, bytes], end: bool = True) -> bytes:
    """An archive by the writer."""
    stream = io.BytesIO()
    writer = Writer(stream, 1 << 30)
    for member, content in members:
        writer.add(member, io.BytesIO(content))
    if end:
        writer.close()
    return stream.getvalue()


def file(name: str, content: bytes = b"") -> tuple[Member, bytes]:
    """A file for `packed`."""
    return Member(name, len(content)), content


def read(raw: bytes, limit_bytes: int = 1 << 30) -> dict[str, bytes]:
    """Names and contents, by the reader."""
    reader = Reader(io.BytesIO(raw), limit_bytes)
    return {member.name: b"".join(reader.content()) for member in reader}


def tar(*members: tarfile.TarInfo, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive by Python's tarfile."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: object) -> tarfile.TarInfo:
    """A member for `tar`."""
    found = tarfile.TarInfo(name)
    found.type, found.size = kind, size
    for key, value in more.items():
        setattr(found, key, value)
    return found


def test_archive_round_trips_and_is_read_by_tar() -> None:
    """Names at the limits of a header, contents of all sizes, folders and programs."""
    long = "d" * 150 + "/" + "f" * 100
    members = [(Member("folder", 0, is_folder=True), b""), file(long, b"x" * 513), file("ü/ß", b"1" * 512), file("e")]
    raw = packed(*members, (Member("run", 2, executable=True), b"ok"))
    assert read(raw) == {"folder": b"", long: b"x" * 513, "ü/ß": b"1" * 512, "e": b"", "run": b"ok"}
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert archive.getnames() == ["folder", long, "ü/ß", "e", "run"]
        assert archive.getmember("run").mode == 0o755


def test_archive_of_tar_is_read() -> None:
    """ustar with files and folders."""
    assert read(tar(info("a", size=3), info("b", tarfile.DIRTYPE), info("b/c"))) == {
        "a": bytes(3),
        "b": b"",
        "b/c": b"",
    }


@pytest.mark.parametrize(
    "member",
    [
        info("x", tarfile.SYMTYPE, linkname="/etc/passwd"),
        info("x", tarfile.LNKTYPE, linkname="y"),
        info("x", tarfile.BLKTYPE, devmajor=8),
        info("x", tarfile.CHRTYPE, devmajor=1, devminor=3),
        info("x", tarfile.FIFOTYPE),
        info("../x"),
        info("/x"),
        info("a/../x"),
        info("./x"),
        info("a\nb"),
        info("a\x1b[2Jb"),
        info("/".join("d" * 40)),
    ],
    ids=lambda member: f"{member.type.decode()} {member.name[:10]!r}",
)
def test_members_that_are_not_plain_are_refused(member: tarfile.TarInfo) -> None:
    """Links, devices, pipes, and names that lead elsewhere or steer a terminal."""
    with pytest.raises(MalformedManifest, match="not plain"):
        read(tar(info("good"), member))


def test_extensions_of_tar_are_refused() -> None:
    """A header of pax or GNU can say another name or size than the one that was checked."""
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(MalformedManifest):
            read(tar(info("n" * 300), kind=kind))


def test_name_that_stands_twice_is_refused() -> None:
    """Also a file that is a folder for another."""
    with pytest.raises(MalformedManifest, match="twice"):
        read(packed(file("a"), file("a")))
    with pytest.raises(MalformedManifest, match="below a file"):
        read(packed(file("a"), file("a/b")))
    with pytest.raises(MalformedManifest, match="twice"):
        read(packed(file("a/b"), file("a")))


def test_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest of 100 GB and a million files cost nothing but their headers."""
    with pytest.raises(MalformedManifest, match="size in all"):
        read(build_header(Member("manifest", 7 << 30)))
    monkeypatch.setattr(plain_archive, "MAX_MEMBERS", 3)
    with pytest.raises(MalformedManifest, match="members"):
        read(packed(*(file(str(number)) for number in range(4))))


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 513, 700, 1024, 1535])
def test_archive_that_was_cut_is_refused(cut: int) -> None:
    """Without the block of zeros at its end it is not whole."""
    with pytest.raises(MalformedManifest):
        read(packed(file("a", b"x" * 600), end=False)[:cut])


@pytest.mark.parametrize("at", [0, 100, 124, 148, 156, 157, 257, 263, 345])
def test_changed_header_is_refused(at: int) -> None:
    """The checksum sees it, or the field's own check."""
    raw = bytearray(build_header(Member("name", 5)))
    raw[at] ^= 0x41
    with pytest.raises(MalformedManifest):
        parse_header(bytes(raw))


def test_numbers_in_other_forms_are_refused() -> None:
    """GNU's base-256 sizes, signs, and nothing at all."""
    for field in (b"\x80" + bytes(10) + b"\1", b"-0000000001\0", bytes(12)):
        raw = bytearray(build_header(Member("name", 5)))
        raw[124:136] = field
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw)
        with pytest.raises(MalformedManifest, match="number"):
            parse_header(bytes(raw))


def test_writer_never_exceeds_its_limit() -> None:
    """The disk has an end, and the archive's own end must fit before it."""
    stream = io.BytesIO()
    writer = Writer(stream, 4 * 512)
    writer.add(Member("a", 512), io.BytesIO(bytes(512)))
    with pytest.raises(UsageError, match="does not fit"):
        writer.add(Member("b", 1), io.BytesIO(b"x"))
    writer.close()
    assert len(stream.getvalue()) == 4 * 512


def test_file_that_shrinks_while_it_is_read_is_refused() -> None:
    """An archive never holds fewer bytes than its header says."""
    with pytest.raises(UsageError, match="shorter"):
        Writer(io.BytesIO(), 1 << 20).add(Member("a", 10), io.BytesIO(b"123"))


@pytest.mark.parametrize("name", ["x" * 101, "d" * 156 + "/x", "/a", "a/.."])
def test_names_that_no_header_holds_are_not_written(name: str) -> None:
    """Also those that the reader would refuse."""
    with pytest.raises(MalformedManifest):
        build_header(Member(name, 0))
