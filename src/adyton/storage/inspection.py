"""A look at a protected file from outside, and with its key from inside. Nothing is written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.pfile import geometry
from adyton.pfile.backing import OSFile
from adyton.pfile.committed_state import read_envelope
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import INLINE_BYTES, NODE_BYTES
from adyton.pfile.recovery import RECORD_BYTES

if TYPE_CHECKING:
    from adyton.values import Key128


def inspect_file(path: Path, key: Key128 | None) -> dict[str, Any]:
    """What a protected file says of itself, authenticated only where `key` is given. Raises as `ProtectedFile.open`."""
    with contextlib.closing(OSFile(path)) as backing:
        envelope = read_envelope(backing)
        host_size = backing.size()
        log = backing.open_log(create=False)
        records = None
        if log is not None:
            records = log.size() // RECORD_BYTES
            log.close()
    facts: dict[str, Any] = {
        "file": str(path),
        "version": envelope.version,
        "host_size_bytes": host_size,
        "nodes": host_size // NODE_BYTES,
        "pending_write": envelope.pending,
        "recovery_log_records": records,
        "nonce": envelope.nonce.hex(),
    }
    if key is None:
        least, most = plain_size_range(host_size // NODE_BYTES)
        return facts | {"size_bytes_at_least": least, "size_bytes_at_most": most, "authenticated": False}
    with ProtectedFile.open(OSFile(path), key) as file:
        return facts | {
            "path": file.path,
            "size_bytes": file.size,
            "data_nodes": geometry.data_nodes(file.size),
            "tree_nodes": geometry.tree_nodes(file.size),
            "root": file.root.hex(),
            "recovered": file.recovered,
            "authenticated": True,
        }


def plain_size_range(nodes: int) -> tuple[int, int]:
    """The least and the greatest plaintext that a host file of `nodes` nodes can hold. It may hold nodes too many."""
    if nodes <= 2:
        return 0, INLINE_BYTES
    segments, rest = divmod(nodes - 1, geometry.SEGMENT_NODES)
    data = 96 * segments + max(0, rest - 1)
    return INLINE_BYTES + NODE_BYTES * (data - 1) + 1, INLINE_BYTES + NODE_BYTES * data
