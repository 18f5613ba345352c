"""How receipts chain: what one run wrote is what another took, where the roots of protected files are the same.

A root names one state of one file. So an edge cannot be forged without a file that verifies in both runs. A statement
also names its predecessors, so that one that is missing is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adyton.receipt.statement import Input, MountFiles, Output, Statement


@dataclass(frozen=True, slots=True)
class Node:
    """One verified receipt: where it lies, what it states, and the roots that it took and wrote."""

    file: str
    statement: Statement
    inputs: Mapping[str, str]
    """Root -> stored path."""
    outputs: Mapping[str, str]

    @classmethod
    def create(
        cls,
        file: str,
        statement: Statement,
        inputs: Iterable[tuple[MountFiles, tuple[Input, ...]]],
        outputs: Iterable[tuple[MountFiles, tuple[Output, ...]]],
    ) -> Node:
        """From the listings of a receipt."""
        taken = {entry.root: entry.name for _, listed in inputs for entry in listed}
        made = {entry.root: entry.name for _, listed in outputs for entry in listed}
        return cls(file, statement, taken, made)


@dataclass(frozen=True, slots=True)
class Edge:
    """A file that one run wrote and another took. `before` and `after` are SHA-256 values of statements."""

    before: str
    after: str
    root: str
    path: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Receipts, by the SHA-256 of their statements, and what leads from one to the other."""

    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    missing: tuple[tuple[str, str], ...]
    """(statement, predecessor): predecessors that are named and not there, or that made nothing of what it took."""

    @classmethod
    def create(cls, nodes: Iterable[Node]) -> Graph:
        """Connect receipts."""
        by_name = {node.statement.sha256: node for node in nodes}
        makers: dict[str, list[str]] = {}
        for name, node in by_name.items():
            for root in node.outputs:
                makers.setdefault(root, []).append(name)
        edges = tuple(
            Edge(before, after, root, path)
            for after, node in sorted(by_name.items())
            for root, path in sorted(node.inputs.items())
            for before in makers.get(root, ())
            if before != after
        )
        joined = {(edge.after, edge.before) for edge in edges}
        missing = tuple(
            (after, before)
            for after, node in sorted(by_name.items())
            for before in node.statement.predecessors
            if (after, before) not in joined
        )
        return cls(by_name, edges, missing)

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton receipt graph --json`."""
        return {
            "receipts": [
                {"file": node.file, "statement": name, "measurement": node.statement.measurement}
                for name, node in sorted(self.nodes.items())
            ],
            "edges": [
                {"before": edge.before, "after": edge.after, "root": edge.root, "path": edge.path}
                for edge in self.edges
            ],
            "missing": [{"statement": after, "predecessor": before} for after, before in self.missing],
        }

    def to_text(self) -> str:
        """One line for each receipt, with what it took from which other."""
        lines = []
        for name, node in sorted(self.nodes.items(), key=lambda item: item[1].file):
            lines.append(f"{node.file}  {name[:16]}  program {node.statement.measurement[:16]}")
            lines += [
                f"  took {edge.path} from {self.nodes[edge.before].file}" for edge in self.edges if edge.after == name
            ]
            lines += [f"  MISSING: its predecessor {before[:16]}" for after, before in self.missing if after == name]
        return "\n".join(lines)
