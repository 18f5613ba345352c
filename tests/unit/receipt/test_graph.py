"""Receipts chain by the roots of files: an edge cannot be claimed, and a predecessor cannot be left out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adyton.receipt.graph import Graph, Node
from adyton.receipt.verify import verify_receipt
from adyton.runtime.receipt_maker import Predecessor
from adyton.workflow.receipt import predecessor
from tests.support.receipt_world import Made, ReceiptWorld, receipt_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiptWorld]:
    """An owner, her key server and her program."""
    with receipt_world(tmp_path_factory.mktemp("graph")) as made:
        yield made


def node(world: ReceiptWorld, name: str, made: Made) -> Node:
    """A verified receipt."""
    found = verify_receipt(made.receipt, roots=world.roots, now=datetime.now(UTC))
    return Node.create(name, found.statement, found.inputs, found.outputs)


def before(world: ReceiptWorld, made: Made, tmp_path: Path) -> Predecessor:
    """A receipt as `adyton run --after` reads it."""
    file = tmp_path / "before.json"
    file.write_bytes(made.raw)
    return predecessor(file)


def test_a_model_that_one_run_made_and_another_took_chains(world: ReceiptWorld, tmp_path: Path) -> None:
    """Three runs in a row, and one that has nothing to do with them."""
    model, tuned = world.protected("model", b"model"), world.protected("tuned", b"tuned")
    first = world.make(made=[model])
    second = world.make(taken=[model], made=[tuned], after=[before(world, first, tmp_path)])
    third = world.make(taken=[tuned], after=[before(world, second, tmp_path)])
    other = world.make(made=[world.protected("apart", b"apart")])
    nodes = [node(world, name, made) for name, made in zip("abcd", (first, second, third, other), strict=True)]
    graph = Graph.create(nodes)
    names = {made.statement.sha256: made.file for made in nodes}
    assert [(names[edge.before], names[edge.after], edge.path) for edge in graph.edges] in (
        [("a", "b", "model"), ("b", "c", "tuned")],
        [("b", "c", "tuned"), ("a", "b", "model")],
    )
    assert not graph.missing
    assert "took model from a" in graph.to_text()
    without = Graph.create(nodes[1:])
    assert [(names[after], names[before]) for after, before in without.missing] == [("b", "a")]
    assert "MISSING" in without.to_text()
    assert without.to_dict()["missing"][0]["predecessor"] == nodes[0].statement.sha256


def test_a_receipt_that_made_nothing_of_the_inputs_is_no_predecessor(world: ReceiptWorld, tmp_path: Path) -> None:
    """The run says so and leaves it out."""
    first = world.make(made=[world.protected("one", b"one")])
    second = world.make(taken=[world.protected("two", b"two")], after=[before(world, first, tmp_path)])
    assert "no predecessor" in second.notes[0]
    assert not node(world, "b", second).statement.predecessors
