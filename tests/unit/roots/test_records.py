"""The records of a history: one form each, in their order, and nothing else."""

from __future__ import annotations

import pytest

from adyton.errors import IntegrityError, UsageError
from adyton.roots.entry import Entry
from adyton.roots.folder_id import folder_id, is_folder_id, key_of
from adyton.roots.history import History
from adyton.roots.journal import MAGIC, parse_journal
from adyton.roots.records import Change, Commit, Confirmed, Record, Snapshot, Step, encode, parse_record
from adyton.roots.root import Root
from adyton.roots.sealing import first_head, seal
from adyton.values import Key128

KEY = Key128(bytes(range(16)))
FILE = Entry(b"\1" * 48, 7, 5, "g-1")
FOLDER = Entry(b"", 0, 5, "owner")
HISTORY = History.create("demo/out", {"a": FILE, "d": FOLDER}, at_s=5)
RECORDS: list[Record] = [
    HISTORY.snapshot(),
    Change(5, "g-1", (Step("a", None), Step("b", FILE, "a"), Step("e", Entry(b"", 0, 5, "g-1")))),
    Commit(2, 6, "g-1", b"\2" * 32),
    Confirmed(2),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_record_has_one_form(record: Record) -> None:
    """It comes back as it was, and neither cut nor with a byte more."""
    raw = encode(record)
    assert parse_record(raw) == record
    for wrong in (*(raw[:end] for end in range(len(raw))), raw + b"\0"):
        with pytest.raises(IntegrityError):
            parse_record(wrong)


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b"])
def test_path_that_is_none_is_refused(path: str) -> None:
    """A record names paths below the folder, and nothing else."""
    with pytest.raises(IntegrityError, match="malformed"):
        parse_record(encode(Change(5, "g-1", (Step(path, FILE),))))


def test_history_keeps_its_order() -> None:
    """A commit must have the next number and the state that the changes give."""
    for commit in (Commit(3, 6, "g-1", HISTORY.root.state), Commit(2, 6, "g-1", b"\2" * 32)):
        history = History(HISTORY.snapshot())
        with pytest.raises(IntegrityError):
            history.add(encode(commit))
    history = History(HISTORY.snapshot())
    with pytest.raises(IntegrityError, match="malformed"):
        history.add(encode(HISTORY.snapshot()))
    history.add(encode(Commit(2, 6, "g-1", HISTORY.root.state)))
    assert history.root.sequence == 2
    assert history.heads[1] == HISTORY.root.head


def test_snapshot_must_have_its_state() -> None:
    """Entries that do not give the root's state are refused."""
    found = HISTORY.snapshot()
    wrong = Root(1, found.root.head, b"\0" * 32, 2, 5, "owner")
    with pytest.raises(IntegrityError, match="malformed"):
        History(Snapshot(found.folder, wrong, 0, {}, found.entries))


def test_frame_of_another_folder_or_key_does_not_open() -> None:
    """The id is in the first frame's additional data."""
    raw = MAGIC + seal(KEY, first_head("demo/out"), encode(HISTORY.snapshot()))
    assert parse_journal(raw, KEY, "demo/out", "x")[0].entries == HISTORY.entries
    for key, folder in ((KEY, "demo/other"), (Key128(b"\1" * 16), "demo/out")):
        with pytest.raises(IntegrityError) as caught:
            parse_journal(raw, key, folder, "x")
        assert caught.value.check == "root of the folder"


def test_records_cannot_change_places() -> None:
    """A frame opens behind its predecessor only."""
    history = History(HISTORY.snapshot())
    first, second = Change(6, "g-1", (Step("b", FILE),)), Change(6, "g-1", (Step("c", FILE),))
    frames = []
    for record in (first, second):
        frames.append(seal(KEY, history.head, encode(record)))
        history.apply(record, encode(record))
    raw = MAGIC + seal(KEY, first_head("demo/out"), encode(HISTORY.snapshot()))
    assert set(parse_journal(raw + frames[0] + frames[1], KEY, "demo/out", "x")[0].entries) == {"a", "b", "c", "d"}
    for wrong in (frames[1] + frames[0], frames[1], frames[1] + frames[1]):
        assert set(parse_journal(raw + wrong, KEY, "demo/out", "x")[0].entries) == {"a", "d"}


def test_id_has_one_form() -> None:
    """Key and normalised path."""
    assert folder_id("demo", "enc/my data") == "demo/enc/my data"
    assert key_of("demo/enc/out") == "demo"
    assert is_folder_id("demo//srv/out")
    for wrong in ("demo", "demo/", "/out", "demo/a/../b", "demo/a/", "demo/ä", "demo/a\n", "de mo/a", "d/" + "a" * 200):
        assert not is_folder_id(wrong)
    with pytest.raises(UsageError) as caught:
        folder_id("demo", "")
    assert caught.value.check == "path of a pinned folder"
