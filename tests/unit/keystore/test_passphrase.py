"""Asking for a passphrase."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.keystore.passphrase import ask_passphrase


def test_passphrase_that_nobody_can_type_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service has no standard input: it says what to use instead."""
    with Path(os.devnull).open() as nothing, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", nothing)
        with pytest.raises(UsageError, match="no passphrase was given") as caught:
            ask_passphrase(confirm=False)
    assert "file or command" in str(caught.value.remedy)
