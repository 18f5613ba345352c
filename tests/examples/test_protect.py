"""`adyton protect` refuses before it does anything; that it works, the tutorial's test shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.examples.stories import environment

SCRIPT = "import sys; open(sys.argv[2], 'w').write(open(sys.argv[1]).read().upper())"


def protect(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the verb in a folder of its own, home and platform inside."""
    own = {"ADYTON_HOME": str(folder / "owner"), "ADYTON_SIM_PLATFORM": str(folder / "platform"), "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "adyton", "protect", *words],
        cwd=folder,
        env={**environment(), **own},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_protect_without_a_tee_is_refused(tmp_path: Path) -> None:
    """A simulated TEE is chosen by name, never silently."""
    (tmp_path / "upper.py").write_text(SCRIPT)
    ended = protect(tmp_path, "upper.py", "in.txt", "out.txt")
    assert ended.returncode == 2
    assert "--tee sim" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["upper.py"]


def test_protect_without_the_script_is_refused(tmp_path: Path) -> None:
    """A missing script is named, and nothing is made."""
    ended = protect(tmp_path, "--tee", "sim", "missing.py")
    assert ended.returncode == 2
    assert "missing.py" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_protect_twice_leaves_the_edited_template(tmp_path: Path) -> None:
    """A template that is there may have been edited: it is kept unless --force says otherwise."""
    (tmp_path / "upper.py").write_text(SCRIPT)
    (tmp_path / "in.txt").write_text("secret\n" * 100)
    first = protect(tmp_path, "--tee", "sim", "upper.py", "in.txt", "out.txt")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "encrypted" / "in.txt").stat().st_size == 4096
    assert "$ adyton approve upper.manifest" in first.stdout
    template = tmp_path / "upper.manifest.template"
    template.write_text(template.read_text() + "# mine\n")

    second = protect(tmp_path, "--tee", "sim", "upper.py", "in.txt", "out.txt")
    assert second.returncode == 86, second.stderr
    assert template.read_text().endswith("# mine\n")

    third = protect(tmp_path, "--tee", "sim", "--force", "upper.py", "in.txt", "out.txt")
    assert third.returncode == 0, third.stderr
    assert "# mine" not in template.read_text()
