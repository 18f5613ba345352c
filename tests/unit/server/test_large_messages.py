"""Large messages share their memory: what would not fit is refused, and what is answered gives its part back."""

from __future__ import annotations

import pytest

from adyton.errors import Unavailable
from adyton.server import large_messages
from adyton.server.large_messages import FREE_BYTES, MAX_SHARED_BYTES, LargeMessages


def test_small_messages_take_nothing() -> None:
    """However many there are."""
    messages = LargeMessages()
    with messages.holding() as arrived:
        for size in (0, 1, FREE_BYTES):
            arrived(size)
        assert messages.taken_bytes == 0


def test_large_messages_give_back_what_they_took() -> None:
    """Also where their handling fails."""
    messages = LargeMessages()
    with messages.holding() as one, messages.holding() as other:
        one(FREE_BYTES + 10)
        one(FREE_BYTES + 30)
        other(FREE_BYTES + 1)
        assert messages.taken_bytes == 31
    assert messages.taken_bytes == 0
    held = messages.holding()
    held.__enter__()(FREE_BYTES + 10)
    assert held.__exit__(OSError, OSError(), None) is False
    assert messages.taken_bytes == 0


def test_message_beyond_the_share_is_refused_and_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that does not fit; those that did go on."""
    monkeypatch.setattr(large_messages, "MAX_SHARED_BYTES", 100)
    messages = LargeMessages()
    with messages.holding() as one:
        one(FREE_BYTES + 60)
        with pytest.raises(Unavailable, match="overloaded") as refused, messages.holding() as other:
            other(FREE_BYTES + 41)
        assert refused.value.public
        assert messages.taken_bytes == 60
        one(FREE_BYTES + 100)
    assert MAX_SHARED_BYTES >= 64 << 20
