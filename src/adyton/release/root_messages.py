"""The payloads of `root-intent` and `root-commit`: JSON, at most 4 KiB, of exactly these members.

::

    root-intent   {folder, root}                      ->  {fence}
    root-commit   {folder, fence, before, root, last} ->  {sequence}

`root` is the root of the folder (`roots.root`). `before` is the head of the last root that the key server has taken
from this run, 64 digits of hex. `last` says that the run writes no more. This module is pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.release.wire import malformed, parse_object, to_bytes
from adyton.roots.folder_id import MAX_ID_BYTES, is_folder_id
from adyton.roots.root import Root, parse_hash

if TYPE_CHECKING:
    from adyton.typed_document import TypedDocument

MAX_ROOT_MESSAGE_BYTES: Final = 4096
_MAX_FENCE: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class RootIntent:
    """A run is about to write to a folder, and goes on from this root."""

    folder: str
    root: Root

    def to_bytes(self) -> bytes:
        """As JSON."""
        return to_bytes({"folder": self.folder, "root": self.root.to_dict()})


@dataclass(frozen=True, slots=True)
class RootCommit:
    """A run has written, as the writer with this fencing number."""

    folder: str
    fence: int
    before: bytes
    root: Root
    is_last: bool

    def to_bytes(self) -> bytes:
        """As JSON."""
        members: dict[str, Any] = {"folder": self.folder, "fence": self.fence, "before": self.before.hex()}
        return to_bytes({**members, "root": self.root.to_dict(), "last": self.is_last})


def parse_intent(raw: bytes) -> RootIntent:
    """Parse the payload of `root-intent`. Raises OutOfOrder."""
    document = parse_object(raw, MAX_ROOT_MESSAGE_BYTES)
    document.only({"folder", "root"})
    return RootIntent(_folder(document), Root.parse(document.inner("root")))


def parse_commit(raw: bytes) -> RootCommit:
    """Parse the payload of `root-commit`. Raises OutOfOrder."""
    document = parse_object(raw, MAX_ROOT_MESSAGE_BYTES)
    document.only({"folder", "fence", "before", "root", "last"})
    last = document["last"]
    if not isinstance(last, bool):
        raise document.wrong("last", "true or false")
    return RootCommit(
        folder=_folder(document),
        fence=parse_fence(document),
        before=parse_hash(document, "before"),
        root=Root.parse(document.inner("root")),
        is_last=last,
    )


def parse_fence(document: TypedDocument) -> int:
    """The fencing number in the answer to `root-intent`, or in a commit."""
    return document.number("fence", _MAX_FENCE)


def _folder(document: TypedDocument) -> str:
    folder = document.text("folder", MAX_ID_BYTES)
    if not is_folder_id(folder):
        raise malformed("folder", "the id of a pinned folder", "something else")
    return folder
