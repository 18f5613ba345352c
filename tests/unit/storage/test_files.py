"""Whole files in and out: every size, every way to fail, the target whole or absent."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.errors import (
    Error,
    IntegrityError,
    NotProtectedFile,
    SourceChanged,
    StorageFailed,
    TargetExists,
    UsageError,
    WrongPath,
)
from adyton.pfile.backing import OSFile
from adyton.pfile.bulk import SegmentSealer
from adyton.pfile.file import ProtectedFile
from adyton.storage import files
from adyton.storage.files import (
    decrypt_file,
    decrypt_into,
    decrypt_stream,
    encrypt_file,
    encrypt_stream,
    rekey_file,
    verify_file,
)
from adyton.values import Key128
from tests.support.recorder import recording
from tests.vectors.pfile import second

KEY = Key128(bytes(range(16)))
SEGMENT = 96 * 4096
SIZES = [0, 1, 3071, 3072, 3073, 7168, 7169, 396_288, 396_289, 5 * SEGMENT + 77]
LARGE = 34 * SEGMENT + 3072 + 1  # more than one level of inner tree nodes


def _content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture
def plain(tmp_path: Path) -> Callable[[int], Path]:
    """Makes plain files."""

    def make(size: int) -> Path:
        (tmp_path / "plain").write_bytes(_content(size))
        return tmp_path / "plain"

    return make


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_file_goes_in_and_out(tmp_path: Path, plain: Callable[[int], Path], size: int, version: int, jobs: int) -> None:
    """Any size, version and number of workers; the second implementation reads it too."""
    with recording():
        done = encrypt_file(plain(size), tmp_path / "sealed", KEY, path="p/q", version=version, jobs=jobs)
    assert (done.size, done.path) == (size, b"p/q")
    assert second.read(KEY.reveal(), (tmp_path / "sealed").read_bytes()) == (b"p/q", _content(size))
    assert verify_file(tmp_path / "sealed", KEY, jobs=jobs) == done
    assert decrypt_file(tmp_path / "sealed", tmp_path / "out", KEY, path="p/q", jobs=jobs).root == done.root
    assert (tmp_path / "out").read_bytes() == _content(size)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "plain", "sealed"]
    assert (tmp_path / "sealed").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_pipe_goes_in_and_out(tmp_path: Path, size: int) -> None:
    """A stream of unknown length, in pieces of any size, gives the same; and back into a pipe."""
    read, write = os.pipe()
    threading.Thread(target=_feed, args=(write, _content(size))).start()
    with recording(), open(read, "rb", closefd=True):
        assert encrypt_stream(read, tmp_path / "sealed", KEY, path="p").size == size
    assert second.read(KEY.reveal(), (tmp_path / "sealed").read_bytes()) == (b"p", _content(size))
    for source in (tmp_path / "sealed", None):
        out = bytearray()
        if source is not None:
            decrypt_stream(source, out.extend, KEY, path="p")
        else:
            read, write = os.pipe()
            threading.Thread(target=_feed, args=(write, (tmp_path / "sealed").read_bytes())).start()
            with open(read, "rb", closefd=True):
                decrypt_stream(read, out.extend, KEY, path="p")
        assert out == _content(size)


def _feed(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb", buffering=0) as pipe:
        while data:
            try:
                data = data[pipe.write(data[:70_001]) :]
            except BrokenPipeError:
                return


def test_default_path_is_the_target_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative stays relative, normalised."""
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(b"x")
    Path("enc").mkdir()
    assert encrypt_file(Path("f"), Path("./enc//f"), KEY).path == b"enc/f"


def test_decrypt_into_open_descriptors(tmp_path: Path, plain: Callable[[int], Path]) -> None:
    """By path or by descriptor, into an open file, which is cut to nothing on a refusal."""
    encrypt_file(plain(LARGE), tmp_path / "sealed", KEY, path="p")
    told: list[int] = []
    with open(tmp_path / "out", "w+b") as out, open(tmp_path / "sealed", "rb") as sealed:
        for source in (tmp_path / "sealed", sealed.fileno()):
            told.clear()
            assert decrypt_into(source, out.fileno(), KEY, path="p", jobs=2, advance=told.append).size == LARGE
            assert sum(told) == LARGE
            assert (tmp_path / "out").read_bytes() == _content(LARGE)
        raw = bytearray((tmp_path / "sealed").read_bytes())
        raw[-5000] ^= 1
        (tmp_path / "sealed").write_bytes(raw)
        with pytest.raises(IntegrityError, match="sealed: node"):
            decrypt_into(tmp_path / "sealed", out.fileno(), KEY)
        assert (tmp_path / "out").stat().st_size == 0


