"""The hash over a folder's entries: it follows from the entries alone, and every change changes it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from adyton.roots.entry import Entry
from adyton.roots.merkle import EMPTY, MerkleTree

_ENTRIES = st.dictionaries(
    st.text("ab/", min_size=1, max_size=4), st.sampled_from([bytes([n]) * 48 for n in range(3)] + [b""]), max_size=8
)


def entry(root: bytes) -> Entry:
    """An entry with this root."""
    return Entry(root, len(root), 1, "g-1")


def digest(entries: dict[str, bytes]) -> bytes:
    """Of these entries, put in one after the other."""
    return MerkleTree((path, entry(root)) for path, root in entries.items()).digest()


@given(_ENTRIES, _ENTRIES)
def test_digest_is_that_of_the_entries(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """Whatever was there before, and in whatever order it came."""
    tree = MerkleTree((path, entry(root)) for path, root in other.items())
    tree.digest()
    for path in other:
        if path not in one:
            tree.remove(path)
    shuffled = list(one.items())
    random.Random(0).shuffle(shuffled)
    for path, root in shuffled:
        tree.put(path, entry(root))
    assert tree.digest() == digest(one)
    assert (digest(one) == digest(other)) == (one == other)


def test_nothing_has_a_hash_of_its_own() -> None:
    """32 zeros, which no entry has."""
    tree = MerkleTree()
    assert tree.digest() == EMPTY
    tree.put("a", entry(b"1" * 48))
    tree.remove("b")
    tree.remove("a")
    assert tree.digest() == EMPTY
