"""A program that has turned against its sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `adyton run` is started: an empty output folder and nothing else."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")
    (tmp_path / "out").mkdir()
    return tmp_path
