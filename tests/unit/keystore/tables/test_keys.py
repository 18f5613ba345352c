"""Keys at rest: found by name, bound to name and version, wrapped anew, and nowhere in clear."""

from __future__ import annotations

import pytest

from adyton.errors import StoreError, UnknownKey, UsageError
from adyton.keystore.approval import APPROVED
from adyton.keystore.home import load_key
from adyton.keystore.master_rotation import rotate_master_file
from adyton.keystore.store import Store
from adyton.keystore.tables.keys import KEY, SECRET
from adyton.keystore.wrapping import WrappingKey
from adyton.values import Key128
from tests.support.database import raw_sql
from tests.support.owner_world import World


def test_load_key_by_name_is_the_key_that_was_stored(world: World) -> None:
    """What `adyton encrypt --key NAME` uses."""
    world.store.close()
    assert load_key(world.home.path, "weights") == Key128(bytes(range(16)))


def test_load_key_unknown_name_lists_the_known_ones(world: World) -> None:
    """A misspelt name is told what there is."""
    with pytest.raises(UnknownKey) as caught, world.store.read() as view:
        view.load_key("wieghts")
    assert caught.value.expected == "one of: weights"


def test_key_is_nowhere_in_the_home_in_clear(world: World) -> None:
    """Neither the database nor anything beside it holds the key's bytes."""
    needle = bytes(range(16))
    for path in world.home.path.rglob("*"):
        if path.is_file():
            assert needle not in path.read_bytes(), path
            assert needle.hex().encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "ü", "a" * 65, "a\0b", "a\n"])
def test_add_key_name_that_could_mislead_is_refused(world: World, name: str) -> None:
    """Names are short, printable and safe in paths."""
    with pytest.raises(UsageError), world.store.write() as change:
        change.add_key(name, b"k" * 16, KEY, actor="test")


def test_add_key_twice_is_refused_and_rotation_keeps_old_versions(world: World) -> None:
    """A name is taken once; a new version is released from then on, the old one stays readable to the owner."""
    with pytest.raises(UsageError, match="exists already"), world.store.write() as change:
        change.add_key("weights", b"k" * 16, KEY, actor="test")
    with world.store.write() as change:
        assert change.add_key("weights", b"k" * 16, KEY, actor="test", new_version=True).version == 2
    with world.store.read() as view:
        assert view.load_key("weights").reveal() == b"k" * 16
        assert view.load_key("weights", version=1).reveal() == bytes(range(16))
        with pytest.raises(UnknownKey):
            view.load_key("weights", version=3)


@pytest.mark.parametrize(("value", "kind"), [(b"k" * 15, KEY), (b"", SECRET), (b"x" * 65537, SECRET)])
def test_add_key_of_a_wrong_size_is_refused(world: World, value: bytes, kind: str) -> None:
    """Keys have 16 bytes, secrets at most 64 KiB and at least one byte."""
    with pytest.raises(UsageError), world.store.write() as change:
        change.add_key("other", value, kind, actor="test")


def test_load_key_of_a_secret_is_refused(world: World) -> None:
    """A secret is not mistaken for a key of files."""
    with world.store.write() as change:
        change.add_key("token", b"s" * 16, SECRET, actor="test")
    with pytest.raises(UnknownKey, match="secret"), world.store.read() as view:
        view.load_key("token")


def test_key_rows_swapped_in_the_database_do_not_open(world: World) -> None:
    """A wrapped key that was copied over another name opens to nothing."""
    with world.store.write() as change:
        change.add_key("photo", b"p" * 16, KEY, actor="test")
    raw_sql(world, "UPDATE keys SET wrapped = (SELECT wrapped FROM keys WHERE name = 'photo') WHERE name = 'weights'")
    with pytest.raises(StoreError, match="does not open"), world.store.read() as view:
        view.load_key("weights")


def test_rotate_data_key_and_master_key_keeps_every_key(world: World) -> None:
    """Both rotations change how keys are kept, and no key."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        assert change.rotate_data_key(actor="test") == 2
    old = (world.home.path / "master.key").read_bytes()
    rotate_master_file(world.home, world.store, actor="test")
    assert (world.home.path / "master.key").read_bytes() != old
    reopened = world.home.open_store()
    with reopened.read() as view:
        assert view.load_key("weights").reveal() == bytes(range(16))
        assert view.approval(approval).state == APPROVED
    reopened.close()
    with pytest.raises(StoreError):
        Store.open(world.home.store_url(), WrappingKey(old))
