"""How a guest says that its run ended: the last file of its outputs. Pure.

The guest may be anybody's. What it says is data: an exit code, and the names of files that its program removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adyton.errors import Error, MalformedManifest
from adyton.image.plain_archive import MAX_MEMBERS, plain_name
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object

FORMAT: Final = "adyton-output/1"
MAX_BYTES: Final = 32 << 20
_MAX_EXIT_CODE: Final = 255


@dataclass(frozen=True, slots=True)
class GuestResult:
    """The end of a run in a guest."""

    exit_code: int
    """That of `adyton run` in the guest: the program's own, or that of Adyton's error."""
    removed: tuple[str, ...]
    """Names of files that the guest was given, and that are gone."""


def parse_result(raw: bytes) -> GuestResult:
    """Parse the document. Raises MalformedManifest. Registers in it are for diagnosis, and are left out."""
    top = TypedDocument(
        parse_json_object(raw, what="result of the guest", refuse=MalformedManifest, limit_bytes=MAX_BYTES), _wrong
    )
    top.only({"format", "exit_code", "pcrs", "removed"})
    if top["format"] != FORMAT:
        raise _wrong("format", FORMAT, str(top["format"]))
    return GuestResult(
        top.number("exit_code", _MAX_EXIT_CODE),
        tuple(plain_name(name.encode("utf-8", "surrogatepass")) for name in top.texts("removed", MAX_MEMBERS)),
    )


def _wrong(place: str, expected: str, seen: str) -> Error:
    return MalformedManifest(
        f"the result of the guest is wrong: {place}: expected {expected}, seen {seen[:160]}",
        check=f"result of the guest: {place}",
        expected=expected,
        seen=seen[:160],
        remedy="run the approved image: another guest wrote this",
    )
