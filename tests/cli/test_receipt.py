"""Receipts over the whole chain: a run makes one, and others verify it, connect it, and find what does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import Mismatch, UsageError
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
