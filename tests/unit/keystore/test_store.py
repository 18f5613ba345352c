"""The store: keys at rest, policies with history, limits, the audit record, and what tampering does to each."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adyton.attest.guest import MUST_COVER, SNPGuest
from adyton.capped_read import read_private_file
from adyton.errors import AuditError, OutOfOrder, StorageFailed, StoreError, UnknownKey, UsageError, VersionMismatch
from adyton.keystore import schema
from adyton.keystore.approval import APPROVED, PENDING, REVOKED, Approval
from adyton.keystore.audit import Checkpoint, Head, entry_hash, sign_checkpoint, verify_checkpoint
from adyton.keystore.clock import now_ms
from adyton.keystore.home import (
    Config,
    Home,
    ask_passphrase,
    audit_private_key,
    audit_public_key,
    init_home,
    load_key,
    renew_server_certificate,
    rotate_master_file,
)
from adyton.keystore.reader import KEY, SECRET
from adyton.keystore.store import Store
from adyton.keystore.transaction import Transaction
from adyton.keystore.wrapping import WrappingKey, master_from_command, master_from_passphrase
from adyton.sim.machine import simulated_guest
from adyton.values import Key128, Measurement
from tests.support.owner_world import World, make_world, now, signer_pem

M = Measurement(b"m" * 32)


# --- keys --------------------------------------------------------------------------------------------------------


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


def raw_sql(world: World, statement: str, *values: object) -> None:
    """Change the database behind Adyton's back."""
    with sqlite3.connect(world.home.path / "store.db") as connection:
        connection.execute(statement, values)
    connection.close()


def test_key_rows_swapped_in_the_database_do_not_open(world: World) -> None:
    """A wrapped key that was copied over another name opens to nothing."""
    with world.store.write() as change:
        change.add_key("photo", b"p" * 16, KEY, actor="test")
    raw_sql(world, "UPDATE keys SET wrapped = (SELECT wrapped FROM keys WHERE name = 'photo') WHERE name = 'weights'")
    with pytest.raises(StoreError, match="does not open"), world.store.read() as view:
        view.load_key("weights")


def test_store_opened_with_another_master_key_is_refused(world: World) -> None:
    """Another master key is noticed at once, not at the first release."""
    with pytest.raises(StoreError, match="does not open"):
        Store.open(world.home.store_url(), WrappingKey.generate())


def test_rotate_data_key_and_master_key_keeps_every_key(world: World) -> None:
    """Both rotations change how keys are kept, and no key."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        assert change.rotate_data_key(actor="test") == 2
    old = (world.home.path / "master.key").read_bytes()
    rotate_master_file(world.home, world.store)
    assert (world.home.path / "master.key").read_bytes() != old
    reopened = world.home.open_store()
    with reopened.read() as view:
        assert view.load_key("weights").reveal() == bytes(range(16))
        assert view.approval(approval).state == APPROVED
    reopened.close()
    with pytest.raises(StoreError):
        Store.open(world.home.store_url(), WrappingKey(old))


# --- policies ----------------------------------------------------------------------------------------------------


def test_change_approval_keeps_every_revision(world: World) -> None:
    """Who changed what and when is kept, and the record says so too."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        before = change.approval(approval).approval
        change.change_approval(approval, actor="bob", approval=before.changed(max_runs=5))
        change.change_approval(approval, actor="carol", state=REVOKED)
    with world.store.read() as view:
        history = view.history(approval)
        assert view.approval(approval).state == REVOKED
    assert [(entry["revision"], entry["actor"], entry["state"]) for entry in history] == [
        (1, "test", APPROVED),
        (2, "bob", APPROVED),
        (3, "carol", REVOKED),
    ]
    assert "max_runs" not in history[0]["policy"]
    assert history[1]["policy"]["max_runs"] == 5
    assert world.kinds().count("policy") == 3


