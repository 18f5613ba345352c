"""Receipts over the whole chain: a run makes one, and others verify it, connect it, and find what does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import BadChain, MalformedQuote, Mismatch, TargetExists, UsageError
from tests.cli.chain import KEY, Chain, Ended, Place

pytestmark = pytest.mark.mount

MAX_BYTES = 20 * 1024


def run(cloud: Place, receipt: str, *more: str, action: tuple[str, ...] = ("exit", "0")) -> Ended:
    """A run with a receipt."""
    words = cloud.words_to_run(*action)
    return cloud.adyton("run", "--receipt", receipt, *more, *words[1:])


def verified(owner: Place, receipt: Path, *words: str | Path) -> dict[str, Any]:
    """The document of a verification that must hold."""
    ended = owner.adyton("receipt", "verify", receipt, *words, "--json")
    assert ended.status == 0, ended.out + ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_run_makes_a_receipt_that_holds(chain: Chain, cloud: Place, owner: Place) -> None:
    """It names program, inputs and outputs; output and input files compare, and another file is refused."""
    ended = run(cloud, "receipt.json", "--json")
    assert ended.status == 0, ended.err
    assert "receipt" not in json.loads(ended.out)
    receipt = cloud.folder / "receipt.json"
    output, source = cloud.folder / "encrypted/output/result.txt", cloud.folder / "encrypted/input"
    found = verified(owner, receipt, "--output", output, "--input", source)
    assert found["verdict"] == "accepted"
    assert found["measurement"] == json.loads(ended.out)["measurement"]
    assert list(found["compared"]["outputs"].values()) == ["encrypted/output/result.txt"]
    assert list(found["compared"]["inputs"].values()) == ["encrypted/input/notes.txt"]
    assert found["owners"][0]["verdict"]["submods"]["sim"]["ear.status"] in ("affirming", "warning")
    assert found["made_after"] <= found["made_before"]
    text = owner.adyton("receipt", "verify", receipt)
    assert text.status == 0
    assert "SIMULATED" in text.out
    assert "every step holds" in text.out
    shown = owner.adyton("receipt", "show", receipt)
    assert shown.status == 0
    assert "NOTHING of this is verified" in shown.out
    document = json.loads(receipt.read_text())
    beside = {name: document["adyton"].pop(name) for name in ("requests", "end", "collateral")}
    assert beside
    assert len(json.dumps(document, separators=(",", ":"))) < MAX_BYTES
    owner.adyton("receipt", "verify", receipt, "--output", source / "notes.txt").refused(
        Mismatch.exit_code, "not an output of this run"
    )
    owner.adyton("receipt", "verify", receipt, "--input", output).refused(
        Mismatch.exit_code, "not an input of this run"
    )
    plain = owner.folder / "result.txt"
    assert owner.adyton("decrypt", output, "-o", plain, "--key", KEY).status == 0
    owner.adyton("receipt", "verify", receipt, "--output", plain).refused(UsageError.exit_code, "key of the output")
    found = verified(owner, receipt, "--output", plain, "--key", KEY)
    assert list(found["compared"]["outputs"].values()) == ["encrypted/output/result.txt"]
    plain.write_text("another")
    owner.adyton("receipt", "verify", receipt, "--output", plain, "--key", KEY).refused(Mismatch.exit_code)


def test_receipts_that_cannot_be_are_refused_before_anything_runs(chain: Chain, cloud: Place, owner: Place) -> None:
    """For a run under SGX, over ra-tls, or into a file that is there."""
    (cloud.folder / "older.json").write_text("older")
    run(cloud, "older.json").refused(TargetExists.exit_code, "older.json")
    words = cloud.words_to_run("exit", "0")
    under_gramine = [word if word != "sim" else "gramine-direct" for word in words[1:]]
    for more, said in ((under_gramine, "gramine-direct"), (["--provisioning", "ra-tls", *words[1:]], "ra-tls")):
        ended = cloud.adyton("run", "--receipt", "new.json", *more)
        ended.refused(UsageError.exit_code, "this run can have no receipt", said)
        assert not (cloud.folder / "new.json").exists()
    cloud.adyton("run", "--receipt-plaintext", *words[1:]).refused(UsageError.exit_code, "--receipt")


def test_altered_receipts_are_refused_on_the_command_line(chain: Chain, cloud: Place, owner: Place) -> None:
    """Exit codes as for evidence."""
    assert run(cloud, "receipt.json").status == 0
    receipt = cloud.folder / "receipt.json"
    document = json.loads(receipt.read_text())
    run_signature, *others = document["signatures"]
    changes: tuple[tuple[dict[str, Any], int], ...] = (
        ({"signatures": [{**run_signature, "sig": "AAAA"}, *others]}, BadChain.exit_code),
        ({"adyton": {**document["adyton"], "counter_signatures": []}}, Mismatch.exit_code),
        ({"extra": 1}, MalformedQuote.exit_code),
    )
    for change, status in changes:
        changed = {**document, **change}
        altered = cloud.folder / "altered.json"
        altered.write_text(json.dumps(changed, sort_keys=True, separators=(",", ":")) + "\n")
        owner.adyton("receipt", "verify", altered).refused(status)
    alone = json.loads(json.dumps(document))
    alone["adyton"].update(counter_signatures=[], collateral={})
    alone["signatures"] = alone["signatures"][:1]
    (cloud.folder / "alone.json").write_text(json.dumps(alone, sort_keys=True, separators=(",", ":")) + "\n")
    owner.adyton("receipt", "verify", cloud.folder / "alone.json").refused(Mismatch.exit_code, "not counter-signed")
    ended = owner.adyton("receipt", "verify", cloud.folder / "alone.json", "--without-counter-signature")
    assert ended.status == 0, ended.err
    assert "NOBODY but the host" in ended.out
    cloud.adyton("receipt", "verify", receipt).refused(BadChain.exit_code)


def test_runs_chain_and_a_missing_predecessor_is_noticed(chain: Chain, cloud: Place, owner: Place) -> None:
    """The second run takes what the first made. Without the first receipt the folder is refused."""
    folder = cloud.folder / "receipts"
    folder.mkdir()
    assert run(cloud, "receipts/first.json").status == 0
    ended = run(cloud, "receipts/second.json", "--after", "receipts/first.json")
    assert ended.status == 0, ended.err
    found = owner.adyton("receipt", "graph", folder, "--json")
    assert found.status == 0, found.err
    document = json.loads(found.out)
    assert len(document["receipts"]) == 2
    first = verified(owner, folder / "first.json")
    second = verified(owner, folder / "second.json")
    assert second["predecessors"] == [first["statement"]]
    assert [edge["path"] for edge in document["edges"]] == ["encrypted/output/result.txt"]
    (folder / "first.json").unlink()
    owner.adyton("receipt", "graph", folder).refused(Mismatch.exit_code, "predecessor is missing")
    (folder / "third.json").write_text("{}")
    owner.adyton("receipt", "graph", folder).refused(MalformedQuote.exit_code)
