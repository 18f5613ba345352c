"""Every attack on the host's copies of what was staged, after the start: the program reads what was verified."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.faults.host.attacks import ATTACKS, IN_TIME_S
from tests.faults.host.running import Running
from tests.mount import world

pytestmark = pytest.mark.mount

KINDS = ("small trusted file", "large trusted file", "input in a folder", "input that is a file")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_staged_file_altered_after_the_start_is_read_as_it_was(tmp_path: Path, kind: str, attack: str) -> None:
    """Small and large trusted files, encrypted inputs: no attack is seen, and none of them is an event."""
    size = 20_000 if kind == "small trusted file" else 3_000_000
    content, other, older = (os.urandom(size // 2).hex() for _ in range(3))
    trusted = kind.endswith("trusted file")
    for name, text in (("older", older), ("file", content), ("other", other)):
        if trusted:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_text(text)
        else:
            world.encrypt(tmp_path, "in/" + ("file" if name == "older" else name), text.encode())
        if name == "older":
            (tmp_path / "in" / ("older" if trusted else "file")).rename(tmp_path / "older")
    mount = {
        "small trusted file": ["chroot", "/in/file", "file:in/file"],
        "large trusted file": ["chroot", "/in/file", "file:in/file"],
        "input in a folder": ["encrypted", "/in", "file:in"],
        "input that is a file": ["encrypted", "/in/file", "file:in/file"],
    }[kind]
    spec = world.shell("echo ready; read go; cat /in/file; echo; echo ended", mounts=[mount])
    spec |= {"trusted": ["in/file"]} if trusted else {"read_only": [mount[1]]}
    with Running(tmp_path, spec) as run:
        assert run.line() == "ready"
        ATTACKS[attack](tmp_path / "in/file")
        began = time.monotonic()
        assert run.answer("go", IN_TIME_S) == content
        assert run.line(IN_TIME_S) == "ended"
        assert time.monotonic() - began < IN_TIME_S
        result = run.end()
    assert result.status == 0, result.err
    assert result.ended["events"] == []