def test_change_approval_revoked_stays_revoked(world: World) -> None:
    """What was taken back is not quietly given again."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        change.change_approval(approval, actor="test", state=REVOKED)
    for state in (APPROVED, PENDING):
        with pytest.raises(UsageError, match="revoked"), world.store.write() as change:
            change.change_approval(approval, actor="test", state=state)


def test_add_approval_for_a_key_that_does_not_exist_is_refused(world: World) -> None:
    """A misspelt key is noticed when it is approved."""
    with pytest.raises(UnknownKey), world.store.write() as change:
        change.add_approval(world.approval(M, key="nosuch"), actor="test")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE approvals SET state = 'approved'",
        "UPDATE approvals SET document = replace(document, '6d6d', '6e6e')",
        "UPDATE approvals SET revision = 9",
        "UPDATE approvals SET mac = zeroblob(32)",
    ],
)
def test_approval_changed_behind_adytons_back_releases_nothing(world: World, statement: str) -> None:
    """An approval is authenticated: a changed row is refused, not believed."""
    with world.store.write() as change:
        change.add_approval(world.approval(M), actor="test", state=PENDING)
    raw_sql(world, statement)
    with pytest.raises(StoreError, match="something other than Adyton"), world.store.read() as view:
        view.approvals("weights")


def test_approval_round_trips_and_refuses_unknown_entries(world: World) -> None:
    """`to_dict` and `from_dict` are each other's inverse, and a misspelt entry is never ignored."""
    approval = world.approval(
        M,
        advisories={"INTEL-SA-00615": None, "INTEL-SA-00001": now().replace(microsecond=0)},
        expires_at=now().replace(microsecond=0),
        max_runs=3,
        max_active=2,
        lease_s=60,
        guests=(Measurement(bytes(48)),),
        guest_images=(
            simulated_guest(),
            SNPGuest(launch_digest=Measurement(b"l" * 48), launch_digest_covers=MUST_COVER),
        ),
        raw_report_data=True,
        not_covered=("the clock",),
        note="because",
        tcb_statuses=("UpToDate", "SWHardeningNeeded"),
        protocols=("adyton", "ra-tls"),
    )
    assert Approval.from_dict(json.loads(json.dumps(approval.to_dict()))) == approval
    wrong: dict[str, Any]
    for wrong in (
        {"max_run": 1},
        {"max_runs": "1"},
        {"max_runs": True},
        {"tees": "sgx"},
        {"advisories": []},
        {"raw_report_data": 1},
        {"guest_images": [{}]},
        {"guest_images": {}},
    ):
        with pytest.raises(UsageError):
            Approval.from_dict({**approval.to_dict(), **wrong})
    with pytest.raises(UsageError, match="missing"):
        Approval.from_dict({"key": "weights"})


@pytest.mark.parametrize(
    "changes",
    [
        {"tees": ()},
        {"tees": ("sim",)},
        {"tees": ("sim:xyz",)},
        {"measurement": None},
        {"mrsigner": M},
        {"tcb_statuses": ()},
        {"protocols": ()},
        {"protocols": ("https",)},
        {"max_runs": -1},
        {"lease_s": 1 << 40},
        {"advisories": {"bad id": None}},
        {"app": "../x"},
    ],
)
def test_approval_that_says_nothing_or_nonsense_is_refused(world: World, changes: dict[str, Any]) -> None:
    """Empty means nobody, so an approval must say what it means."""
    with pytest.raises(UsageError):
        world.approval(*((changes.pop("measurement"),) if "measurement" in changes else (M,)), **changes)


def release(change: Transaction, number: int, approval: str, run: str, until_ms: int) -> None:
    """A release as the key server records it."""
    item = {"approval": approval, "release": f"r-{number}", "renewed": False, "lease_until_ms": until_ms}
    change.record("release", f"g-{number}", {"grant": f"g-{number}", "run": run, "keys": [item]}, 0)