@pytest.mark.parametrize("size", [0, 3073, LARGE])
def test_rekeyed_file_opens_with_the_new_key_alone(tmp_path: Path, plain: Callable[[int], Path], size: int) -> None:
    """Another key, path and version; in place; no node key or ciphertext survives."""
    new = Key128.generate()
    encrypt_file(plain(size), tmp_path / "sealed", KEY, path="p")
    old = (tmp_path / "sealed").read_bytes()
    done = rekey_file(tmp_path / "sealed", tmp_path / "sealed", KEY, new, path="p", new_path="q", version=1, force=True)
    raw = (tmp_path / "sealed").read_bytes()
    assert done.size == size
    assert second.read(new.reveal(), raw) == (b"q", _content(size))
    assert raw[8] == 1
    assert not any(raw[at : at + 4096] == old[at : at + 4096] for at in range(0, len(old), 4096))
    with pytest.raises(IntegrityError):
        verify_file(tmp_path / "sealed", KEY)


# ---------------------------------------------------------------- the target is whole or absent


def _only(tmp_path: Path, *names: str) -> None:
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)


def test_existing_target_is_left_as_it_is(tmp_path: Path, plain: Callable[[int], Path]) -> None:
    """Unless it is forced; a dangling link counts as existing."""
    source = plain(10)
    (tmp_path / "there").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in ("there", "link"):
        with pytest.raises(TargetExists, match=target):
            encrypt_file(source, tmp_path / target, KEY)
    assert (tmp_path / "there").read_bytes() == b"precious"
    encrypt_file(source, tmp_path / "there", KEY, force=True)
    verify_file(tmp_path / "there", KEY)
    _only(tmp_path, "there", "link", "plain")


