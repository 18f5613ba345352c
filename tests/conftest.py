"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_vectors() -> Path:
    """The folder of vectors made by real tools and hardware; skipped by name where it is not beside the repository."""
    folder = REPOSITORY.parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip(f"shared vectors are absent: {folder.name} is not beside the repository")
    return folder
