"""How the command line of a verb is made: help and errors are plain text, also in a pipe, and show what was written."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperGroup


class _Group(TyperGroup):
    """A verb with verbs of its own, whose help shows the whole first sentence of each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the section of commands; Typer's own cuts each line at the width of the terminal."""
        found = [(name, self.commands[name].help or "") for name in self.list_commands(ctx)]
        rows = [(name, " ".join(inspect.cleandoc(text).split("\n\n")[0].split())) for name, text in found]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def verb_app() -> typer.Typer:
    """The Typer application of a verb without verbs of its own.

    Without markup: Rich takes words in square brackets for its own and leaves them out, in help and in errors.
    """
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def group_app(help_text: str) -> typer.Typer:
    """The Typer application of a verb with verbs of its own; without one of them it shows its help."""
    return typer.Typer(
        cls=_Group,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=True,
        help=help_text,
    )
