"""Challenges are answered once."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from adyton.errors import OutOfOrder
from adyton.keystore import schema
from adyton.keystore.clock import now_ms
from tests.support.owner_world import World


def test_use_nonce_twice_is_refused_within_and_across_transactions(world: World) -> None:
    """A challenge is used up once, whoever comes second."""
    with world.store.write() as change:
        change.use_nonce(b"n" * 32, now_ms() + 1000, now_ms())
        with pytest.raises(OutOfOrder):
            change.use_nonce(b"n" * 32, now_ms() + 1000, now_ms())
    with pytest.raises(OutOfOrder), world.store.write() as change:
        change.use_nonce(b"n" * 32, now_ms() + 1000, now_ms())


def test_use_nonce_old_ones_are_forgotten_in_time(world: World) -> None:
    """Used challenges do not pile up once they would have expired anyway."""
    with world.store.write() as change:
        for number in range(50):
            change.use_nonce(bytes([number + 1]) * 32, 1000, 500)
    with world.store.write() as change:
        change.use_nonce(b"\x01" * 31 + b"\x00", now_ms() + 1000, now_ms())
    with world.store.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.nonces)).scalar_one() == 1
