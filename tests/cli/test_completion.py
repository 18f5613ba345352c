"""Completion in bash, by bash itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.cli.completion import SCRIPT, candidates
from adyton.cli.main import VERBS

BIN = Path(sys.executable).parent


def completed(line: str) -> list[str]:
    """What bash offers where this line ends."""
    words = line.split(" ")
    asked = f"""
        source <(adyton --show-completion)
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        _adyton adyton
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {"PATH": f"{BIN}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.skipif(not (BIN / "adyton").exists(), reason="the command is not installed")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("adyton en", ["encrypt"]),
        ("adyton --v", ["--version"]),
        ("adyton collateral f", ["fetch"]),
        ("adyton collateral fetch --vl", ["--vlek"]),
        ("adyton encrypt model.pt", []),
        ("adyton nonsense --k", []),
    ],
)
def test_bash_completes(line: str, found: list[str]) -> None:
    """Verbs, the verbs of verbs, options; for anything else bash goes on with file names."""
    assert completed(line) == found


def test_every_verb_has_completions() -> None:
    """Each verb is loaded once: all have at least --help, and nothing is offered twice."""
    assert set(VERBS) < set(candidates([""], VERBS))
    for verb in VERBS:
        names = candidates([verb, "-"], VERBS)
        assert "--help" in names
        assert len(set(names)) == len(names)


def test_script_is_what_bash_understands() -> None:
    """No syntax error."""
    subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=True)