def test_target_that_appears_meanwhile_is_left_as_it_is(
    tmp_path: Path, plain: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's file, made while we sealed, is not replaced."""
    finish = SegmentSealer.finish

    def slow(self: SegmentSealer, segments: int) -> bytes:
        (tmp_path / "sealed").write_bytes(b"somebody else's")
        return finish(self, segments)

    monkeypatch.setattr(SegmentSealer, "finish", slow)
    with pytest.raises(TargetExists):
        encrypt_file(plain(10_000), tmp_path / "sealed", KEY)
    assert (tmp_path / "sealed").read_bytes() == b"somebody else's"
    _only(tmp_path, "sealed", "plain")


def test_target_without_hard_links_is_still_not_replaced(
    tmp_path: Path, plain: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems that know no links: look, then rename."""

    def no_links(*_args: object, **_options: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    encrypt_file(plain(10), tmp_path / "sealed", KEY)
    with pytest.raises(TargetExists):
        encrypt_file(plain(10), tmp_path / "sealed", KEY)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("what", ["tree", "data", "cut", "key", "plain", "path"])
def test_refused_source_leaves_no_target(tmp_path: Path, plain: Callable[[int], Path], what: str, jobs: int) -> None:
    """Each way in which a protected file can be wrong is its own error, and nothing is left."""
    place = tmp_path / "sealed"
    encrypt_file(plain(LARGE), place, KEY, path="p")
    raw = bytearray(place.read_bytes())
    expected: type[Error] = IntegrityError
    key, path = KEY, None
    if what == "tree":
        raw[97 * 20 * 4096 + 4096 + 5] ^= 1
    elif what == "data":
        raw[97 * 20 * 4096 + 8192 + 5] ^= 1
    elif what == "cut":
        del raw[-4096:]
    elif what == "key":
        key = Key128.generate()
    elif what == "plain":
        raw, expected = bytearray(_content(100_000)), NotProtectedFile
    else:
        path, expected = "q", WrongPath
    place.write_bytes(raw)
    with pytest.raises(expected, match="sealed"):
        decrypt_file(place, tmp_path / "out", key, path=path, jobs=jobs)
    with pytest.raises(expected):
        verify_file(place, key, path=path, jobs=jobs)
    with pytest.raises(expected):
        rekey_file(place, tmp_path / "out", key, KEY, path=path, jobs=jobs)
    _only(tmp_path, "plain", "sealed")


def test_refused_pipe_releases_nothing_unverified(tmp_path: Path, plain: Callable[[int], Path]) -> None:
    """What was written before the refusal is a right beginning; a pipe cut or extended by bytes is refused."""
    encrypt_file(plain(LARGE), tmp_path / "sealed", KEY, path="p")
    good = (tmp_path / "sealed").read_bytes()
    changed = bytearray(good)
    changed[97 * 20 * 4096] ^= 1
    flagged = bytearray(good)
    flagged[58] |= 1
    for raw in (bytes(changed), good[:-1], good[:-4096], good[: 97 * 4096 * 3 + 4096], good + b"x", bytes(flagged)):
        read, write = os.pipe()
        feeder = threading.Thread(target=_feed, args=(write, raw))
        feeder.start()
        out = bytearray()
        with open(read, "rb", closefd=True), pytest.raises(IntegrityError):
            decrypt_stream(read, out.extend, KEY)
        feeder.join()
        assert _content(LARGE).startswith(out)


def test_source_that_changes_is_refused(
    tmp_path: Path, plain: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that grows, shrinks or is touched while it is read gives no target."""
    source = plain(LARGE)
    seal = SegmentSealer.seal
    changes: list[Callable[[], object]] = [
        lambda: os.truncate(source, 4 * SEGMENT),
        lambda: os.truncate(source, 0),
        lambda: source.write_bytes(b"another"),
        lambda: os.utime(source, (1, 1)),
    ]

    def meddled(self: SegmentSealer, number: int, size: int, buffers: object) -> None:
        if number == 3:
            changes.pop()()
        seal(self, number, size, buffers)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentSealer, "seal", meddled)
    while changes:
        with pytest.raises(SourceChanged, match="plain"):
            encrypt_file(plain(LARGE), tmp_path / "sealed", KEY, jobs=1)
        _only(tmp_path, "plain")


def test_unreadable_source_is_its_own_error(tmp_path: Path) -> None:
    """Missing, a directory, a pipe without writer: refused at once, nothing left."""
    os.mkfifo(tmp_path / "pipe")
    begin = time.monotonic()
    for name in ("missing", "pipe", "."):
        with pytest.raises(StorageFailed):
            encrypt_file(tmp_path / name, tmp_path / "sealed", KEY)
    assert time.monotonic() - begin < 5
    _only(tmp_path, "pipe")


def test_full_disk_leaves_no_target(tmp_path: Path, plain: Callable[[int], Path]) -> None:
    """A write that fails half-way, in a child that may write no more than a little."""
    source = plain(LARGE)
    encrypt_file(source, tmp_path / "sealed", KEY)
    child = os.fork()
    if child == 0:  # the limit must not touch the rest of the tests
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            works: list[Callable[[], object]] = [
                lambda: encrypt_file(source, tmp_path / "other", KEY, jobs=2),
                lambda: decrypt_file(tmp_path / "sealed", tmp_path / "out", KEY, jobs=2),
                lambda: rekey_file(tmp_path / "sealed", tmp_path / "again", KEY, KEY, jobs=2),
            ]
            for work in works:
                with pytest.raises(StorageFailed):
                    work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    _only(tmp_path, "plain", "sealed")


def test_killed_run_leaves_the_target_absent_or_whole(tmp_path: Path, plain: Callable[[int], Path]) -> None:
    """Killed at any moment: no target, the old one, or the new one whole."""
    source = plain(LARGE)
    encrypt_file(source, tmp_path / "sealed", KEY, path="old")
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.03):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    encrypt_file(source, tmp_path / "sealed", KEY, path="new", force=True, jobs=1)
            finally:
                os._exit(1)
        time.sleep(delay)
        os.kill(child, 9)
        os.waitpid(child, 0)
        with ProtectedFile.open(OSFile(tmp_path / "sealed"), KEY) as file:
            file.verify()
            assert file.path in ("old", "new")


def test_path_that_does_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path, plain: Callable[[int], Path]
) -> None:
    """771 bytes at most."""
    with pytest.raises(UsageError, match="771"):
        encrypt_file(plain(1), tmp_path / "sealed", KEY, path="x" * 772)
    _only(tmp_path, "plain")


def test_error_of_a_worker_stops_all_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a thread raises comes out, once, and the other threads end."""
    done: list[int] = []

    def work(number: int, _buffers: object) -> int:
        if number == 50:
            raise IntegrityError("fifty")
        done.append(number)
        time.sleep(0.001)
        return 0

    before = threading.active_count()
    with pytest.raises(IntegrityError, match="fifty"):
        files._each_segment(10_000, 4, work, None)
    assert len(done) < 9000
    assert threading.active_count() == before


def test_progress_adds_up(tmp_path: Path, plain: Callable[[int], Path]) -> None:
    """Every byte is told once."""
    told: list[int] = []
    encrypt_file(plain(LARGE), tmp_path / "sealed", KEY, jobs=3, advance=told.append)
    assert sum(told) == LARGE
    told.clear()
    verify_file(tmp_path / "sealed", KEY, advance=told.append)
    assert sum(told) == LARGE
