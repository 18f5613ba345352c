"""How long a document serves, when it is fetched anew, that none goes back, and which fetches find a place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.collateral.background import MAX_FETCHES, MAX_UNPROVEN_FETCHES, Purpose, has_place
from adyton.collateral.documents import Document, VerifiedDocument, check_current
from adyton.collateral.store import CollateralStore, Mark, check_not_older
from adyton.collateral.stored_time import parse_stamp
from adyton.dates import timestamp
from adyton.errors import Stale
from adyton.values import Digest

START = datetime(2030, 1, 1, tzinfo=UTC)
DAYS = st.integers(0, 400)
NUMBERS = st.none() | st.integers(0, 5)
PURPOSES: tuple[Purpose, ...] = ("proven", "unproven", "refresh")


def document(issued: int, days: int, number: int | None = None, subject: str = "platform") -> VerifiedDocument:
    """A CRL, issued so many days after the start, valid for so many."""
    issued_at = START + timedelta(days=issued)
    raw = Document("pck-crl", b"", "", "", issued_at)
    return VerifiedDocument(raw, Digest(bytes(32)), subject, issued_at, issued_at + timedelta(days=days), number)


def is_stale(verified: VerifiedDocument, mark: Mark) -> bool:
    """Whether the store refuses it after this mark."""
    try:
        check_not_older(verified, mark)
    except Stale:
        return True
    return False


@given(DAYS, DAYS, st.text(max_size=20), st.sampled_from(["/a", "/b"]))
def test_document_is_due_about_half_of_its_validity_on(issued: int, days: int, subject: str, folder: str) -> None:
    """Between 45 and 55 % of it, always at the same time in one store, and never after its end."""
    verified = document(issued, days, subject=subject)
    due = CollateralStore(Path(folder)).due_at(verified)
    validity = verified.expires_at - verified.issued_at
    slack = timedelta(microseconds=1)
    assert verified.issued_at + 0.45 * validity - slack <= due <= verified.issued_at + 0.55 * validity + slack
    assert due == CollateralStore(Path(folder)).due_at(verified)
    assert due <= verified.expires_at


@given(DAYS, DAYS, st.integers(-10, 900))
def test_document_serves_from_its_issue_to_its_end(issued: int, days: int, at: int) -> None:
    """Both ends belong to its validity; on all other days it is refused."""
    verified, now = document(issued, days), START + timedelta(days=at)
    if issued <= at <= issued + days:
        check_current(verified, now)
    else:
        with pytest.raises(Stale):
            check_current(verified, now)


@given(st.lists(st.tuples(DAYS, NUMBERS), min_size=1, max_size=20))
def test_documents_that_are_taken_never_go_back(offered: list[tuple[int, int | None]]) -> None:
    """Whatever a source offers, of what is taken neither the number nor the issue date ever falls."""
    mark: Mark | None = None
    for issued, number in offered:
        verified = document(issued, 30, number)
        if mark is not None and is_stale(verified, mark):
            assert verified.issued_at < mark.issued_at or (verified.number or 0) <= (mark.number or 0)
            continue
        if mark is not None:
            assert verified.issued_at >= mark.issued_at
            assert mark.number is None or (verified.number is not None and verified.number >= mark.number)
        mark = Mark(verified.number, verified.issued_at)


@given(st.lists(st.sampled_from(PURPOSES), max_size=40))
def test_fetches_keep_their_places(asked: list[Purpose]) -> None:
    """Strangers' evidence takes part of the places only, all evidence takes so many, and what is due always has one."""
    running: list[Purpose] = []
    for purpose in asked:
        if has_place(running, purpose):
            running.append(purpose)
    assert running.count("unproven") <= MAX_UNPROVEN_FETCHES
    assert len(running) - running.count("refresh") <= MAX_FETCHES
    assert running.count("refresh") == asked.count("refresh")
    wanted = min(asked.count("proven"), MAX_FETCHES - MAX_UNPROVEN_FETCHES)
    assert running.count("proven") >= wanted


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1)), st.text(max_size=30))  # noqa: DTZ001
def test_times_in_files_are_read_as_written(moment: datetime, rubbish: str) -> None:
    """To the second; what is no time raises nothing."""
    written = timestamp(moment.replace(tzinfo=UTC))
    assert parse_stamp(written) == moment.replace(tzinfo=UTC, microsecond=0)
    assert parse_stamp(rubbish) is None or rubbish.upper().endswith("Z")
