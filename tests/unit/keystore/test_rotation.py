"""Rotating the store's keys: under a server that runs, cut short anywhere, rolled back, and by two at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adyton.atomic_file import rename_private_file, replace_private_file, write_private_file
from adyton.errors import StorageFailed, StoreError, VersionMismatch
from adyton.keystore import master_rotation, schema
from adyton.keystore.home import Home
from adyton.keystore.master_rotation import rotate_master_file
from adyton.keystore.new_home import init_home
from adyton.keystore.store import Store
from adyton.keystore.tables.keys import KEY
from adyton.keystore.transaction import Transaction
from adyton.keystore.wrapping import WrappingKey
from adyton.release.client import obtain_keys
from tests.support.owner_world import World, running, signer_pem

VALUE = bytes(range(16))


def rotate_both(home: Home) -> None:
    """`adyton key rotate-store --master`, in a process of its own."""
    store = home.open_store()
    with store.write() as change:
        change.rotate_data_key(actor="test")
    rotate_master_file(home, store, actor="test")
    store.close()


def reveal(store: Store) -> bytes:
    """The key's value."""
    with store.read() as view:
        return view.load_key("weights").reveal()


def test_rotation_under_a_running_server_keeps_it_releasing(world: World) -> None:
    """A server that was started before the rotation finds the new master key when it needs one."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server:
        for _ in range(3):
            released = obtain_keys(signed, world.enclave(signed), {"": server.adyton})
            assert released.keys["weights"].reveal() == VALUE
            rotate_both(world.home)
    assert world.kinds().count("master-key-rotated") == 3


def test_rotation_between_commit_and_rename_does_not_stop_a_running_server(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment between the two, the server takes the key that is about to take the old one's place."""
    seen: list[bytes] = []

    def look(beside: Path, to: Path) -> None:
        seen.append(reveal(world.store))
        rename_private_file(beside, to)

    monkeypatch.setattr(master_rotation, "rename_private_file", look)
    rotate_both(world.home)
    assert seen == [VALUE]


def test_rotation_with_a_command_reaches_a_running_server(tmp_path: Path) -> None:
    """A master key that a command prints is asked for again where the one in memory does not open any more."""
    printed = tmp_path / "printed"
    printed.write_text("ab" * 32)
    home = init_home(
        tmp_path / "home",
        name="a",
        server_names=("x",),
        master="command",
        master_command=("cat", str(printed)),
        signer_pem=signer_pem(),
    )
    store, other = home.open_store(), home.open_store()
    new = WrappingKey(bytes.fromhex("cd" * 32))
    with other.write() as change:
        change.add_key("weights", VALUE, KEY, actor="test")
        change.rotate_data_key(actor="test")
        change.rewrap(new, actor="test")
    with pytest.raises(StoreError, match="does not open"):
        reveal(store)
    printed.write_text("cd" * 32)
    assert reveal(store) == VALUE
    store.close()
    other.close()


class _PowerCut(BaseException):
    """Nothing after this happens."""


def _cut(*_args: object, **_kwargs: object) -> None:
    raise _PowerCut


def _cut_after(function: Callable[..., object]) -> Callable[..., None]:
    def run(*args: object, **kwargs: object) -> None:
        function(*args, **kwargs)
        raise _PowerCut

    return run


@pytest.mark.parametrize(
    ("where", "what", "cut", "rotated"),
    [
        pytest.param(master_rotation, "write_private_file", _cut, False, id="before-the-new-key-is-written"),
        pytest.param(
            master_rotation, "write_private_file", _cut_after(write_private_file), False, id="once-it-is-written"
        ),
        pytest.param(Transaction, "rewrap", _cut_after(Transaction.rewrap), False, id="before-the-commit"),
        pytest.param(master_rotation, "rename_private_file", _cut, True, id="between-commit-and-rename"),
        pytest.param(
            master_rotation, "rename_private_file", _cut_after(rename_private_file), True, id="after-the-rename"
        ),
    ],
)
def test_rotation_cut_short_anywhere_the_store_opens(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    what: str,
    cut: Callable[..., None],
    rotated: bool,
) -> None:
    """One of the two files opens the store, whichever step was the last; and it can be rotated again."""
    before = (world.home.path / "master.key").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(where, what, cut)
        with pytest.raises(_PowerCut):
            rotate_master_file(world.home, world.store, actor="test")
    for _ in range(2):
        store = Home.open(world.home.path).open_store()
        assert reveal(store) == VALUE
        store.close()
    assert ((world.home.path / "master.key").read_bytes() != before) is rotated
    assert ("master-key-rotated" in world.kinds()) is rotated
    rotate_both(world.home)
    store = Home.open(world.home.path).open_store()
    assert reveal(store) == VALUE
    store.close()
    assert not (world.home.path / "master.key.new").exists()


