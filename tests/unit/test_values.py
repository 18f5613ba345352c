"""Values that cross rooms."""

from __future__ import annotations

import pytest

from adyton.values import Key128


def test_equal_keys_have_no_hash_that_could_differ() -> None:
    """A key is equal by its bytes, and cannot stand in a set, where equal keys would be two."""
    assert Key128(bytes(16)) == Key128(bytes(16))
    assert Key128(bytes(16)) != Key128(b"\1" * 16)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Key128(bytes(16)))