def test_usage_counts_runs_and_leases(world: World) -> None:
    """Runs count once however often they ask; leases end."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        for number, (run, until) in enumerate([("r1", 100), ("r1", 100), ("r2", 300)]):
            release(change, number, approval, run, until)
        inside = change.usage(approval, "r1", 50)
        assert (inside.runs, inside.active) == (2, 2)
        assert inside.own is not None
    with world.store.read() as view:
        later = view.usage(approval, "r1", 200)
        assert (later.runs, later.active, later.own) == (2, 1, None)


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


# --- transactions ------------------------------------------------------------------------------------------------


def test_write_that_raises_changes_nothing(world: World) -> None:
    """Half a change is none."""
    before = world.kinds()

    def half() -> None:
        with world.store.write() as change:
            change.add_key("photo", b"p" * 16, KEY, actor="test")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert world.kinds() == before
    with world.store.read() as view:
        assert not view.has_key("photo")


def test_write_from_many_threads_and_two_stores_keeps_one_chain(world: World) -> None:
    """Whoever writes, the record stays one chain without gaps."""
    other = world.home.open_store()

    def work(store: Store, name: str) -> None:
        for number in range(15):
            with store.write() as change:
                change.record("note", name, {"number": number}, now_ms())

    threads = [threading.Thread(target=work, args=(store, f"t{n}")) for n, store in enumerate([world.store, other] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert world.kinds().count("note") == 60
    world.store.verify_audit()


def test_cached_approvals_are_fresh_after_another_process_changed_them(world: World) -> None:
    """A change made elsewhere counts in the very next transaction."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        assert change.approvals("weights")[0].state == APPROVED
    other = world.home.open_store()
    with other.write() as change:
        change.change_approval(approval, actor="other", state=REVOKED)
    other.close()
    with world.store.write() as change:
        assert change.approvals("weights")[0].state == REVOKED


# --- the audit record --------------------------------------------------------------------------------------------


@pytest.fixture
def record(world: World) -> World:
    """A record of a dozen entries."""
    with world.store.write() as change:
        for number in range(12):
            change.record("note", f"n{number}", {"number": number}, 1000 + number)
    return world


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE audit SET body = body || ' ' WHERE seq = 5", "entry 5 was altered"),
        ("UPDATE audit SET at = at + 1 WHERE seq = 6", "entry 6 was altered"),
        ("UPDATE audit SET kind = 'other' WHERE seq = 7", "entry 7 was altered"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 8", "entry 8 was altered"),
        ("DELETE FROM audit WHERE seq = 4", "entry 4 is missing"),
        ("DELETE FROM audit WHERE seq = 1", "entry 1 is missing"),
        ("UPDATE audit SET seq = 99 WHERE seq = 9", "entry 9 is missing"),
        ("DELETE FROM audit WHERE seq > 10", "does not end where"),
    ],
)
def test_audit_tampering_is_detected(record: World, statement: str, message: str) -> None:
    """Altered, removed and moved entries are found, and named."""
    record.store.verify_audit()
    raw_sql(record, statement)
    with pytest.raises(AuditError, match=message):
        record.store.verify_audit()


def test_audit_cut_tail_shows_against_a_checkpoint(record: World) -> None:
    """A tail that was cut with care, head and its code and all, shows against a checkpoint that somebody else holds."""
    with sqlite3.connect(record.home.path / "store.db") as connection:
        before = connection.execute("SELECT seq, hash, mac FROM chain").fetchone()
    with record.store.write() as change:
        for number in range(3):
            change.record("note", "", {"further": number}, 1)
        head = change.head()
    checkpoint = sign_checkpoint(audit_private_key(record.home), record.store.id, head, now_ms())
    raw_sql(record, "DELETE FROM audit WHERE seq > ?", before[0])
    raw_sql(record, "UPDATE chain SET seq = ?, hash = ?, mac = ?", *before)
    other = record.home.open_store()
    other.verify_audit()
    with pytest.raises(AuditError, match="was cut"):
        other.verify_audit([checkpoint])
    with pytest.raises(StoreError, match="went back"), record.store.write() as change:
        change.record("forged", "", {}, 1)
    with pytest.raises(StoreError, match="went back"), record.store.read():
        pass
    with other.write() as change:
        for _ in range(5):
            change.record("forged", "", {}, 1)
    with pytest.raises(AuditError, match="not the one that the checkpoint"):
        other.verify_audit([checkpoint])
    with pytest.raises(AuditError, match="not the one that the checkpoint"):
        record.store.verify_audit([checkpoint])
    other.close()