def test_rotation_by_one_who_opened_the_store_before_another_cut_short_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key beside is the only one that opens the store: a second rotation does not throw it away."""
    late = world.home.open_store()
    with monkeypatch.context() as patched:
        patched.setattr(master_rotation, "rename_private_file", _cut)
        with pytest.raises(_PowerCut):
            rotate_master_file(world.home, world.store, actor="test")
    with pytest.raises(StoreError, match="not the key that opens the store"):
        rotate_master_file(world.home, late, actor="test")
    late.close()
    store = world.home.open_store()
    assert reveal(store) == VALUE
    store.close()


def test_rotate_data_key_by_one_whose_master_key_is_the_old_one_uses_the_new_one(world: World) -> None:
    """Nothing is ever wrapped under a master key that does not open the store any more."""
    late = world.home.open_store()
    rotate_master_file(world.home, world.store, actor="test")
    with late.write() as change:
        change.rotate_data_key(actor="test")
    late.close()
    store = Home.open(world.home.path).open_store()
    assert reveal(store) == VALUE
    store.close()


def test_data_key_of_a_rolled_back_rotation_is_forgotten(world: World) -> None:
    """A version number that was taken back is used again, for another key: nothing is wrapped under the dead one."""

    def rotate_and_fail() -> None:
        with world.store.write() as change:
            change.rotate_data_key(actor="test")
            assert change.reveal("weights")[1] == VALUE
            change.add_key("within", b"i" * 16, KEY, actor="test")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        rotate_and_fail()
    with world.store.write() as change:
        assert change.rotate_data_key(actor="test") == 2
    with world.store.write() as change:
        change.add_key("after", b"a" * 16, KEY, actor="test")
    fresh = world.home.open_store()
    with fresh.read() as view:
        assert view.load_key("after").reveal() == b"a" * 16
        assert view.load_key("weights").reveal() == VALUE
    fresh.close()


def test_actor_of_any_length_is_recorded_cut(world: World) -> None:
    """Who did it is a note in the record, and never too long for it."""
    with world.store.write() as change:
        change.add_key("other", b"k" * 16, KEY, actor="a" * 1000)
    with world.store.read() as view:
        (entry,) = view.entries(subject="other")
    assert "a" * 128 in entry.body
    assert "a" * 129 not in entry.body


# --- files that outlast a power cut ------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_private_file, replace_private_file])
def test_private_file_its_folder_is_synced_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    """The file's bytes reach the disk before its name, and its name before anybody relies on it."""
    done: list[str] = []
    sync, link, replace = os.fsync, os.link, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def linked(*args: Any, **kwargs: Any) -> None:
        done.append("name")
        link(*args, **kwargs)

    def replaced(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "replace", replaced)
    write(tmp_path / "secret", b"s")
    assert done[0] == "file"
    assert done[-2:] == ["name", "folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_rename_that_fails_says_where_the_file_is(tmp_path: Path) -> None:
    """A key that could not take its place is not lost."""
    write_private_file(tmp_path / "a", b"a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageFailed) as caught:
        rename_private_file(tmp_path / "a", tmp_path / "folder")
    assert str(tmp_path / "a") in str(caught.value.remedy)


# --- opening and migrating ---------------------------------------------------------------------------------------


def test_open_that_is_refused_leaves_no_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not open, or cannot be made, gives its connections back."""
    disposed: list[object] = []
    dispose = sa.Engine.dispose

    def note(self: sa.Engine, close: bool = True) -> None:
        disposed.append(self)
        dispose(self, close)

    monkeypatch.setattr(sa.Engine, "dispose", note)
    with pytest.raises(StoreError):
        Store.open(world.home.store_url(), WrappingKey.generate())
    with pytest.raises(StoreError):
        Store.create(world.home.store_url(), WrappingKey.generate(), actor="test")
    assert len(disposed) == 2


def test_migration_reads_the_version_again_under_the_lock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that open an older store at once migrate it once; a newer one meanwhile is refused."""
    done: list[int] = []
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    monkeypatch.setattr(schema, "MIGRATIONS", {schema.SCHEMA_VERSION: lambda _connection: done.append(1)})
    migrate = Store._migrate

    def behind(version: int) -> Callable[[Store], None]:
        def run(self: Store) -> None:
            with self.engine.connect() as connection, connection.begin():
                written = {"value": str(version).encode()}
                connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "schema").values(**written))
            migrate(self)

        return run

    monkeypatch.setattr(Store, "_migrate", behind(schema.SCHEMA_VERSION))
    world.home.open_store().close()
    assert done == []
    with world.store.engine.connect() as connection, connection.begin():
        old = {"value": str(schema.SCHEMA_VERSION - 1).encode()}
        connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "schema").values(**old))
    monkeypatch.setattr(Store, "_migrate", behind(schema.SCHEMA_VERSION + 1))
    with pytest.raises(VersionMismatch, match="newer"):
        world.home.open_store()
    assert done == []
