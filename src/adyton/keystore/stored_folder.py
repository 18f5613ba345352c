"""A pinned folder as the audit record has it: its newest root, and which run may write the next one.

Each change is an entry of the record. So nobody who can write to the database brings an older root back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from adyton.errors import UsageError
from adyton.roots.folder_id import is_folder_id
from adyton.roots.root import Root
from adyton.typed_document import TypedDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

PINNED: Final = "pinned"
BEGUN: Final = "begun"
COMMITTED: Final = "committed"
ENDED: Final = "ended"

Event: TypeAlias = Literal["pinned", "begun", "committed", "ended"]
"""Its owner pinned the folder; a run began to write; it committed; it ended with this root."""
_EVENTS: Final = (PINNED, BEGUN, COMMITTED, ENDED)
MAX_FENCE: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """The newest state of one folder."""

    folder: str
    root: Root
    fence: int
    """How many writers there were. Only the last one may commit."""
    holder: str
    """The grant of the run that may write the next root; empty where none does."""

    def to_dict(self) -> dict[str, Any]:
        """The members that an entry of the record and the stored facts share."""
        return {
            "folder": self.folder,
            "root": self.root.to_dict(),
            "fence": self.fence,
            "holder": self.holder,
        }

    def may_follow(self, before: StoredFolder) -> bool:
        """Whether this can be the state after another one: neither number goes back."""
        return self.root.sequence >= before.root.sequence and self.fence >= before.fence

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> StoredFolder:
        """The folder in an entry of the record. Raises UsageError where it says something else."""
        document = TypedDocument({name: body.get(name) for name in ("folder", "root", "fence", "holder")}, _malformed)
        folder = document.text("folder")
        if not is_folder_id(folder) or body.get("event", PINNED) not in _EVENTS:
            raise _malformed("folder", "the id of a folder, and what happened to it", "something else")
        root = Root.parse(document.inner("root"))
        return cls(folder, root, document.number("fence", MAX_FENCE), document.text("holder", 64))


def _malformed(member: str, expected: str, seen: str) -> UsageError:
    return UsageError("the root of a folder is malformed", check=member, expected=expected, seen=seen)
