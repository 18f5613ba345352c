"""What is shown: texts of the host's choosing cannot steer the owner's terminal."""

from __future__ import annotations

import pytest

from adyton.cli.main import report
from adyton.cli.output import note, printable, say
from adyton.errors import IntegrityError

HOSTILE = "a\x1b[2Jb\x07c\x9bd\u202ee\x7ff\udcff\rg"
TAMED = "a\\x1b[2Jb\\x07c\\x9bd\\u202ee\\x7ff\\udcff\\x0dg"


def test_printable_controls_become_escapes() -> None:
    """Controls, overrides of direction and undecodable bytes are written out; tab, newline and letters stay."""
    assert printable(HOSTILE) == TAMED
    assert printable("tab\tline\nÄ 数") == "tab\tline\nÄ 数"


def test_say_and_note_hostile_name_is_tamed(capsys: pytest.CaptureFixture[str]) -> None:
    """Results and notes go through it."""
    say(HOSTILE)
    note(HOSTILE)
    shown = capsys.readouterr()
    assert shown.out == shown.err == TAMED + "\n"


def test_report_hostile_refusal_is_tamed(capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal that quotes a name of the host's choosing shows it written out, in every field."""
    error = IntegrityError(f"{HOSTILE} was altered", check=HOSTILE + "1", expected="x", seen=HOSTILE + "2", remedy="y")
    report(error, as_json=False)
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert shown.count(TAMED) == 3
