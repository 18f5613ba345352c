"""Fixtures that every room's tests share."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.plain_reports"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # Started in the background of a script, where the shell ignores Ctrl-C: what the tests start must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_vectors() -> Path:
    """The folder of vectors made by real tools and hardware; skipped by name where it is not beside the repository."""
    folder = REPOSITORY.parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip("recordings of real tools and hardware are not in the repository: ../shared/vectors is missing")
    return folder
