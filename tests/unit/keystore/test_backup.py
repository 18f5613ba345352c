"""Backup and restore: everything comes back, on another machine too; nothing opens it but its key."""

from __future__ import annotations

import io
import json
import resource
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adyton.errors import Error, FileFormatError, IntegrityError, StorageFailed, StoreError, UsageError
from adyton.keystore import schema
from adyton.keystore.backup import create as create_module
from adyton.keystore.backup.archive import pack
from adyton.keystore.backup.create import back_up
from adyton.keystore.backup.key import key_from_passphrase
from adyton.keystore.backup.restore import read_header, restore
from adyton.keystore.backup.shares import Share, join_key, parse_share, split_key
from adyton.keystore.backup.tables import copy_tables
from adyton.keystore.clock import now_ms
from adyton.keystore.home import Home
from adyton.keystore.home_lock import alone
from adyton.keystore.master_rotation import rotate_master_file
from adyton.values import Key128
from tests.support.owner_world import World

PASSPHRASE = b"correct horse battery"


def whole(home: Home) -> None:
    """What `adyton restore` verifies before it puts a home in place."""
    store = home.open_store()
    store.verify_audit()
    home.check_not_older(store)
    store.close()


def contents(home: Home) -> dict[str, object]:
    """Everything that a store says of itself."""
    store = home.open_store()
    try:
        with store.read() as view:
            keys = view.keys()
            measurements = [item.approval.measurement for item in view.approvals()]
            return {
                "keys": [(key, view.reveal(key.name)[1]) for key in keys],
                "approvals": view.approvals(),
                "history": view.history(),
                "audit": list(view.entries()),
                "candidates": view.candidates(),
                "usage": [view.usage(item.id, "", 1) for item in view.approvals()],
                "manifests": [view.behind(item) for item in measurements if item],
            }
    finally:
        store.close()


def files_of(home: Home) -> dict[str, bytes]:
    """The files of a home that are the same in a backup."""
    other = ("store.db", "store.db-wal", "store.db-shm", "checkpoint.json")
    return {path.name: path.read_bytes() for path in home.path.glob("*.*") if path.name not in other}


def test_restore_on_another_machine_brings_everything_back(world: World, tmp_path: Path) -> None:
    """Keys, policies with their history, audit record, certificates and configuration, from one file."""
    world.approve(world.program())
    (world.home.collateral_path / "note.json").write_text("{}")
    backup = tmp_path / "backup"
    assert back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test") == []
    before = contents(world.home)
    files = files_of(world.home)
    made = restore(backup, tmp_path / "other" / "home", passphrase=lambda: PASSPHRASE, verify=whole)
    assert contents(made) == before
    assert files_of(made) == files
    assert (made.path / "collateral" / "note.json").read_text() == "{}"
    assert (made.path / "master.key").stat().st_mode & 0o777 == 0o600
    assert "backup" in world.kinds()


