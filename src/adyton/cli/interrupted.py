"""What an interrupted verb left, and how to go on: for Ctrl-C."""

from __future__ import annotations

from typing import Final

_WHOLE_FILES: Final = (
    "what stands in the target is whole, and no part of an unfinished file is left",
    "say the same again: a folder continues after the files that are done",
)

LEFT: Final[dict[str, tuple[str, str]]] = {
    "encrypt": _WHOLE_FILES,
    "decrypt": _WHOLE_FILES,
    "rekey": _WHOLE_FILES,
    "new": (
        "what the program itself wrote stays; the template is there only if it was finished",
        "say the same again",
    ),
    "build": ("manifest and signature are each whole, or as they were", "say the same again"),
    "protect": (
        "what the finished steps above made stays: identity, key, template, encrypted files",
        "say the same again, with --force before SCRIPT where it says that something exists already",
    ),
    "collateral": ("documents that were verified and kept stay", "say the same again for the others"),
    "inspect": ("nothing was changed", "say the same again"),
    "verify": ("nothing was changed", "say the same again"),
}
"""Verb -> (what is left, how to go on), where there is more to say than that it was interrupted."""


def words(verb: str) -> str:
    """What to say of this verb, a line for each fact."""
    lines = ["adyton: interrupted"]
    if verb in LEFT:
        left, remedy = LEFT[verb]
        lines += [f"  left     {left}", f"  remedy   {remedy}"]
    return "\n".join(lines)