def test_record_that_is_whole_but_not_ours_is_refused(record: World) -> None:
    """Hashes can be made anew by anybody; the code of the head cannot."""
    with record.store.read() as view:
        entries = list(view.entries())
    previous = record.store.head().hash
    with sqlite3.connect(record.home.path / "store.db") as connection:
        last, before = entries[-1], entries[-2]
        forged = entry_hash(before.hash, last.seq, last.at_ms, "other", last.body)
        connection.execute("UPDATE audit SET kind = 'other', hash = ? WHERE seq = ?", (forged, last.seq))
        connection.execute("UPDATE chain SET hash = ?", (forged,))
    assert forged != previous
    other = record.home.open_store()
    for store in (record.store, other):
        with pytest.raises(AuditError, match="something other than Adyton"), store.read():
            pass
        with pytest.raises(AuditError, match="something other than Adyton"), store.write():
            pass
        with pytest.raises(AuditError, match="something other than Adyton"):
            store.verify_audit()
    other.close()


def test_checkpoint_round_trips_and_forged_ones_are_refused(record: World) -> None:
    """A checkpoint is believed only with the owner's signature."""
    key, public = audit_private_key(record.home), audit_public_key(record.home)
    checkpoint = sign_checkpoint(key, record.store.id, Head(3, b"h" * 32), 7)
    assert Checkpoint.from_dict(json.loads(json.dumps(checkpoint.to_dict()))) == checkpoint
    verify_checkpoint(checkpoint, public)
    for forged in (
        replace(checkpoint, seq=4),
        replace(checkpoint, hash=bytes(32)),
        replace(checkpoint, at_ms=8),
        replace(checkpoint, store_id=bytes(16)),
    ):
        with pytest.raises(AuditError, match="not signed"):
            verify_checkpoint(forged, public)
    with pytest.raises(AuditError, match="another store"):
        record.store.verify_audit([replace(checkpoint, store_id=bytes(16))])
    for wrong in ({}, {**checkpoint.to_dict(), "seq": "1"}, {**checkpoint.to_dict(), "x": 1}, {"seq": True}):
        with pytest.raises(AuditError, match="not a checkpoint"):
            Checkpoint.from_dict(wrong)


def test_check_not_older_refuses_an_older_copy_of_the_store(record: World) -> None:
    """A database that was put back to an earlier state does not serve: a revocation since would be undone."""
    record.store.close()
    older = (record.home.path / "store.db").read_bytes()
    store = record.home.open_store()
    with store.write() as change:
        change.record("note", "", {}, 1)
        head = change.head()
    record.home.keep_checkpoint(sign_checkpoint(audit_private_key(record.home), store.id, head, now_ms()))
    record.home.check_not_older(store)
    store.close()
    for name in ("store.db-wal", "store.db-shm"):
        (record.home.path / name).unlink(missing_ok=True)
    (record.home.path / "store.db").write_bytes(older)
    store = record.home.open_store()
    with pytest.raises(StoreError, match="older"):
        record.home.check_not_older(store)
    store.close()


# --- the home ----------------------------------------------------------------------------------------------------


