"""Command lines of `adyton` in pages: found in shell blocks and in inline code, and held against the real parsers."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from adyton.cli.main import VERBS
from tests.docs.pages import shell_blocks

ELLIPSIS = {"…", "..."}
"""Words that stand for some others."""
NO_COMMANDS = {"report": "labels of hashes", "ssh-ed25519": "a line of a file of signers"}
"""What stands behind `adyton` in inline code that is no command line, by its first word."""
_INLINE = re.compile(r"(?<!`)`(adyton [^`]+)`(?!`)")
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
_SUBSTITUTED = re.compile(r"\$\(|\)|`")
_JOINED = re.compile(r"\s\d*>&\d")
_BETWEEN = {"|", "||", "&&", ";", "&", "(", ")", "!", "{", "}"}
_REDIRECTION = re.compile(r"\d*(>>?|<)")
_BEFORE = {"if", "then", "while", "time", "do", "else", "exec", "sudo"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")
_OWN_OPTIONS = {"--help", "-h", "--version", "--show-completion"}
_LABEL = re.compile(r"[a-z-]+/[0-9]")
"""`adyton receipt/1…` is a label before signed bytes, and no command."""


def in_blocks(page: Path) -> Iterator[list[str]]:
    """The words of each `adyton` command in a page's shell blocks, whether a test runs the block or not."""
    for block in shell_blocks(page):
        for command in block.commands:
            yield from adyton_commands(command)


def in_text(page: Path) -> Iterator[list[str]]:
    """The words of each inline `adyton …` of a page, as if more could follow: text names options without values."""
    for match in _INLINE.finditer(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        for words in adyton_commands(" ".join(match[1].split())):
            if words[0] not in NO_COMMANDS and not _LABEL.match(words[0]):
                yield [*words, "…"]


def adyton_commands(line: str) -> Iterator[list[str]]:
    """The words behind `adyton` in each command of a line of a shell."""
    if "adyton" not in line:
        return
    lexer = shlex.shlex(_SUBSTITUTED.sub(" ; ", _JOINED.sub("", line)), posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*_words(lexer), ";"]:
        if word in _BETWEEN:
            if words and Path(words[0]).name == "adyton":
                yield words[1:]
            words = []
        elif words or (word not in _BEFORE and not _ASSIGNMENT.fullmatch(word)):
            words.append(word)


def _words(lexer: shlex.shlex) -> Iterator[str]:
    """The words of a line up to a quotation mark that is never closed, without what leads into files."""
    skip = False
    try:
        for word in lexer:
            redirection = _REDIRECTION.match(word)
            if not skip and redirection is None:
                yield word
            skip = redirection is not None and redirection.end() == len(word)
    except ValueError:  # text of several lines, whose first words are enough
        return


def wrong(words: list[str]) -> str | None:
    """What no parser of Adyton takes in these words; None where all is right."""
    if not words or words[0] in _OWN_OPTIONS or words[0] in ELLIPSIS or words[0] == "VERB":
        return None
    if words[0] == "help":
        return wrong(words[1:])
    if words[0] not in VERBS:
        return f"no verb {words[0]!r}"
    command, rest, name = _command(words[0]), words[1:], words[0]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] in ELLIPSIS:
            return None
        if rest[0] not in command.commands:
            return f"no verb {rest[0]!r} of {name}"
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    if any(word in ELLIPSIS for word in rest):
        rest = [word for word in rest if word.startswith("--")]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        unknown = [word for word in rest if word.partition("=")[0] not in known | {"--help", "--"}]
        return f"{name} has no {', '.join(unknown)}" if unknown else None
    try:
        command.make_parser(command.context_class(command, info_name=name)).parse_args(list(rest))
    except Exception as error:  # click's errors, whichever click Typer brings
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return f"{name}: {message()}"
    return None


@cache
def _command(verb: str) -> Any:
    module = VERBS[verb][0]
    if verb == "run":  # parsed by hand in the common case
        module = "adyton.cli.run_options"
    return typer.main.get_command(importlib.import_module(module).app)
