"""What a run was granted, as its user keeps it: with it a record whose tail was cut does not pass as whole."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import AuditError, StorageFailed, TargetExists
from tests.cli.chain import Chain, Place

pytestmark = pytest.mark.mount


def copy_of_the_home(owner: Place, name: str) -> Path:
    """The owner's home as it is now, restored beside; without the checkpoint that her server keeps."""
    passphrase = owner.folder / "passphrase"
    if not passphrase.exists():
        passphrase.touch(0o600)
        passphrase.write_text("correct horse battery\n")
    for words in (
        ("backup", "-o", f"{name}.backup", "--passphrase-file", "passphrase"),
        ("restore", f"{name}.backup", "--home", name, "--passphrase-file", "passphrase"),
    ):
        ended = owner.adyton(*words)
        assert ended.status == 0, ended.err
    (owner.folder / name / "checkpoint.json").unlink()
    return owner.folder / name


def head_of(home: Path) -> dict[str, Any]:
    """The row that says where the record ends, with the code that only who has the store's key can make."""
    connection = sqlite3.connect(home / "store.db")
    connection.row_factory = sqlite3.Row
    try:
        return dict(connection.execute("SELECT * FROM chain").fetchone())
    finally:
        connection.close()


def cut(home: Path, head: dict[str, Any]) -> None:
    """Remove the tail of the record behind an earlier head, and put that head back."""
    connection = sqlite3.connect(home / "store.db")
    with connection:
        connection.execute("DELETE FROM audit WHERE seq > ?", (head["seq"],))
        connection.execute(f"UPDATE chain SET {', '.join(f'{name} = ?' for name in head)}", tuple(head.values()))
    connection.close()


def test_run_keeps_the_checkpoint_that_shows_a_cut_record(chain: Chain, cloud: Place, owner: Place) -> None:
    """A run writes its grants; the owner's record passes with them, and not once the release was cut from it."""
    earlier = head_of(Path(owner.environment["ADYTON_HOME"]))
    words = cloud.words_to_run("exit", "3")
    ended = cloud.adyton("run", "--grants", "grants.json", "--json", *words[1:])
    assert ended.status == 3
    written: dict[str, Any] = json.loads((cloud.folder / "grants.json").read_text())
    assert json.loads(ended.out)["grants"] == written["grants"]
    (grant,) = written["grants"]
    kept = cloud.folder / "grants.json"

    home = copy_of_the_home(owner, "copy")
    verify = ("audit", "verify", "--home", home)
    whole = owner.adyton(*verify, "--checkpoint", kept, "--json")
    assert whole.status == 0, whole.err
    assert json.loads(whole.out)["checkpoints"] == 1
    report = cloud.folder / "report.json"
    report.write_text(ended.out)
    assert owner.adyton(*verify, "--checkpoint", report).status == 0

    cut(home, earlier)
    alone = owner.adyton(*verify)
    assert alone.status == 0, "a tail that was cut leaves a whole chain"
    assert "a cut tail shows only so" in alone.err
    owner.adyton(*verify, "--checkpoint", kept).refused(AuditError.exit_code, "was cut")

    forged = cloud.folder / "forged.json"
    seq = grant["checkpoint"]["seq"]
    forged.write_text(json.dumps({"grants": [{**grant, "checkpoint": {**grant["checkpoint"], "seq": seq - 1}}]}))
    owner.adyton(*verify, "--checkpoint", forged).refused(AuditError.exit_code, "not signed by this owner")


def test_verify_with_what_holds_no_checkpoint_of_this_store_is_refused(chain: Chain, owner: Place) -> None:
    """A file that says nothing about this record is not taken for a record that passed."""
    point = {"store_id": "00" * 16, "seq": 1, "hash": "00" * 32, "at_ms": 1, "signature": "00" * 64}
    for document, words in (
        ({"grants": [{"owner": "alice", "grant": "g-1", "checkpoint": point}]}, "another store"),
        (point, "another store"),
        ({"grants": [{"owner": "alice", "grant": "", "names": ["k"]}]}, "no checkpoint"),
        ({"grants": []}, "no checkpoint"),
        ({"grants": 5}, "no checkpoint"),
        ([point], "no checkpoint"),
        ({"grants": [{"checkpoint": {**point, "seq": -1}}]}, "not a checkpoint"),
    ):
        (owner.folder / "kept.json").write_text(json.dumps(document))
        ended = owner.adyton("audit", "verify", "--checkpoint", "kept.json")
        assert (ended.status, words in ended.err) == (AuditError.exit_code, True), (document, ended.err)


def test_run_whose_grants_cannot_be_written_does_not_start(cloud: Place) -> None:
    """A mistyped path is noticed before anything runs."""
    words = cloud.words_to_run("exit", "0")
    ended = cloud.adyton("run", "--grants", "no/such/folder/grants.json", *words[1:])
    ended.refused(StorageFailed.exit_code, "grants.json")
    assert cloud.files("encrypted/output") == {}


def test_run_keeps_an_older_grants_file_and_leaves_none_where_it_gets_none(cloud: Place) -> None:
    """What proves a record cut is not written over, and a refused run writes nothing that looks like grants."""
    words = cloud.words_to_run("exit", "0")
    (cloud.folder / "older.json").write_text("older")
    ended = cloud.adyton("run", "--grants", "older.json", *words[1:])
    ended.refused(TargetExists.exit_code, "older.json")
    assert (cloud.folder / "older.json").read_text() == "older"
    nowhere = cloud.words_to_run("exit", "0", server="127.0.0.1:1")
    ended = cloud.adyton("run", "--grants", "new.json", *nowhere[1:])
    assert ended.status != 0
    assert not (cloud.folder / "new.json").exists()
