"""What the owner is shown is what the record says: candidates, manifests, evidence, entries."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from adyton.collateral.store import CollateralStore
from adyton.errors import AuditError, Denied
from adyton.keyserver.replay import replay
from adyton.keystore import schema
from adyton.keystore.audit import canonical
from adyton.keystore.audit_facts import AWAITED, DENIAL, WAITS, waiting
from adyton.keystore.prune import missing
from adyton.release.client import obtain_keys
from adyton.server.dashboard.serve import PASSWORD_FILE, DashboardThread
from adyton.values import Measurement
from tests.faults.database.writer import Writer, is_named, list_approvals, opened, release, verify
from tests.support.owner_world import RUNTIME_PARTS, World, make_world, running

NOT_READ = ("created_at", "added_at", "changed_at")
"""Columns that nothing reads: the record says when it was."""

HARMLESS = Measurement(b"h" * 32)


@pytest.fixture
def dashboard(world: World) -> Iterator[httpx.Client]:
    """The owner, logged in."""
    thread = DashboardThread(world.home, world.store, CollateralStore(world.home.collateral_path), "127.0.0.1", 0)
    context = ssl.create_default_context(cadata=world.ca_pem)
    with httpx.Client(base_url=f"https://127.0.0.1:{thread.address[1]}", verify=context) as client:
        password = (world.home.path / PASSWORD_FILE).read_text().strip()
        assert client.post("/login", data={"password": password}).status_code == 303
        yield client
    thread.stop()


def refuses(dashboard: httpx.Client, path: str, *words: str) -> None:
    """A page that says why it shows nothing."""
    answer = dashboard.get(path)
    assert answer.status_code == 400
    for word in words:
        assert word in answer.text


def parts() -> dict[str, str]:
    """Adyton's own runtime, as a program shows it."""
    return {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}


def test_candidate_put_into_the_record(world: World, writer: Writer, dashboard: httpx.Client) -> None:
    """An entry that says that a program waits must have been written by Adyton."""
    last = max(writer.rows(schema.audit), key=lambda row: row["seq"])
    body = canonical({"denial": "d-x", WAITS: waiting(HARMLESS, world.tee, "weights")})
    entry = {**last, "seq": last["seq"] + 1, "kind": DENIAL, "subject": "d-x", "body": body, "hash": b"h" * 32}
    writer.run(sa.insert(schema.audit).values(**entry))
    assert str(HARMLESS) not in dashboard.get("/programs").text  # it lies beyond the end of the record
    writer.run(sa.update(schema.chain).values(seq=entry["seq"], hash=entry["hash"]))
    refuses(dashboard, "/programs", "something other than Adyton")
    with opened(world) as store:
        is_named(lambda: list_approvals(store), "something other than Adyton")
    is_named(lambda: verify(world))


def test_harmless_manifest_for_a_program_that_waits(world: World, writer: Writer, dashboard: httpx.Client) -> None:
    """The text that is shown for a measurement gives it; the database cannot have another one approved by it."""
    world.approve(world.program(argument="other.py"))
    signed, harmless = world.program(argument="evil.py"), world.program(argument="harmless.py")
    with running(world) as server, pytest.raises(Denied):
        obtain_keys(signed, world.enclave(signed), {"": server.adyton}, runtime_parts=parts)
    path = f"/candidates/{signed.measurement}/weights"
    where = schema.manifests.c.measurement == signed.measurement.raw
    true = {"manifest": signed.manifest_bytes, "runtime_parts": canonical(parts())}
    if not [row for row in writer.rows(schema.manifests) if bytes(row["measurement"]) == signed.measurement.raw]:
        writer.run(sa.insert(schema.manifests).values(measurement=signed.measurement.raw, added_at=1, **true))
    assert "evil.py" in dashboard.get(path).text
    token = dashboard.get(path).text.partition('name="csrf" value="')[2].partition('"')[0]
    fields = {"measurement": signed.measurement.hex(), "tee": world.tee, "key": "weights", "app": "x", "version": "1"}
    for values in (
        {"manifest": harmless.manifest_bytes},
        {"runtime_parts": canonical({**parts(), "adyton": "00" * 32})},
        {"runtime_parts": "[]"},
        {"runtime_parts": "[" * 100_000},
        {"runtime_parts": canonical({"adyton": "zz"})},
    ):
        writer.run(sa.update(schema.manifests).where(where).values(**{**true, **values}))
        refuses(dashboard, path, "another program", signed.measurement.hex())
        accepted = dashboard.post("/accept", data={**fields, "csrf": token})
        assert accepted.status_code == 400
        with opened(world) as store:
            is_named(store.verify_rest, signed.measurement.hex())
        is_named(lambda: verify(world), "another program")
    with world.store.read() as view:
        assert [item.approval.version for item in view.approvals()] == ["v1"]


