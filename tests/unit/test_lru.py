"""A bounded map: what was not used for longest goes first."""

from __future__ import annotations

from adyton.lru import Recent


def test_value_that_was_not_used_for_longest_makes_room() -> None:
    """Getting and putting count as use, looking does not."""
    kept: Recent[str, int] = Recent(2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    assert kept.peek("b") == 2
    kept.put("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)


def test_value_put_again_is_the_newest() -> None:
    """A key that is there keeps one value, which moves to the end."""
    kept: Recent[str, int] = Recent(2)
    assert kept.newest() is None
    kept.put("a", 1)
    kept.put("b", 2)
    kept.put("a", 3)
    assert kept.newest() == 3
    kept.put("c", 4)
    assert len(kept) == 2
    assert (kept.peek("a"), kept.peek("b")) == (3, None)
