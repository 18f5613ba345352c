"""Completion of verbs and options in bash. A verb is imported only when its own options are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SCRIPT: Final = """\
# Completes `adyton` in bash. Read it in by:  source <(adyton --show-completion)
_adyton() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _adyton adyton
"""
"""Where nothing is found bash goes on with file names."""


def candidates(words: Sequence[str], verbs: Mapping[str, tuple[str, str]]) -> list[str]:
    """What the last word can become, by those before it: verbs, their own verbs, options."""
    *before, begun = words or [""]
    return sorted(name for name in dict.fromkeys(_names(before, verbs)) if name.startswith(begun))


def _names(before: Sequence[str], verbs: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    if not before:
        return (*verbs, "--help", "--version", "--show-completion")
    if before[0] not in verbs:
        return ()
    from typer.main import get_command

    module = "adyton.cli.run_options" if before[0] == "run" else verbs[before[0]][0]
    command: Any = get_command(importlib.import_module(module).app)
    for word in before[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    options = [name for option in command.params for name in (*option.opts, *option.secondary_opts)]
    return (*getattr(command, "commands", ()), *(name for name in options if name.startswith("-")), "--help")