@pytest.mark.parametrize("name", ["evidence", "collateral"])
def test_evidence_of_a_decision_swapped(world: World, writer: Writer, name: str) -> None:
    """Evidence and collateral have the hash by which the entry names them, or are not shown."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
    with world.store.read() as view:
        (entry,) = view.newest_entries(1, kinds=("release",))
        assert replay(view, entry) is not None
    writer.run(sa.update(schema.artifacts).where(schema.artifacts.c.kind == name).values(data=b"{}"))
    with opened(world) as store:

        def again() -> None:
            with store.read() as view:
                replay(view, entry)

        def export() -> None:
            with store.read() as view:
                list(view.artifacts())

        for work in (again, export, store.verify_rest):
            is_named(work, "SHA-256", hashlib.sha256(b"{}").hexdigest())
    is_named(lambda: verify(world), "SHA-256")
    writer.run(sa.delete(schema.artifacts).where(schema.artifacts.c.kind == name))
    with opened(world) as store, store.read() as view:
        assert "something else removed it" in missing(view, entry)[name]


@pytest.mark.parametrize("kind", ["../../x", "a/b", ""])
def test_kind_of_evidence_names_no_file_elsewhere(world: World, writer: Writer, kind: str) -> None:
    """`adyton audit export --evidence` writes files named after it."""
    data = b"d"
    row = {"sha256": hashlib.sha256(data).digest(), "kind": kind, "data": data, "at": 1}
    writer.run(sa.insert(schema.artifacts).values(**row))

    def export() -> None:
        with opened(world) as store, store.read() as view:
            list(view.artifacts())

    is_named(export, "kind of evidence")


@pytest.mark.parametrize("far_back", [False, True])
def test_entry_altered_after_it_was_read(world: World, writer: Writer, dashboard: httpx.Client, far_back: bool) -> None:
    """What is shown of the record is verified when it is shown, however long ago the record was read."""
    with world.store.write() as change:
        for number in range(150):
            change.record("note", "", {"said": f"note {number}"}, 1)
    seq = 20 if far_back else 150
    assert dashboard.get(f"/entries/{seq}").status_code == 200
    body = canonical({"said": "something else"})
    writer.run(sa.update(schema.audit).where(schema.audit.c.seq == seq).values(body=body))
    refuses(dashboard, f"/entries/{seq}", f"entry {seq} was altered")
    refuses(dashboard, f"/timeline?before={seq + 1}", f"entry {seq} was altered")
    with opened(world) as store:
        is_named(lambda: list_approvals(store), f"entry {seq} was altered")
    is_named(lambda: verify(world), f"entry {seq} was altered")


def test_entry_filed_under_another_id(world: World, writer: Writer) -> None:
    """An entry cannot be found by its id then; that it was moved is found."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server:
        release(world, server, signed)
    writer.run(sa.update(schema.audit).where(schema.audit.c.kind == "release").values(subject="elsewhere"))
    is_named(lambda: verify(world), "filed under another id")


