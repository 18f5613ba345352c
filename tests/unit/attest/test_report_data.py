"""Report data by domain: the bytes, and that no domain can be taken for another."""

from __future__ import annotations

import hashlib
import re
import struct
from itertools import permutations
from pathlib import Path

import pytest

from adyton.attest.report_data import LABELS, ProgramEvidence, framed, program_report_data
from adyton.errors import UsageError
from adyton.values import Measurement

WORKLOAD = Measurement(bytes(range(32)))
PAGE = Path(__file__).parents[3] / "docs" / "report-data.md"


def test_program_report_data_is_what_the_page_says() -> None:
    """SHA-512 over label, workload and the data filled up to 64 bytes, each field with its length before it."""
    content = b"adyton report data/1 program\0" + struct.pack(">I", 32) + WORKLOAD.raw
    content += struct.pack(">I", 64) + b"hello" + bytes(59)
    assert program_report_data(WORKLOAD, b"hello") == hashlib.sha512(content).digest()
    assert program_report_data(WORKLOAD, b"hello" + bytes(59)) == program_report_data(WORKLOAD, b"hello")


def test_page_has_the_worked_example_and_every_label() -> None:
    """The page's example is what the code computes."""
    text = PAGE.read_text(encoding="utf-8")
    for label in LABELS.values():
        assert f"`{label[:-1].decode()}\\0`" in text, label
    worked = program_report_data(WORKLOAD, b"hello").hex()
    assert worked in re.sub(r"\s", "", text)


def test_no_label_begins_another() -> None:
    """Each ends with its only NUL, so what follows one label is never read as the rest of another."""
    for label in LABELS.values():
        assert label.count(0) == 1
        assert label.endswith(b"\0")
    for one, other in permutations(LABELS.values(), 2):
        assert not one.startswith(other)


def test_fields_cannot_be_shifted() -> None:
    """Bytes moved from one field to its neighbour give another hash."""
    assert framed(b"ab", b"c") != framed(b"a", b"bc")
    assert framed(b"", b"a") != framed(b"a", b"")


def test_workload_and_data_each_change_the_report_data() -> None:
    """Another workload or other data: another value; never what the program wrote."""
    found = {
        program_report_data(workload, data)
        for workload in (WORKLOAD, Measurement(bytes(32)))
        for data in (b"", b"x", bytes(range(64)))
    }
    assert len(found) == 6
    assert bytes(range(64)) not in found


@pytest.mark.parametrize(("workload", "data"), [(WORKLOAD, bytes(65)), (Measurement(bytes(48)), b"")])
def test_wrong_sizes_are_refused(workload: Measurement, data: bytes) -> None:
    """Data that does not fit is never cut, and a launch digest is no workload measurement."""
    with pytest.raises(UsageError):
        program_report_data(workload, data)
    with pytest.raises(UsageError):
        ProgramEvidence(lambda report_data: report_data, workload, raw=True).over(data)


def test_program_evidence_is_over_the_hash_unless_raw() -> None:
    """The source signs the hash; the bytes themselves only where that was asked for."""
    hashed = ProgramEvidence(lambda report_data: report_data, WORKLOAD)
    assert hashed.over(b"x") == program_report_data(WORKLOAD, b"x")
    raw = ProgramEvidence(lambda report_data: report_data, WORKLOAD, raw=True)
    assert raw.over(b"x") == b"x" + bytes(63)
