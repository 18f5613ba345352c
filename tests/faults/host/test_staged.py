"""What was staged is the program's own: whatever the host does to its copies afterwards changes nothing."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.mount import world

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("how", ["alter", "cut", "delete", "link"])
def test_host_changes_staged_files_while_the_program_runs(tmp_path: Path, how: str) -> None:
    """A trusted file and a read-only input: the program goes on reading what was verified at the start."""
    (tmp_path / "script").write_text("trusted")
    world.encrypt(tmp_path, "in/data", b"input")
    spec = world.shell(
        "echo ready; read go; cat /script /in/data",
        trusted=["script"],
        mounts=[["chroot", "/script", "file:script"], ["encrypted", "/in", "file:in"]],
        read_only=["/in"],
        stdin=True,
    )
    process = world.start(tmp_path, spec, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for path in (tmp_path / "script", tmp_path / "in/data"):
        if how == "alter":
            path.write_bytes(b"X" * path.stat().st_size)
        elif how == "cut":
            path.write_bytes(b"")
        else:
            path.unlink()
            if how == "link":
                path.symlink_to("/etc/passwd")
    out, err = process.communicate("go\n", timeout=30)
    assert out == "trustedinput", err


def test_plaintext_is_nowhere_on_the_host_during_and_after_a_run(tmp_path: Path) -> None:
    """A canary in input, output and memory files: not in any file below the run's folder; the search finds a leak."""
    canary = "canary-7f3a9c51e2"
    (tmp_path / "out").mkdir()
    world.encrypt(tmp_path, "in/data", canary.encode() * 50)
    script = "for f in /out/a /tmp/b /dev/shm/c; do cat /in/data > $f; done; cat /in/data; echo; echo ready; read x"
    mounts = [["encrypted", "/in", "file:in"], ["encrypted", "/out", "file:out"]]
    common = {"mounts": mounts, "read_only": ["/in"], "stdin": True}

    def found(folder: Path) -> list[str]:
        return [str(path) for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]

    sealed = world.shell(script, **common, stdio=False, log="file:out.log")
    process = world.start(tmp_path, sealed, stdin=subprocess.PIPE)
    for _ in range(200):
        if (tmp_path / "out/a").exists() and (tmp_path / "out.log").exists():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    assert found(tmp_path) == []
    out, err = process.communicate("x\n", timeout=30)
    assert canary not in out + err
    assert found(tmp_path) == []
    assert canary.encode() in world.decrypt(tmp_path, "out.log")
    (tmp_path / "leak").mkdir()
    leaking = world.shell(
        "cat /in/data > /leak/x",
        **{**common, "mounts": [*mounts, ["chroot", "/leak", "file:leak"]]},
        allowed=["file:leak/"],
    )
    assert world.run(tmp_path, leaking).status == 0
    assert found(tmp_path) == [str(tmp_path / "leak/x")]
