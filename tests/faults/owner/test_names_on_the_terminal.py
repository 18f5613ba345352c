"""A file's name is the host's; it neither steers the owner's terminal nor is read as markup."""

from __future__ import annotations

import io
import sys

import pytest

from adyton.cli.output import progress

NAMES = ["[/]", "[bold]x", "[link=https://evil.example]y[/link]", "[/no]", "\x1b]0;title\x07z", "[red]\x1b[2J"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        """As a terminal says."""
        return True


@pytest.mark.parametrize("name", NAMES)
def test_progress_bar_shows_a_name_as_it_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`[/]` ended the verb with a traceback of rich's."""
    shown = _Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with progress(f"decrypting {name}", 10) as advance:
        advance(10)
    text = shown.getvalue()
    assert "evil.example" in text or "evil" not in name
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert name.split("\x1b")[0] in text
