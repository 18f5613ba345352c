"""Completion in bash, zsh and fish, by these shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adyton.cli.completion import SCRIPTS, candidates, script
from adyton.cli.main import VERBS
from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

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


def completed_by(shell: str, asked: str) -> list[str]:
    """What another shell offers."""
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/nonexistent", "TERM": "dumb"}
    command = [shell, *(["-f"] if shell == "zsh" else ["--no-config"]), "-c", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def completed_by_zsh(line: str) -> list[str]:
    """What the function hands to zsh's completion, whose two commands stand in for it here."""
    words = line.split(" ")
    return completed_by(
        "zsh",
        f"""
        compdef() {{ :; }}
        compadd() {{ print -rl -- "${{(P@)2}}"; }}
        _files() {{ print -r -- FILES; }}
        source <(adyton --show-completion zsh)
        words=({" ".join(f"'{word}'" for word in words)}) CURRENT={len(words)}
        _adyton
        """,
    )


def completed_by_fish(line: str) -> list[str]:
    """What fish offers where this line ends."""
    return completed_by("fish", f"adyton --show-completion fish | source; complete -C '{line}'")


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


@pytest.mark.skipif(not (BIN / "adyton").exists(), reason="the command is not installed")
@pytest.mark.parametrize(
    ("shell", "complete"), [("zsh", completed_by_zsh), ("fish", completed_by_fish)], ids=["zsh", "fish"]
)
def test_other_shells_complete(shell: str, complete: Callable[[str], list[str]]) -> None:
    """The same in zsh and fish: a verb, a verb's verb, an option, and every verb where nothing is begun."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert complete("adyton en") == ["encrypt"]
    assert complete("adyton collateral f") == ["fetch"]
    assert complete("adyton collateral fetch --vl") == ["--vlek"]
    assert set(VERBS) < set(complete("adyton "))


def test_zsh_goes_on_with_file_names() -> None:
    """Where Adyton has nothing to offer."""
    if shutil.which("zsh") is None or not (BIN / "adyton").exists():
        pytest.skip("no zsh here, or the command is not installed")
    assert completed_by_zsh("adyton encrypt model.pt") == ["FILES"]


def test_shell_that_is_not_known_is_refused() -> None:
    """And the ones that are known are named."""
    with pytest.raises(UsageError, match="no completion"):
        script("csh")


def test_every_verb_has_completions() -> None:
    """Each verb is loaded once: all have at least --help, and nothing is offered twice."""
    assert set(VERBS) < set(candidates([""], VERBS))
    for verb in VERBS:
        names = candidates([verb, "-"], VERBS)
        assert "--help" in names
        assert len(set(names)) == len(names)


def test_script_is_what_bash_understands() -> None:
    """No syntax error."""
    subprocess.run(["bash", "-n"], input=SCRIPTS["bash"], text=True, check=True)
