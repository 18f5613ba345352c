"""What is shown: texts of the host's choosing cannot steer the owner's terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from adyton.cli.main import report
from adyton.cli.output import FIRST_LINE_S, ProgressLines, note, printable, progress, progress_bar, say
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


def test_progress_bar_is_one_line_at_eighty_columns() -> None:
    """The name of a file is cut, never the time that is left."""
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True, color_system=None)
    bar = progress_bar(console)
    task = bar.add_task("encrypting " + "a-long-name" * 12, total=48_000_000_000)
    bar.advance(task, 1_000_000_000)
    console.print(bar.get_renderable())
    (line,) = shown.getvalue().splitlines()
    assert line.startswith("encrypting ")
    assert "1.0/48.0 GB" in line
    assert "-:--:--" in line


def test_progress_in_a_pipe_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing for what is soon done; later a line, at longer and longer distances; no bar, no control characters."""
    now = [0.0]
    lines = ProgressLines("encrypting a\x1bb", 400_000_000, lambda: now[0])
    shown: list[tuple[float, str]] = []
    for _ in range(400):
        now[0] += 1
        lines(1_000_000)
        shown += [(now[0], line) for line in capsys.readouterr().err.splitlines()]
    assert shown[0] == (10.0, "encrypting a\\x1bb: 10.0 of 400.0 MB (2 %) after 0:00:10")
    assert shown[-1][1] == "encrypting a\\x1bb: 380.0 of 400.0 MB (95 %) after 0:06:20"
    assert 5 < len(shown) < 25
    assert shown[-1][0] - shown[-2][0] > 2 * FIRST_LINE_S


def test_progress_of_unknown_size_says_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe has no size."""
    now = [0.0]
    lines = ProgressLines("decrypting -", None, lambda: now[0])
    now[0] = 75.0
    lines(1_234_567_890)
    assert capsys.readouterr().err == "decrypting -: 1,234.6 MB after 0:01:15\n"


def test_progress_of_what_is_soon_done_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts with short steps have quiet logs; --json is quiet always."""
    with progress("x", 10) as advance:
        advance(10)
    with progress("x", 10, quiet=True) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
