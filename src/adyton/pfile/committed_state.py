"""Which state of a host file is the committed one: node 0 as it stands, or what the recovery log leads back to.

The host can change the log. It is believed only if it explains what node 0 looks like, and if every node that it
restores verifies under the node 0 that it restores. Until then nothing is written.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.errors import Error, FileFormatError, IntegrityError, NotProtectedFile, WrongPath
from adyton.pfile import geometry, recovery, seal
from adyton.pfile.backing import RECOVERY_SUFFIX, Backing, Overlay, read_at
from adyton.pfile.layout import NODE_BYTES, Envelope, Metadata, parse_envelope
from adyton.pfile.nodes import NodeReader
from adyton.pfile.paths import path_text

if TYPE_CHECKING:
    from adyton.values import Key128

_PROBE_TREES: Final = 1024


@dataclass(frozen=True, slots=True)
class State:
    """A committed state: where to read it, its node 0, what node 0 seals."""

    backing: Backing
    envelope: Envelope
    metadata: Metadata
    recovered: bool = False

    @property
    def root(self) -> bytes:
        """48 bytes that no other state has: nonce and tag of node 0."""
        return self.envelope.nonce + self.envelope.tag


def read_envelope(backing: Backing) -> Envelope:
    """Node 0 of a host file, nothing of it verified. Raises NotProtectedFile or UnsupportedVersion."""
    raw = read_at(backing, 0, NODE_BYTES)
    if len(raw) < NODE_BYTES:
        raise NotProtectedFile(
            f"{backing.name} is not a protected file: {len(raw)} bytes, and node 0 alone has {NODE_BYTES}",
            check="size of the file",
            expected=f"at least {NODE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
            remedy="it was cut, or never encrypted; even an empty file has one node once encrypted",
        )
    try:
        return parse_envelope(raw)
    except FileFormatError as error:
        raise type(error)(f"{backing.name}: {error.message}", checks=error.checks) from None


def committed_state(
    backing: Backing,
    key: Key128,
    *,
    path: bytes | None,
    writable: bool,
    recover: bool,
    expected_root: bytes | None,
    whole: bool = True,
) -> State:
    """The committed state of a host file, checked. A flush that did not end is undone (if `recover`).

    If `writable` it is undone on the host, otherwise in what the returned backing shows.  `whole=False`
    is for a stream, whose size only its end tells.
    """
    envelope = read_envelope(backing)
    metadata = None
    if not envelope.pending:
        opened = seal.open_metadata(key, envelope)
        metadata = None if opened is None else Metadata.parse(opened)
    state = None
    doubtful = metadata is None or envelope.version == 1 or (path is not None and metadata.path != path)
    if doubtful and recover:
        state = _state_before(backing, key, envelope, metadata, path, writable=writable)
    if state is None:
        if metadata is None:
            raise _unreadable(backing, envelope, recover=recover)
        state = State(backing, envelope, metadata)
    try:
        if whole:
            _check_host_size(state)
        _check_path(state, path)
        _check_root(state, expected_root)
    except Error:
        if state.backing is not backing:
            state.backing.close()
        raise
    return state


def _unreadable(backing: Backing, envelope: Envelope, *, recover: bool) -> IntegrityError:
    if envelope.pending:
        return IntegrityError(
            f"{backing.name}: a flush was begun and not ended, and no recovery log leads back",
            check="pending-write flag",
            expected="clear, or a recovery log whose every node verifies",
            seen="set" if recover else "set, and recovery was not wanted",
            remedy=f"bring back {backing.name}{RECOVERY_SUFFIX}, or an older copy of the file; or the key is wrong",
        )
    return IntegrityError(
        f"{backing.name}: the key is wrong, or node 0 was altered",
        check="tag of node 0",
        expected="the tag that this key gives",
        seen="another",
        remedy="check which key the file was encrypted with; if it is this one, get the file again from its owner",
    )


def _check_host_size(state: State) -> None:
    needed, size = geometry.host_size(state.metadata.size), state.backing.size()
    if size % NODE_BYTES or size < needed:
        raise IntegrityError(
            f"{state.backing.name}: {size} bytes on the host, where its content takes {needed}",
            check="size of the host file",
            expected=f"at least {needed} bytes, a multiple of {NODE_BYTES}",
            seen=f"{size} bytes",
            remedy="the file was cut or extended; get it again from its owner",
        )


def _check_path(state: State, path: bytes | None) -> None:
    if path is not None and state.metadata.path != path:
        raise WrongPath(
            f"{state.backing.name} was sealed under another path",
            check="embedded path",
            expected=path_text(path),
            seen=path_text(state.metadata.path),
            remedy="use it under the path that it was sealed for, or seal it for this one: `adyton rekey --as PATH`",
        )


def _check_root(state: State, expected_root: bytes | None) -> None:
    if expected_root is not None and not hmac.compare_digest(state.root, expected_root):
        raise IntegrityError(
            f"{state.backing.name} is whole, and not the version that was expected",
            check="root of the file",
            expected=expected_root.hex(),
            seen=state.root.hex(),
            remedy="an older or another version was put in its place; get the newest from its owner",
        )


def _state_before(
    backing: Backing,
    key: Key128,
    envelope: Envelope,
    metadata: Metadata | None,
    path: bytes | None,
    *,
    writable: bool,
) -> State | None:
    """The state before the flush that the log belongs to, or None where the log is of no use."""
    log = backing.open_log(create=False)
    if log is None:
        return None
    keep_log = False
    try:
        undo = recovery.parse_log(log)
        if undo is None:
            return None
        try:
            before = parse_envelope(undo.node_0)
            opened = seal.open_metadata(key, before)
            old = None if opened is None else Metadata.parse(opened)
        except Error:
            return None
        if old is None or before.pending or before.version != envelope.version:
            return None
        if not _explains(envelope, metadata, before, old, path):
            return None
        nodes = geometry.host_nodes(old.size)
        places = {node: place for node, place in undo.places.items() if node < nodes}
        overlay = Overlay(backing, log, places, node_bytes=NODE_BYTES, size=nodes * NODE_BYTES)
        try:
            NodeReader(overlay, old.root_slot, max_trees=_PROBE_TREES).check(places)
        except IntegrityError:
            return None
        if not writable:
            keep_log = True
            return State(overlay, before, old, recovered=True)
        recovery.replay(log, undo, backing, nodes=nodes)
        return State(backing, before, old, recovered=True)
    finally:
        if not keep_log:
            log.close()


def _explains(
    envelope: Envelope, metadata: Metadata | None, before: Envelope, old: Metadata, path: bytes | None
) -> bool:
    """Whether a flush that began at `before` could have left node 0 as `envelope`."""
    same = (before.nonce, before.tag) == (envelope.nonce, envelope.tag)
    if envelope.pending:
        return same  # flagged, and nothing else of it changed
    if metadata is None:
        return True  # torn by a power cut: what it was is not to be told, the nodes must tell
    if same:
        return envelope.version == 1  # version 1 has no flag: nodes may have been overwritten all the same
    # a path was sealed in for a rename that was not done
    return (
        path is not None
        and metadata.path != path
        and old.path == path
        and (old.size, old.root_slot, old.inline) == (metadata.size, metadata.root_slot, metadata.inline)
    )
