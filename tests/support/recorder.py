"""Writes down every key that seals anything, and finds a key that seals twice."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adyton.pfile import seal
from adyton.pfile.keys import metadata_key
from adyton.pfile.layout import KEY_BYTES, NODE_BYTES, SLOT_BYTES, Envelope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from adyton.values import Key128


class KeyUsedTwice(AssertionError):
    """A key sealed two things: with a zero IV, both are lost."""


class Recorder:
    """The sealing engine in use, watched."""

    def __init__(self, engine: seal.Engine) -> None:
        self._engine = engine
        self.sealed: dict[bytes, bytes] = {}

    def note(self, key: bytes, content: bytes) -> None:
        """One use of a key."""
        if key in self.sealed:
            raise KeyUsedTwice("a key sealed twice")
        self.sealed[key] = hashlib.sha256(content).digest()

    def seal_nodes(self, plain: Buffer, cipher: Buffer, slots: Buffer, /) -> None:
        content = bytes(memoryview(plain).cast("B"))
        self._engine.seal_nodes(plain, cipher, slots)
        view = memoryview(slots).cast("B")
        for node in range(len(content) // NODE_BYTES):
            key = bytes(view[node * SLOT_BYTES : node * SLOT_BYTES + KEY_BYTES])
            self.note(key, content[node * NODE_BYTES : (node + 1) * NODE_BYTES])

    def open_nodes(self, cipher: Buffer, slots: Buffer, plain: Buffer, /) -> int:
        return self._engine.open_nodes(cipher, slots, plain)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Watch all sealing of this process, and raise KeyUsedTwice where it happens."""
    before, before_metadata = seal.engine, seal.seal_metadata
    recorder = Recorder(before)

    def seal_metadata(wrap_key: Key128, version: int, metadata: bytes) -> Envelope:
        envelope = before_metadata(wrap_key, version, metadata)
        recorder.note(metadata_key(wrap_key, envelope.nonce), metadata)
        return envelope

    seal.engine, seal.seal_metadata = recorder, seal_metadata
    try:
        yield recorder
    finally:
        seal.engine, seal.seal_metadata = before, before_metadata