def test_init_home_makes_private_files_only_the_owner_reads(world: World) -> None:
    """Everything secret is 0600 in a folder of 0700, and certificates verify under the CA."""
    assert stat.S_IMODE(world.home.path.stat().st_mode) == 0o700
    for name in ("ca.key", "server.key", "audit.key", "signer.pem", "master.key", "store.db"):
        assert stat.S_IMODE((world.home.path / name).stat().st_mode) == 0o600, name
    audit_public_key(world.home)


def test_init_home_twice_is_refused(world: World) -> None:
    """A home is never overwritten."""
    with pytest.raises(UsageError, match="already"):
        init_home(world.home.path, name="mallory", server_names=("x",), signer_pem=signer_pem())


def test_private_file_that_others_can_read_is_refused(world: World) -> None:
    """A key file that is open to others is not used."""
    (world.home.path / "master.key").chmod(0o644)
    with pytest.raises(StoreError, match="open to others"):
        world.home.open_store()


def test_home_missing_parts_say_what_to_do(world: World, tmp_path: Path) -> None:
    """No home, no store, no master key: each says so, and nothing is made anew in silence."""
    with pytest.raises(StorageFailed, match="no owner's home"):
        Home.open(tmp_path / "nowhere")
    world.store.close()
    (world.home.path / "store.db").rename(world.home.path / "moved.db")
    with pytest.raises(StoreError, match="missing"):
        world.home.open_store()
    assert not (world.home.path / "store.db").exists()
    (world.home.path / "store.db").write_bytes(b"")
    with pytest.raises(StoreError, match="no store"):
        world.home.open_store()
    (world.home.path / "store.db").write_bytes(os.urandom(8192))
    with pytest.raises(StoreError):
        world.home.open_store()


def test_store_of_a_newer_adyton_is_refused(world: World) -> None:
    """A schema from the future is not guessed at."""
    raw_sql(world, "UPDATE meta SET value = ? WHERE name = 'schema'", b"99")
    with pytest.raises(VersionMismatch, match="newer"):
        world.home.open_store()


def test_store_of_an_older_schema_is_migrated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration runs once, in one transaction, and the store is of the newer schema after it."""
    done: list[int] = []

    def step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE keys ADD COLUMN remark TEXT")
        done.append(2)

    newer = schema.SCHEMA_VERSION + 1
    monkeypatch.setattr(schema, "SCHEMA_VERSION", newer)
    monkeypatch.setattr(schema, "MIGRATIONS", {newer: step})
    for _ in range(2):
        store = world.home.open_store()
        with store.read() as view:
            assert view.load_key("weights").reveal() == bytes(range(16))
        store.close()
    assert done == [2]


def test_config_unknown_or_ill_typed_entries_are_refused() -> None:
    """A misspelt entry of config.toml is named, never ignored."""
    good = Config("alice", ("adyton-key-server",), limits={"max_active": 3})
    assert Config.parse(good.to_toml()) == good
    for wrong in ("[owner]\nnam = 'x'", "[limits]\nmax_active = 'x'", "[nosuch]\n", "x = 1", "[", "[owner]\nname='a'"):
        with pytest.raises(UsageError):
            Config.parse(wrong)


@pytest.mark.parametrize(
    ("entry", "check"),
    [
        ("[limits]\nmax_active = -1", "limits.max_active"),
        ("[limits]\nrequest_timeout_s = 0", "limits.request_timeout_s"),
        ("[limits]\nmax_connections = 1000001", "limits.max_connections"),
        ("[master]\nkind = 'passphrase'\nsalt = 'no hex'", "master.salt"),
        ("[master]\nkind = 'passphrase'\nsalt = 'abcd'", "master.salt"),
        ("[master]\nkind = 'passphrase'", "master.salt"),
        ("[master]\nkind = 'command'\ncommand = ['cat', 7]", "master.command"),
    ],
)
def test_config_value_that_cannot_be_meant_is_refused(entry: str, check: str) -> None:
    """A bound of nothing, or a salt that is none, is refused by name, with what is expected."""
    names = "[owner]\nname = 'a'\n[server]\nnames = ['x']\n"
    Config.parse(names)
    with pytest.raises(UsageError) as caught:
        Config.parse(f"{names}{entry}\n")
    assert caught.value.check == check
    assert caught.value.expected
    with pytest.raises(UsageError, match=r"server\.names"):
        Config.parse("[owner]\nname = 'a'\n[server]\nnames = [1]\n")


def test_passphrase_that_nobody_can_type_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service has no standard input: it says what to use instead."""
    with Path(os.devnull).open() as nothing, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", nothing)
        with pytest.raises(UsageError, match="no passphrase was given") as caught:
            ask_passphrase(confirm=False)
    assert "file or command" in str(caught.value.remedy)