def test_backup_while_serving_restores(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written while a backup is made belongs to the next one, and does not make this one seem too old."""
    service = world.service()

    def copy(engine: sa.Engine, path: Path) -> None:
        copy_tables(engine, path)
        with world.store.write() as change:
            change.record("note", "", {"number": 1}, now_ms())
        world.home.keep_checkpoint(service.checkpoint())

    monkeypatch.setattr(create_module, "copy_tables", copy)
    world.home.keep_checkpoint(service.checkpoint())
    back_up(world.home, world.store, tmp_path / "backup", passphrase=PASSPHRASE, split=None, actor="test")
    service.close()
    made = restore(tmp_path / "backup", tmp_path / "new", passphrase=lambda: PASSPHRASE, verify=whole)
    kept = made.kept_checkpoint()
    assert kept is not None
    with world.store.read() as view:
        assert kept.hash == view.hash_of(kept.seq)
        assert view.head().seq == kept.seq + 1


def test_restore_of_an_older_store_than_the_backups_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    """The checkpoint in a backup is that of its own store: another store's tables do not pass beside it."""
    with world.store.engine.connect() as connection:
        older = dict(connection.execute(sa.select(schema.chain)).mappings().one())
    back_up(world.home, world.store, tmp_path / "backup", passphrase=PASSPHRASE, split=None, actor="test")

    def cut(home: Home) -> None:
        store = home.open_store()
        with store.engine.connect() as connection, connection.begin():
            connection.execute(sa.delete(schema.audit).where(schema.audit.c.seq > older["seq"]))
            connection.execute(sa.update(schema.chain).values(**older))
        try:
            home.check_not_older(store)
        finally:
            store.close()

    with pytest.raises(StoreError, match="older"):
        restore(tmp_path / "backup", tmp_path / "new", passphrase=lambda: PASSPHRASE, verify=cut)


def test_backup_and_rotation_of_the_master_key_exclude_each_other(world: World, tmp_path: Path) -> None:
    """A backup made across a rotation would hold tables under one master key and the file of another."""
    with alone(world.home.path, "test"):
        with pytest.raises(StoreError, match="to itself"):
            back_up(world.home, world.store, tmp_path / "b", passphrase=PASSPHRASE, split=None, actor="test")
        before = (world.home.path / "master.key").read_bytes()
        with pytest.raises(StoreError, match="to itself"):
            rotate_master_file(world.home, world.store, actor="test")
    assert (world.home.path / "master.key").read_bytes() == before
    assert not (tmp_path / "b").exists()
    rotate_master_file(world.home, world.store, actor="test")
    back_up(world.home, world.store, tmp_path / "b", passphrase=PASSPHRASE, split=None, actor="test")
    restore(tmp_path / "b", tmp_path / "new", passphrase=lambda: PASSPHRASE, verify=whole)


def test_backup_says_nothing_of_its_content(world: World, tmp_path: Path) -> None:
    """Neither keys nor names stand in the sealed file."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    raw = backup.read_bytes()
    for needle in (bytes(range(16)), (world.home.path / "master.key").read_bytes(), b"weights", b"PRIVATE KEY"):
        assert needle not in raw
    assert backup.stat().st_mode & 0o777 == 0o600
    assert set(read_header(backup)) == {"adyton_backup", "id", "store", "at_ms", "salt"}


@pytest.mark.parametrize(("needed", "total"), [(2, 2), (2, 3), (3, 5)])
def test_split_any_enough_shares_restore_and_fewer_do_not(
    world: World, tmp_path: Path, needed: int, total: int
) -> None:
    """Any N of M shares open the backup; N-1 do not, nor do shares of another one."""
    backup = tmp_path / "backup"
    shares = back_up(world.home, world.store, backup, passphrase=None, split=(needed, total), actor="test")
    assert [parse_share(share.to_text()) for share in shares] == shares
    keys = {join_key(chosen).reveal() for chosen in combinations(shares, needed)}
    assert len(keys) == 1
    for number, chosen in enumerate(list(combinations(shares, needed))[:2]):
        made = restore(backup, tmp_path / f"home{number}", passphrase=None, shares=chosen, verify=whole)
        assert contents(made)["keys"] == contents(world.home)["keys"]
    few = shares[: needed - 1]
    for bad in (few, [*few, few[0]], [*few, replace(shares[-1], backup="other")]):
        with pytest.raises(UsageError):
            restore(backup, tmp_path / "never", passphrase=None, shares=bad, verify=whole)
    wrong = [*few, replace(shares[-1], raw=bytes(16))]
    with pytest.raises(IntegrityError, match=f"share {total} is not the one that was made"):
        restore(backup, tmp_path / "never", passphrase=None, shares=wrong, verify=whole)
    assert not (tmp_path / "never").exists()


def test_share_mistyped_is_noticed(world: World) -> None:
    """One wrong character in a share is found before anything is tried with it."""
    share = split_key(Key128.generate(), "abc", 2, 3)[0]
    text = share.to_text()
    for at, character in enumerate(text):
        if character in "0123456789abcdef":
            other = text[:at] + ("0" if character != "0" else "1") + text[at + 1 :]
            try:
                parsed = parse_share(other)
            except UsageError:
                continue
            pytest.fail(f"{parsed} from a mistyped share")


@pytest.mark.parametrize(
    "numbers", [(0, 2, 3), (-1, 2, 3), (4, 2, 3), (1 << 130, 2, 3), (1, 1, 3), (1, 0, 3), (1, 4, 3), (1, 2, 256)]
)
def test_share_with_numbers_that_no_share_has_is_refused(numbers: tuple[int, int, int]) -> None:
    """Share 0 would be the key itself, of the forger's choice, whatever the others say; number -1 never ends."""
    number, needed, total = numbers
    forged = Share("ab" * 6, number, needed, total, b"E" * 16)
    with pytest.raises(UsageError, match="not a recovery share"):
        parse_share(forged.to_text())


def rewritten(backup: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same backup with another header, as whoever stores it can make it."""
    with tarfile.open(backup) as before, tarfile.open(target, "w") as after:
        header = before.extractfile("header.json")
        content = before.extractfile("content")
        assert header is not None
        assert content is not None
        document = json.loads(header.read())
        change(document)
        for name, raw in (("header.json", json.dumps(document).encode()), ("content", content.read())):
            information = tarfile.TarInfo(name)
            information.size = len(raw)
            after.addfile(information, io.BytesIO(raw))
    return target


def test_forged_share_is_named_whatever_else_is_forged(world: World, tmp_path: Path) -> None:
    """Who brings another share than he was given is found out, also with another commitment or the older form."""
    backup = tmp_path / "backup"
    first, second, third = back_up(world.home, world.store, backup, passphrase=None, split=(2, 3), actor="test")
    other = split_key(Key128.generate(), second.backup, 2, 3)[1]
    for forged in (
        replace(second, raw=bytes(16)),
        replace(second, raw=third.raw),
        replace(second, raw=bytes(16), commitment="ab" * 32),
        replace(second, commitment=""),
        replace(second, raw=bytes(16), commitment=""),
        other,
    ):
        assert parse_share(forged.to_text()) == forged
        for shares in ([first, forged], [forged, first]):
            with pytest.raises(IntegrityError, match=r"share 2|made together") as caught:
                restore(backup, tmp_path / "never", passphrase=None, shares=shares, verify=whole)
            assert "2" in f"{caught.value.message} {caught.value.seen}"

    others = split_key(Key128.generate(), second.backup, 2, 3)

    def forgers_list(header: dict[str, Any]) -> None:
        header["shares"]["sha256"] = [share.sha256() for share in others]

    made = rewritten(backup, tmp_path / "forgers", forgers_list)
    with pytest.raises(IntegrityError, match="made together") as caught:  # which of the two, nobody can say here
        restore(made, tmp_path / "never", passphrase=None, shares=[first, others[1]], verify=whole)
    assert "or the header" in str(caught.value.remedy)

    def another_list(header: dict[str, Any]) -> None:
        header["shares"]["sha256"][1] = other.sha256()

    def no_list(header: dict[str, Any]) -> None:
        del header["shares"]["sha256"]

    def nonsense(header: dict[str, Any]) -> None:
        header["shares"]["sha256"] = [5, "x"]

    for number, change in enumerate((another_list, no_list, nonsense)):
        made = rewritten(backup, tmp_path / f"b{number}", change)
        with pytest.raises(IntegrityError, match="made together"):
            restore(made, tmp_path / "never", passphrase=None, shares=[first, third], verify=whole)
    assert not (tmp_path / "never").exists()


def test_shares_of_the_older_form_still_open_their_backup(world: World, tmp_path: Path) -> None:
    """A backup whose header lists no hashes, and its shares without a commitment."""
    backup = tmp_path / "backup"
    shares = back_up(world.home, world.store, backup, passphrase=None, split=(2, 2), actor="test")
    older = [parse_share(replace(share, commitment="").to_text()) for share in shares]
    made = rewritten(backup, tmp_path / "older", lambda header: header["shares"].pop("sha256"))
    restore(made, tmp_path / "home", passphrase=None, shares=older, verify=whole)


def test_small_backup_that_claims_to_be_large_writes_nothing(world: World, tmp_path: Path) -> None:
    """The key is checked where the backup lies: a file with gaps for gigabytes is refused before a byte is written."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    with tarfile.open(backup) as outer:
        file = outer.extractfile("header.json")
        assert file is not None
        header = file.read()
    size = 3 << 30
    sparse = tarfile.TarInfo("content").tobuf(tarfile.GNU_FORMAT)
    entry = bytearray(sparse)
    entry[156:157] = b"S"
    entry[124:136] = b"%011o\0" % 512
    entry[386:410] = b"%011o\0" % (size - 512) + b"%011o\0" % 512
    entry[483:495] = b"%011o\0" % size
    entry[148:156] = b"        "
    entry[148:156] = b"%06o\0 " % sum(entry[:512])
    small = tmp_path / "small"
    with tarfile.open(small, "w") as outer:
        information = tarfile.TarInfo("header.json")
        information.size = len(header)
        outer.addfile(information, io.BytesIO(header))
    raw = small.read_bytes().rstrip(b"\0")
    raw += bytes(-len(raw) % 512) + bytes(entry) + b"x" * 512 + bytes(1024)
    small.write_bytes(raw)
    with tarfile.open(small) as outer:
        assert outer.getmember("content").size == size  # what a reader that fills the gaps would write
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(FileFormatError, match="no whole backup"):
            restore(small, tmp_path / "never", passphrase=lambda: PASSPHRASE, verify=whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", ["store.db/x", "collateral"])
def test_folder_where_a_file_should_be_is_refused_in_words(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What a backup holds is below home/, and the names may be any: the home that comes of it is refused."""

    def also(archive: tarfile.TarFile, member: str, path: Path, seen: set[str]) -> None:
        pack(archive, member, path, seen)
        if member == "store.sqlite":
            pack(archive, f"home/{name}", world.home.ca_path, seen)

    monkeypatch.setattr(create_module, "pack", also)
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=b"long enough", split=None, actor="test")
    with pytest.raises(StorageFailed, match="put together"):
        restore(backup, tmp_path / "never", passphrase=lambda: b"long enough", verify=whole)
    assert not list(tmp_path.glob(".restore-*"))


def test_wrong_key_writes_nothing(world: World, tmp_path: Path) -> None:
    """Of a backup that does not open, nothing is copied beside it."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(IntegrityError, match="does not open"):
            restore(backup, tmp_path / "never", passphrase=lambda: b"another one", verify=whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("salt", ["x", "abc", 5])
def test_damaged_salt_is_refused_in_words(world: World, tmp_path: Path, salt: object) -> None:
    """A header that was altered is no traceback."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    made = rewritten(backup, tmp_path / "other", lambda header: header.update(salt=salt))
    with pytest.raises(FileFormatError, match="no backup"):
        restore(made, tmp_path / "never", passphrase=lambda: PASSPHRASE, verify=whole)


@pytest.mark.parametrize("numbers", [(1, 3), (4, 3), (0, 0), (2, 256)])
def test_split_impossible_numbers_are_refused(numbers: tuple[int, int]) -> None:
    """N of M must be possible, and one share alone must never open it."""
    with pytest.raises(UsageError):
        split_key(Key128.generate(), "abc", *numbers)


def test_restore_wrong_passphrase_or_altered_backup_leaves_nothing(world: World, tmp_path: Path) -> None:
    """A wrong passphrase, any altered part, or a cut file: refused, and no home is made."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    target = tmp_path / "never"
    with pytest.raises(IntegrityError):
        restore(backup, target, passphrase=lambda: b"wrong wrong wrong", verify=whole)
    raw = backup.read_bytes()
    for at in (5000, len(raw) // 2, len(raw) // 3):
        backup.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(Error):
            restore(backup, target, passphrase=lambda: PASSPHRASE, verify=whole)
    for size in (0, 100, 3000, len(raw) // 2):
        backup.write_bytes(raw[:size])
        with pytest.raises(Error):
            restore(backup, target, passphrase=lambda: PASSPHRASE, verify=whole)
    backup.write_bytes(b"no backup at all" * 1000)
    with pytest.raises(FileFormatError):
        restore(backup, target, passphrase=lambda: PASSPHRASE, verify=whole)
    assert not target.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".restore")]


def test_restore_over_an_existing_home_is_refused(world: World, tmp_path: Path) -> None:
    """Nothing is ever restored over something."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")
    with pytest.raises(UsageError, match="not empty"):
        restore(backup, world.home.path, passphrase=lambda: PASSPHRASE, verify=whole)
    with pytest.raises(StorageFailed, match="exists already"):
        back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")


def test_restore_that_does_not_verify_leaves_nothing(world: World, tmp_path: Path) -> None:
    """A home that fails its check is not put in place."""
    backup = tmp_path / "backup"
    back_up(world.home, world.store, backup, passphrase=PASSPHRASE, split=None, actor="test")

    def refuse(_home: Home) -> None:
        raise UsageError("no")

    with pytest.raises(UsageError):
        restore(backup, tmp_path / "never", passphrase=lambda: PASSPHRASE, verify=refuse)
    assert not (tmp_path / "never").exists()


def test_passphrase_too_short_is_refused() -> None:
    """A passphrase that anybody could try out is not taken."""
    with pytest.raises(UsageError, match="too short"):
        key_from_passphrase(b"short", b"s" * 16)


def test_backup_has_nothing_run_or_opened_that_nobody_named(world: World, tmp_path: Path) -> None:
    """A stranger makes a backup whole, under a passphrase that he tells: its command and its file are his choice."""
    ran = tmp_path / "ran"
    (world.home.path / "master.key").rename(tmp_path / "master.key")
    command = ("sh", "-c", f"touch {ran}; cat {tmp_path / 'master.key'}")
    config = world.home.config
    theirs = replace(config, master="command", master_command=command)
    (world.home.path / "config.toml").write_text(theirs.to_toml())
    back_up(world.home, world.store, tmp_path / "backup", passphrase=PASSPHRASE, split=None, actor="test")
    ran.unlink(missing_ok=True)
    for named in ((), ("cat", str(tmp_path / "master.key"))):
        with pytest.raises(UsageError, match="only where you name it") as caught:
            restore(
                tmp_path / "backup", tmp_path / "new", passphrase=lambda: PASSPHRASE, master_command=named, verify=whole
            )
        assert "--master-command" in str(caught.value.remedy)
    assert not ran.exists()
    assert not (tmp_path / "new").exists()
    restore(tmp_path / "backup", tmp_path / "new", passphrase=lambda: PASSPHRASE, master_command=command, verify=whole)
    assert ran.exists()

    other = replace(config, store_url=f"sqlite:///{tmp_path / 'elsewhere.db'}")
    (world.home.path / "config.toml").write_text(other.to_toml())
    (tmp_path / "master.key").rename(world.home.path / "master.key")
    back_up(world.home, world.store, tmp_path / "second", passphrase=PASSPHRASE, split=None, actor="test")
    with pytest.raises(UsageError, match="names a file"):
        restore(tmp_path / "second", tmp_path / "newer", passphrase=lambda: PASSPHRASE, verify=whole)
    assert not (tmp_path / "elsewhere.db").exists()
