"""What `--update-lock` asks of pip and apt: names of the recipe, with all their hashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.image import update_lock
from adyton.image.recipe import WHEELS

HASH = "--hash=sha256:" + "11" * 32


def test_wheels_are_taken_with_every_hash_and_without_conditions() -> None:
    """Other packages of the file are left out."""
    lines = [
        f"{name}==1.{number} ; python_version < '4' \\\n    {HASH} \\\n    {HASH}" for number, name in enumerate(WHEELS)
    ]
    found = update_lock._chosen("\n".join(["# made", *lines, f"other==1 \\\n    {HASH}"]) + "\n")
    assert set(found) == set(WHEELS)
    assert found["cffi"] == f"cffi==1.0 {HASH} {HASH}"


def test_wheel_without_a_hash_is_refused() -> None:
    """Nothing is downloaded that is not pinned."""
    text = "\n".join(f"{name}==1" for name in WHEELS)
    with pytest.raises(UsageError, match="no hashes of"):
        update_lock._chosen(text)


def test_machine_without_debians_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt would have nothing to check signatures with."""
    monkeypatch.setattr(update_lock, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(UsageError, match="Debian's keys"):
        update_lock.new_lock(tmp_path / "requirements", ("file:///mirror/debian",), lambda _text: None)
