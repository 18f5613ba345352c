"""A protected file as a Python file object."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest

from adyton.errors import TargetExists, UsageError, WrongPath
from adyton.pfile.backing import Memory
from adyton.pfile.file import ProtectedFile
from adyton.pfile.stream import ProtectedStream, open_protected
from adyton.values import Key128

KEY = Key128(bytes(range(16)))


def _pair(tmp_path: Path) -> tuple[io.BufferedRandom, io.BufferedRandom]:
    mine = open_protected(tmp_path / "sealed", "w+b", key=KEY)
    assert isinstance(mine, io.BufferedRandom)
    return mine, open(tmp_path / "plain", "w+b")


def test_stream_does_as_a_plain_file_does(tmp_path: Path) -> None:
    """Random reads, writes, seeks and cuts give the same on both, step by step."""
    chance = random.Random(1)
    mine, plain = _pair(tmp_path)
    with mine, plain:
        for _ in range(400):
            roll = chance.random()
            if roll < 0.4:
                data = chance.randbytes(chance.choice((1, 100, 5000, 40_000)))
                assert mine.write(data) == plain.write(data)
            elif roll < 0.6:
                size = chance.choice((1, 1000, 50_000, -1))
                assert mine.read(size) == plain.read(size)
            elif roll < 0.85:
                whence = chance.choice((os.SEEK_SET, os.SEEK_END))
                offset = chance.randrange(300_000) if whence == os.SEEK_SET else -chance.randrange(1, 2)
                if whence == os.SEEK_END and plain.seek(0, os.SEEK_END) == 0:
                    mine.seek(0, os.SEEK_END)
                    continue
                assert mine.seek(offset, whence) == plain.seek(offset, whence)
            elif roll < 0.95:
                mine.flush()
                plain.flush()
            else:
                size = chance.randrange(200_000)
                assert mine.truncate(size) == plain.truncate(size)
            assert mine.tell() == plain.tell()
    with open_protected(tmp_path / "sealed", key=KEY) as again:
        assert again.read() == (tmp_path / "plain").read_bytes()


def test_stream_reads_lines_and_into_buffers(tmp_path: Path) -> None:
    """What parsers of text and of arrays use."""
    with open_protected(tmp_path / "f", "wb", key=KEY) as out:
        out.write(b"one\ntwo\n" + b"x" * 100_000 + b"\nlast")
    with open_protected(tmp_path / "f", key=KEY) as file:
        assert [len(line) for line in file] == [4, 4, 100_001, 4]
        file.seek(4)
        buffer = bytearray(5)
        assert file.readinto(buffer) == 5
        assert buffer == b"two\nx"
    with io.TextIOWrapper(open_protected(tmp_path / "f", key=KEY)) as text:
        assert text.readline() == "one\n"


def test_appending_goes_to_the_end(tmp_path: Path) -> None:
    """Wherever the stream was put, and makes the file where there is none."""
    for part in (b"one", b"two"):
        with open_protected(tmp_path / "f", "ab", key=KEY) as file:
            file.seek(0)
            file.write(part)
    with open_protected(tmp_path / "f", "rb", key=KEY) as file:
        assert file.read() == b"onetwo"


def test_modes_are_checked(tmp_path: Path) -> None:
    """Text modes and nonsense are refused, an exclusive one where the file exists."""
    for mode in ("r", "wt", "rwb", "b", "", "rb+x", "rbb"):
        with pytest.raises(UsageError):
            open_protected(tmp_path / "f", mode, key=KEY)
    open_protected(tmp_path / "f", "xb", key=KEY).close()
    with pytest.raises(TargetExists):
        open_protected(tmp_path / "f", "xb", key=KEY)


def test_path_is_sealed_and_checked(tmp_path: Path) -> None:
    """The path given is embedded; another is refused."""
    with open_protected(tmp_path / "f", "wb", key=KEY, path="in/f") as file:
        file.write(b"x")
    open_protected(tmp_path / "f", key=KEY, path="in/f").close()
    with pytest.raises(WrongPath):
        open_protected(tmp_path / "f", key=KEY, path="in/g")


def test_directions_are_kept(tmp_path: Path) -> None:
    """A reader does not write, a writer does not read; a closed stream does nothing."""
    with open_protected(tmp_path / "f", "wb", key=KEY) as out, pytest.raises(io.UnsupportedOperation):
        out.read(1)
    with open_protected(tmp_path / "f", key=KEY) as file, pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    raw = ProtectedStream(ProtectedFile.create(Memory(), KEY, path="a"), readable=False)
    with pytest.raises(io.UnsupportedOperation):
        raw.readinto(bytearray(1))
    with pytest.raises(io.UnsupportedOperation):
        raw.readall()
    with pytest.raises(OSError, match="negative"):
        raw.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        raw.seek(0, 9)
    raw.sync()
    raw.close()
    for call in (raw.tell, raw.sync, raw.readall):
        with pytest.raises(ValueError, match="closed"):
            call()
    reader = ProtectedStream(ProtectedFile.open(Memory(_sealed()), KEY))
    with pytest.raises(io.UnsupportedOperation):
        reader.write(b"x")
    with pytest.raises(io.UnsupportedOperation):
        reader.truncate(0)


def _sealed() -> bytes:
    host = Memory()
    ProtectedFile.create(host, KEY, path="a").close()
    return bytes(host.content)
