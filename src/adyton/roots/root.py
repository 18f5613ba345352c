"""The root of a pinned folder at one moment: what a key server keeps, and what comes back in a grant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.roots.entry import MAX_ENTRIES

if TYPE_CHECKING:
    from adyton.typed_document import TypedDocument

MAX_SEQUENCE: Final = 2**53 - 1
MAX_TIME_S: Final = 2**40
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_WRITER: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
OWNER: Final = "owner"
"""The writer where no run wrote."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder at one moment. `head` names its whole history, `state` what is in it."""

    sequence: int
    """How many commits there were. The first root of a folder has 1."""
    head: bytes
    """32 bytes: the hash over every change until then."""
    state: bytes
    """32 bytes: `MerkleTree` over all entries."""
    entries: int
    """How many files and folders."""
    at_s: int
    """When it was made, by its writer's clock, in seconds since 1970."""
    writer: str
    """The grant of the run that wrote it, or `owner`."""

    def to_dict(self) -> dict[str, Any]:
        """As it travels: texts and whole numbers."""
        return {
            "sequence": self.sequence,
            "head": self.head.hex(),
            "state": self.state.hex(),
            "entries": self.entries,
            "at_s": self.at_s,
            "writer": self.writer,
        }

    @classmethod
    def parse(cls, document: TypedDocument) -> Root:
        """The root in a document of exactly these members. Raises what the document raises."""
        document.only({"sequence", "head", "state", "entries", "at_s", "writer"})
        sequence = document.number("sequence", MAX_SEQUENCE)
        if sequence < 1:
            raise document.wrong("sequence", f"a whole number from 1 to {MAX_SEQUENCE}", str(sequence))
        return cls(
            sequence=sequence,
            head=parse_hash(document, "head"),
            state=parse_hash(document, "state"),
            entries=document.number("entries", MAX_ENTRIES),
            at_s=document.number("at_s", MAX_TIME_S),
            writer=_writer(document),
        )

    def is_same(self, other: Root) -> bool:
        """Whether both are one moment of one history."""
        return (self.sequence, self.head) == (other.sequence, other.head)


def parse_hash(document: TypedDocument, name: str) -> bytes:
    """A member of 32 bytes in lower-case hex."""
    text = document.text(name, 64)
    if _HASH.fullmatch(text) is None:
        raise document.wrong(name, "64 digits of lower-case hex", "something else")
    return bytes.fromhex(text)


def is_writer(text: str) -> bool:
    """Whether a text names a writer: a grant, or `owner`."""
    return _WRITER.fullmatch(text) is not None


def _writer(document: TypedDocument) -> str:
    text = document.text("writer", 64)
    if not is_writer(text):
        raise document.wrong("writer", "a grant, or `owner`", "something else")
    return text
