"""Every verb and every option that a page names exists, also where no test types the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.image.cloud_export import CLOUDS, Cloud
from tests.docs.command_lines import adyton_commands, in_blocks, in_text, wrong
from tests.docs.pages import REPOSITORY, pages, shell_blocks


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_page_names_only_verbs_and_options_that_exist(page: Path) -> None:
    """In blocks that are typed, in blocks that are not run, and in the text."""
    found = [
        f"adyton {' '.join(words)}: {why}" for words in (*in_blocks(page), *in_text(page)) if (why := wrong(words))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("cloud", CLOUDS.values(), ids=lambda cloud: cloud.name)
def test_rent_page_says_the_clouds_words_as_the_export_does(cloud: Cloud) -> None:
    """Image and machine are made with every word of export.json. The page has the same words, and names beside them."""
    page = REPOSITORY / "docs/how-to/rent-a-confidential-machine.md"
    lines = [command.split() for block in shell_blocks(page) for command in block.commands]
    for told in (cloud.image, cloud.machine):
        verb = told[: next((at for at, word in enumerate(told) if word.startswith("-")), len(told))]
        found = [set(told) - set(words) for words in lines if tuple(words[: len(verb)]) == verb]
        assert set() in found, found
    assert any(f"--cloud {cloud.name}" in " ".join(words) for words in lines)


def test_rent_page_is_looked_at() -> None:
    """The page whose commands nobody types here has many, in every form that is looked for."""
    page = REPOSITORY / "docs/how-to/rent-a-confidential-machine.md"
    assert len(list(in_blocks(page))) > 12
    assert len(list(in_text(page))) > 2


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("adyton init", [["init"]]),
        (
            ".venv/bin/adyton key new k && A=1 adyton run x -- --not-ours",
            [["key", "new", "k"], ["run", "x", "--", "--not-ours"]],
        ),
        ('ssh host "cat x" | adyton image outputs - -o out > log 2>&1', [["image", "outputs", "-", "-o", "out"]]),
        ("x=$(adyton platform show --json | jq .a)", [["platform", "show", "--json"]]),
        ("if adyton verify quote.bin; then echo yes; fi", [["verify", "quote.bin"]]),
        ("echo adyton init", []),
        ("adyton serve --listen 0.0.0.0:1 &", [["serve", "--listen", "0.0.0.0:1"]]),
    ],
)
def test_commands_are_found_in_a_line(line: str, commands: list[list[str]]) -> None:
    """Behind pipes, assignments and substitutions, and nowhere else."""
    assert list(adyton_commands(line)) == commands


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("adyton disk x", "no verb 'disk'"),
        ("adyton image upload x", "no verb 'upload' of image"),
        ("adyton image boot x --shared y", "--shared"),
        ("adyton image boot x --share", "--share"),
        ("adyton run x --kms y", "--kms"),
        ("adyton help nothing", "no verb 'nothing'"),
        ("adyton approve m --nothing …", "--nothing"),
    ],
)
def test_what_does_not_exist_is_named(line: str, why: str) -> None:
    """A verb, a verb of a verb, an option, and an option without its value."""
    (words,) = adyton_commands(line)
    assert why in (wrong(words) or "")


@pytest.mark.parametrize(
    "line", ["adyton --help", "adyton image", "adyton help image", "adyton run x -- --anything", "adyton verify …"]
)
def test_what_exists_is_taken(line: str) -> None:
    """Also what a page cuts short, and what belongs to the program."""
    (words,) = adyton_commands(line)
    assert wrong(words) is None
