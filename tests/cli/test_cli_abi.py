"""What scripts may rely on: exit codes, one per error class, and the page that lists them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

from adyton import errors
from adyton.cli.main import VERBS
from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (REPOSITORY / "docs" / "cli-abi.md").read_text(encoding="utf-8")


def _classes(root: type[errors.Error] = errors.Error) -> Iterator[type[errors.Error]]:
    for child in root.__subclasses__():
        yield child
        yield from _classes(child)


def test_exit_codes_are_never_shared() -> None:
    """Every error class has an exit code of its own; the failed script's is the script's."""
    codes = [child.exit_code for child in _classes() if child is not errors.ScriptFailed]
    assert len(codes) == len(set(codes))
    assert all(0 < code < 126 for code in codes)


def test_page_lists_every_class_with_its_code_and_sentence() -> None:
    """The page's table and the classes say the same."""
    rows = {name: (int(code), text) for name, code, text in re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", PAGE, re.M)}
    wanted = {
        child.__name__: (child.exit_code, (child.__doc__ or "").strip())
        for child in _classes()
        if child is not errors.ScriptFailed
    }
    assert rows == wanted


def test_tree_in_docstring_names_every_class() -> None:
    """The drawing above the classes is complete."""
    drawn = errors.__doc__ or ""
    assert [child.__name__ for child in _classes() if child.__name__ not in drawn] == []


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "adyton", *args], capture_output=True, text=True, check=False)


def test_help_lists_every_verb() -> None:
    """`adyton --help` names all verbs with a line each."""
    shown = _run("--help")
    assert shown.returncode == 0
    assert all(re.search(rf"^  {re.escape(verb)} ", shown.stdout, re.M) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_is_there(verb: str) -> None:
    """Every verb answers --help, imports nothing that is missing, and names its usage."""
    shown = _run(verb, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"adyton {verb}" in shown.stdout


def test_help_verb_says_what_the_verb_says_of_itself() -> None:
    """`adyton help VERB` is `adyton VERB --help`, also for a verb of a verb; what is no verb is refused."""
    assert _run("help", "encrypt").stdout == _run("encrypt", "--help").stdout
    assert _run("help", "run").stdout == _run("run", "--help").stdout
    assert "adyton key new" in _run("help", "key", "new").stdout
    assert _run("help").stdout == _run("--help").stdout
    assert _run("help", "encrpyt").returncode == 2


def _applications() -> Iterator[tuple[str, Any]]:
    for verb, (module, _) in VERBS.items():
        yield verb, importlib.import_module("adyton.cli.run_options" if verb == "run" else module).app


def _commands() -> Iterator[tuple[str, Any]]:
    """Every verb, and every verb of a verb, as Typer has it."""
    for verb, application in _applications():
        command: Any = get_command(application)
        yield verb, command
        yield from ((f"{verb} {name}", inner) for name, inner in getattr(command, "commands", {}).items())


COMMANDS = dict(_commands())


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_shows_every_word_of_it(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words in brackets too, which Rich would leave out; a flag takes no value, and no type stands beside it."""
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[verb]
    shown = command.get_help(command.context_class(command, info_name=f"adyton {verb}"))
    said = "".join(shown.split())
    for option in command.params:
        assert "".join((getattr(option, "help", "") or "").split()) in said, option.name
    for name, inner in getattr(command, "commands", {}).items():
        assert "".join(inner.help.split("\n\n")[0].split()) in said, name
    assert "bool" not in shown.lower()
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("word", ["[red]x", "[/]", "[link]y"])
def test_error_shows_brackets(word: str) -> None:
    """What is wrong on the command line is shown as it was written."""
    shown = _run("encrypt", f"--{word}", "-o", "x")
    assert shown.returncode == 2
    assert f"--{word}" in shown.stderr
    shown = _run("encrypt", "a", "-o", "x", "--jobs", word)
    assert word in shown.stderr


def test_unknown_verb_is_a_usage_error() -> None:
    """A verb that does not exist ends with 2 and says so."""
    shown = _run("encrpyt")
    assert shown.returncode == 2
    assert "encrpyt" in shown.stderr


def test_version_is_the_package_version() -> None:
    """`adyton --version` prints the version."""
    assert re.fullmatch(r"adyton \d+\.\d+\.\d+\n", _run("--version").stdout)