def test_master_key_from_passphrase_file_and_command(tmp_path: Path) -> None:
    """All three sources open the store they made, and a wrong passphrase does not."""
    names = ("adyton-key-server",)
    home = init_home(
        tmp_path / "a",
        name="a",
        server_names=names,
        master="passphrase",
        signer_pem=signer_pem(),
        passphrase=lambda: b"correct horse",
    )
    assert not (home.path / "master.key").exists()
    Home.open(home.path).open_store(lambda: b"correct horse").close()
    with pytest.raises(StoreError):
        home.open_store(lambda: b"wrong horse!")
    with pytest.raises(UsageError, match="too short"):
        master_from_passphrase(b"short", b"s" * 16)
    command = (sys.executable, "-c", "print('ab' * 32)")
    home = init_home(
        tmp_path / "b", name="b", server_names=names, master="command", master_command=command, signer_pem=signer_pem()
    )
    Home.open(home.path).open_store().close()
    for bad in ("print('xyz')", "raise SystemExit(3)"):
        with pytest.raises(StoreError):
            master_from_command((sys.executable, "-c", bad))
    with pytest.raises(StorageFailed):
        master_from_command(("/nonexistent/command",))


def test_renew_server_certificate_keeps_the_ca(world: World) -> None:
    """A renewed certificate stands under the same CA, so manifests stay as they are."""
    before = (world.home.path / "server.crt").read_bytes(), world.home.ca_path.read_bytes()
    renew_server_certificate(world.home, ())
    assert (world.home.path / "server.crt").read_bytes() != before[0]
    assert world.home.ca_path.read_bytes() == before[1]


def test_read_private_file_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a FIFO or a huge file in a secret's place is refused."""
    with pytest.raises((StoreError, StorageFailed)):
        read_private_file(tmp_path, "secret")
    big = tmp_path / "big"
    big.write_bytes(bytes(20_000))
    big.chmod(0o600)
    with pytest.raises(StoreError, match="longer"):
        read_private_file(big, "secret")


def test_write_killed_at_any_moment_leaves_a_whole_store(tmp_path: Path) -> None:
    """kill -9 in the middle of writing: what was acknowledged is there, and the record is one chain."""
    with make_world(tmp_path) as world:
        home = world.home.path
    code = (
        "import sys\nfrom pathlib import Path\nfrom adyton.keystore.home import Home\n"
        "store = Home.open(Path(sys.argv[1])).open_store()\n"
        "for number in range(100000):\n"
        "    with store.write() as change:\n"
        "        change.record('note', '', {'number': number}, 1)\n"
        "    print(number, flush=True)\n"
    )
    for after in (1, 7, 23):
        process = subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True)
        if process.stdout is None:
            pytest.fail("no pipe")
        last = -1
        for line in process.stdout:
            last = int(line)
            if last >= after:
                process.kill()
                break
        rest = [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
        process.wait()
        acknowledged = max([last, *rest])
        store = Home.open(home).open_store()
        store.verify_audit()
        with store.read() as view:
            numbers = [json.loads(entry.body)["number"] for entry in view.entries(kind="note")]
        store.close()
        assert acknowledged in numbers
