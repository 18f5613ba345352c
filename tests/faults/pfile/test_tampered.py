"""Every named way to tamper with a protected file, through every entry: handle, whole file, pipe, command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.cli.main import main
from adyton.errors import Error, IntegrityError, NotProtectedFile, UnsupportedVersion
from adyton.pfile.backing import Memory
from adyton.pfile.file import ProtectedFile
from adyton.storage.files import decrypt_file, decrypt_stream, rekey_file, verify_file
from adyton.values import Key128
from tests.vectors.pfile import make

KEY = Key128(make.WRAP_KEY)
GOOD = (Path(make.__file__).parent / "v2_396289.pf").read_bytes()
CONTENT = make.pattern(396_289)
NODE = 4096

Change = Callable[[bytearray], object]


def _flip(at: int) -> Change:
    def change(raw: bytearray) -> None:
        raw[at] ^= 0x01

    return change


def _put(at: int, data: bytes) -> Change:
    def change(raw: bytearray) -> None:
        raw[at : at + len(data)] = data

    return change


def _swap(one: int, other: int) -> Change:
    def change(raw: bytearray) -> None:
        a, b = raw[one * NODE : (one + 1) * NODE], raw[other * NODE : (other + 1) * NODE]
        raw[one * NODE : (one + 1) * NODE], raw[other * NODE : (other + 1) * NODE] = b, a

    return change


def _cut(size: int) -> Change:
    def change(raw: bytearray) -> None:
        del raw[size:]

    return change


REFUSED: dict[str, tuple[Change, type[Error]]] = {
    "magic": (_flip(0), NotProtectedFile),
    "version-unknown": (_put(8, b"\x07"), UnsupportedVersion),
    "version-other": (_put(8, b"\x01"), IntegrityError),
    "nonce": (_flip(10), IntegrityError),
    "tag": (_flip(57), IntegrityError),
    "pending-flag": (_put(58, b"\x01"), IntegrityError),
    "sealed-path": (_flip(59), IntegrityError),
    "sealed-size": (_flip(59 + 772), IntegrityError),
    "sealed-root-slot": (_flip(59 + 780), IntegrityError),
    "sealed-inline": (_flip(59 + 3883), IntegrityError),
    "root": (_flip(NODE), IntegrityError),
    "data-first": (_flip(2 * NODE), IntegrityError),
    "data-middle": (_flip(50 * NODE + 2000), IntegrityError),
    "data-last-of-segment": (_flip(98 * NODE - 1), IntegrityError),
    "tree-second": (_flip(98 * NODE + 100), IntegrityError),
    "data-last": (_flip(len(GOOD) - 1), IntegrityError),
    "data-swapped": (_swap(10, 11), IntegrityError),
    "tree-swapped": (_swap(1, 98), IntegrityError),
    "data-zeroed": (_put(20 * NODE, bytes(NODE)), IntegrityError),
    "cut-a-byte": (_cut(len(GOOD) - 1), IntegrityError),
    "cut-a-node": (_cut(len(GOOD) - NODE), IntegrityError),
    "cut-to-node-0": (_cut(NODE), IntegrityError),
    "cut-within-node-0": (_cut(100), NotProtectedFile),
    "emptied": (_cut(0), NotProtectedFile),
    "extended-by-a-byte": (lambda raw: raw.append(0), IntegrityError),
}

ACCEPTED: dict[str, Change] = {
    "minor-version": _put(9, b"\x05"),
    "unknown-flags": _put(58, b"\xfe"),
    "padding": _put(3943, b"\xff" * 153),
    "extended-by-nodes": lambda raw: raw.extend(bytes(2 * NODE)),
}


def _tampered(change: Change) -> bytes:
    raw = bytearray(GOOD)
    change(raw)
    assert raw != GOOD
    return bytes(raw)


@pytest.mark.parametrize("fault", REFUSED)
def test_tampered_file_is_refused_by_every_entry(tmp_path: Path, fault: str) -> None:
    """Each with the same class of error and its exit code; no target appears, no wrong byte is written."""
    change, expected = REFUSED[fault]
    raw = _tampered(change)
    place, out = tmp_path / "396289", tmp_path / "out"
    place.write_bytes(raw)
    (tmp_path / "key").write_bytes(make.WRAP_KEY)
    (tmp_path / "key").chmod(0o600)

    def by_handle() -> None:
        with ProtectedFile.open(Memory(raw), KEY) as file:
            file.read_at(0, file.size)

    piped = bytearray()

    def by_pipe() -> None:
        with place.open("rb") as source:
            decrypt_stream(source.fileno(), piped.extend, KEY)

    entries: list[Callable[[], object]] = [
        by_handle,
        by_pipe,
        lambda: decrypt_file(place, out, KEY),
        lambda: verify_file(place, KEY),
        lambda: rekey_file(place, out, KEY, Key128.generate()),
    ]
    for entry in entries:
        with pytest.raises(expected) as refusal:
            entry()
        assert refusal.value.check
        assert refusal.value.remedy
    assert CONTENT.startswith(piped)
    with pytest.raises(SystemExit) as ended:
        main(["decrypt", str(place), "-o", str(out), "--key-file", str(tmp_path / "key")])
    assert ended.value.code == expected.exit_code
    assert not out.exists()


@pytest.mark.parametrize("fault", ACCEPTED)
def test_change_outside_what_is_authenticated_is_accepted(tmp_path: Path, fault: str) -> None:
    """As Gramine does; the content is what was sealed."""
    (tmp_path / "sealed").write_bytes(_tampered(ACCEPTED[fault]))
    decrypt_file(tmp_path / "sealed", tmp_path / "out", KEY, path="made/396289")
    assert (tmp_path / "out").read_bytes() == CONTENT
