"""Completion of verbs and options in bash, zsh and fish. A verb is imported only when its own options are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BASH: Final = """\
# Completes `adyton` in bash. Read it in by:  source <(adyton --show-completion)
_adyton() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _adyton adyton
"""
_ZSH: Final = """\
# Completes `adyton` in zsh. Read it in, after compinit, by:  source <(adyton --show-completion zsh)
_adyton() {
    local -a found
    found=(${(f)"$(adyton --complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -a found; else _files; fi
}
compdef _adyton adyton
"""
_FISH: Final = """\
# Completes `adyton` in fish. Read it in by:  adyton --show-completion fish | source
function __adyton_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l begun (commandline -ct)
    adyton --complete $words "$begun" 2>/dev/null
end
complete -c adyton -a '(__adyton_complete)'
"""
SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""Shell -> what it reads in. Where nothing is found a shell goes on with file names."""


def script(shell: str = "bash") -> str:
    """What this shell reads in; raises UsageError for a shell that is not known here."""
    if shell not in SCRIPTS:
        raise UsageError("no completion for this shell", check="shell", expected=", ".join(SCRIPTS), seen=shell)
    return SCRIPTS[shell]


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