def test_refusal_of_another_program_filed_under_this_ones_id(world: World, writer: Writer) -> None:
    """The guest image that is approved is that of the refusal itself, not of one that was put in its place."""
    with world.store.write() as change:
        for denial in ("d-1", "d-2"):
            change.record(DENIAL, denial, {"denial": denial}, 1)
    writer.run(sa.update(schema.audit).where(schema.audit.c.subject == "d-1").values(subject="d-2"))

    def find() -> None:
        with opened(world) as store, store.read() as view:
            list(view.entries(kind=DENIAL, subject="d-2"))

    is_named(find, "filed under another id", "d-1")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE chain SET seq = 'x'",
        "UPDATE chain SET hash = 1000000000000",
        "UPDATE chain SET mac = 'text'",
        "UPDATE audit SET body = X'00' WHERE seq = 2",
        "UPDATE audit SET at = 'x' WHERE seq = 2",
        "UPDATE audit SET hash = 'x' WHERE seq = 2",
        "UPDATE approvals SET document = X'00'",
        "UPDATE approvals SET revision = 'one'",
        "UPDATE keys SET wrapped = 'text'",
        "UPDATE keys SET data_key = 'x'",
        "UPDATE manifests SET runtime_parts = X'00'",
        "UPDATE manifests SET manifest = 'text'",
        "UPDATE meta SET value = 'x' WHERE name = 'schema'",
        "UPDATE meta SET value = X'78' WHERE name = 'schema'",
        "UPDATE meta SET value = 5 WHERE name = 'state'",
        "UPDATE meta SET value = X'00' WHERE name = 'id'",
        "INSERT INTO meta VALUES ('facts', X'00')",
        "INSERT INTO artifacts VALUES (X'00', 'evidence', 'text', 1)",
        "INSERT INTO artifacts VALUES (X'00', X'00', X'00', 1)",
        "INSERT INTO chain VALUES (2, 1, X'00', X'00')",
        "UPDATE chain SET seq = -1",
        "UPDATE audit SET at = -1 WHERE seq = 2",
        "UPDATE manifests SET measurement = X'00'",
        "UPDATE approvals SET key = 'other'",
        "INSERT INTO audit SELECT max(seq) + 1, 1, 'x', '', '{}', X'00' FROM audit",
        "INSERT INTO audit VALUES (9223372036854775807, 1, 'x', '', '{}', X'00')",
        "DELETE FROM chain",
        "DELETE FROM meta",
        "DELETE FROM data_keys",
    ],
)
def test_value_of_another_kind_is_a_refusal(tmp_path: Path, change: str) -> None:
    """SQLite takes a text where a number should stand: that is refused in words, and ends no thread."""
    with make_world(tmp_path) as world:
        signed = world.program()
        world.approve(signed)
        with Writer(world.home.store_url()) as writer:
            writer.sql("PRAGMA foreign_keys = OFF", change)
        is_named(lambda: verify(world))


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table.name, column.name)
        for table in schema.metadata.sorted_tables
        for column in table.columns
        if column.name not in NOT_READ and table is not schema.nonces
    ],
)
def test_null_is_a_refusal(tmp_path: Path, table: str, column: str) -> None:
    """A view in a table's place gives NULL where nothing may be: that is refused in words, too."""
    with make_world(tmp_path) as world:
        world.approve(world.program())
        with world.store.write() as change:
            change.keep_artifact("evidence", b"some", 1)
            change.use_nonce(b"n" * 32, 1 << 50, 1)
        names = [item.name for item in schema.metadata.tables[table].columns]
        given = ", ".join(f"NULL AS {name}" if name == column else name for name in names)
        with Writer(world.home.store_url()) as writer:
            writer.sql(
                "PRAGMA legacy_alter_table = ON",
                f"ALTER TABLE {table} RENAME TO behind",
                f"CREATE VIEW {table} AS SELECT {given} FROM behind",
            )
        is_named(lambda: verify(world))


def test_entry_of_another_kind_is_not_given_for_one_that_is_looked_for(tmp_path: Path) -> None:
    """A view that answers now this and now that has an older entry taken for an acknowledgement: it never is."""
    with make_world(tmp_path) as world, Writer(world.home.store_url()) as writer:
        token = world.store.keyring.token("g-x")
        writer.sql(
            "ALTER TABLE audit RENAME TO behind",
            "CREATE VIEW audit AS SELECT * FROM behind"
            " UNION ALL SELECT 1, 1, 'used', 'g-x', '{}', X'00' WHERE random() % 2",
        )
        found = set()
        for _ in range(60):
            with suppress(AuditError), world.store.read() as view:
                found.add(view.grant_state("g-x", token))
        assert found == {AWAITED}


def test_history_of_approvals_is_whole(world: World, writer: Writer) -> None:
    """A change of an approval cannot be hidden from its history by another id."""
    approval = world.approve(world.program())
    writer.run(sa.update(schema.audit).where(schema.audit.c.kind == "policy").values(subject="elsewhere"))
    with opened(world) as store, store.read() as view:
        assert [item["approval"] for item in view.history()] == [approval]


def test_acknowledgement_needs_what_the_enclave_was_given(world: World, writer: Writer) -> None:
    """No row can be put there that lets somebody else acknowledge a grant."""
    service = world.service()
    try:
        assert not service.used("g-x", b"t" * 32)
        token = world.store.keyring.token("g-x")
        assert service.used("g-x", token)
        assert service.used("g-x", token)
    finally:
        service.close()
    assert world.kinds().count("used") == 1
