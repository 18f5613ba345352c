"""Sealing and opening: the only place where keys of nodes are drawn, and the only user of AES-GCM in this room.

The IV is zero, so a key seals once.  `seal_nodes` and `seal_metadata` draw from the kernel on every call and
accept no key. Sealing the same bytes again gives other keys.  What was drawn goes into a key together with
bytes of the processor, or with the plaintext (gcm.c says how): a virtual machine that is cloned or restored may
draw the same bytes again for another content.  Runs of nodes go through the C part (`_gcm`), which releases the
GIL. Where it was not built, `cryptography` does the same.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES128

from adyton.pfile.keys import metadata_key
from adyton.pfile.layout import (
    KEY_BYTES,
    NODE_BYTES,
    NONCE_BYTES,
    SEALED_BYTES,
    SLOT_BYTES,
    TAG_BYTES,
    Envelope,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from adyton.values import Key128

_IV_BYTES: Final = 12
_ZERO_IV: Final = bytes(_IV_BYTES)
_SLOT: Final = struct.Struct("16s16s")


class Engine(Protocol):
    """Seals and opens runs of nodes. The C part is one, and the fallback is another."""

    def seal_nodes(self, plain: Buffer, cipher: Buffer, slots: Buffer, /) -> None:
        """Seal len(plain) / 4096 nodes under new keys. Ciphertext goes to `cipher`, key and tag to `slots`."""

    def open_nodes(self, cipher: Buffer, slots: Buffer, plain: Buffer, /) -> int:
        """Open nodes to `plain`. Returns -1, or the first node with a wrong tag, and then `plain` is zeros."""


def _count(source: memoryview, target: memoryview, slots: memoryview) -> int:
    count, rest = divmod(source.nbytes, NODE_BYTES)
    if rest or target.nbytes != source.nbytes or slots.nbytes != count * SLOT_BYTES:
        raise ValueError(
            f"sizes do not belong together: {source.nbytes} bytes in, {target.nbytes} bytes out, "
            f"{slots.nbytes} bytes of slots"
        )
    return count


def _derive_keys(source: memoryview) -> bytes:
    """A key for each node, of its plaintext, its place in the run and 32 bytes from the kernel, one after another."""
    drawn = os.urandom(2 * KEY_BYTES)
    mac = AESGCM(drawn[:KEY_BYTES])
    tags = bytearray()
    for node in range(source.nbytes // NODE_BYTES):
        place = node.to_bytes(_IV_BYTES, "little")
        tags += mac.encrypt(place, b"", source[NODE_BYTES * node : NODE_BYTES * (node + 1)])
    return Cipher(AES128(drawn[KEY_BYTES:]), modes.ECB()).encryptor().update(tags)  # noqa: S305  a block cipher alone


class Fallback:
    """The same as the C part where the processor gives it nothing. It holds the GIL between nodes."""

    @staticmethod
    def seal_nodes(plain: Buffer, cipher: Buffer, slots: Buffer, /) -> None:
        """Seal nodes, each under a new key."""
        source, target, places = memoryview(plain).cast("B"), memoryview(cipher).cast("B"), memoryview(slots).cast("B")
        count = _count(source, target, places)
        if count == 0:
            return
        keys = _derive_keys(source)
        tags = bytearray()
        # the tag of a node goes behind it, where the next node's ciphertext then overwrites it; not so in the
        # last node, and nowhere if the plaintext stands there
        apart = 0 if source.obj is target.obj else count - 1
        at = 0
        for first in range(0, KEY_BYTES * apart, KEY_BYTES):
            end = at + NODE_BYTES
            key = AESGCM(keys[first : first + KEY_BYTES])
            key.encrypt_into(_ZERO_IV, source[at:end], None, target[at : end + TAG_BYTES])
            tags += target[end : end + TAG_BYTES]
            at = end
        for first in range(KEY_BYTES * apart, KEY_BYTES * count, KEY_BYTES):
            end = at + NODE_BYTES
            sealed = AESGCM(keys[first : first + KEY_BYTES]).encrypt(_ZERO_IV, source[at:end], None)
            target[at:end] = sealed[:NODE_BYTES]
            tags += sealed[NODE_BYTES:]
            at = end
        for i in range(KEY_BYTES):  # all slots at once, byte by byte of each
            places[i::SLOT_BYTES] = keys[i::KEY_BYTES]
            places[KEY_BYTES + i :: SLOT_BYTES] = tags[i::TAG_BYTES]

    @staticmethod
    def open_nodes(cipher: Buffer, slots: Buffer, plain: Buffer, /) -> int:
        """Open nodes. Returns the first bad one, or -1."""
        source, target, places = memoryview(cipher).cast("B"), memoryview(plain).cast("B"), memoryview(slots).cast("B")
        _count(source, target, places)
        sealed = bytearray(NODE_BYTES + TAG_BYTES)
        ciphertext, its_tag = memoryview(sealed)[:NODE_BYTES], memoryview(sealed)[NODE_BYTES:]
        for node, (key, tag) in enumerate(_SLOT.iter_unpack(places)):
            at = NODE_BYTES * node
            end = at + NODE_BYTES
            ciphertext[:] = source[at:end]
            its_tag[:] = tag
            try:
                AESGCM(key).decrypt_into(_ZERO_IV, sealed, None, target[at:end])
            except InvalidTag:
                target[:] = bytes(target.nbytes)
                return node
        return -1


def _find_engine() -> tuple[Engine, bool]:
    try:
        from adyton.pfile import _gcm
    except ImportError:
        return Fallback, False
    return _gcm, True


engine, NATIVE = _find_engine()
"""The engine in use, and whether it is the C part."""


def seal_nodes(plain: Buffer, cipher: Buffer, slots: Buffer) -> None:
    """Seal a run of 4096-byte nodes, each under a new key. `slots` receives 32 bytes (key, tag) per node.

    `cipher` is exactly `plain`'s buffer or does not overlap it.  On failure no slot and no output is left.
    """
    engine.seal_nodes(plain, cipher, slots)


def open_nodes(cipher: Buffer, slots: Buffer, plain: Buffer) -> int:
    """Open a run of nodes. Returns -1, or the index of the first node with a wrong tag, and then `plain` is wiped."""
    return engine.open_nodes(cipher, slots, plain)


def seal_metadata(wrap_key: Key128, version: int, metadata: bytes) -> Envelope:
    """Seal the 3884 bytes of a `Metadata` under a new nonce: their HMAC under 32 bytes from the kernel."""
    if len(metadata) != SEALED_BYTES:
        raise ValueError(f"the sealed part has {SEALED_BYTES} bytes, got {len(metadata)}")
    nonce = hmac.digest(os.urandom(NONCE_BYTES), metadata, "sha256")
    sealed = AESGCM(metadata_key(wrap_key, nonce)).encrypt(_ZERO_IV, metadata, None)
    return Envelope(version, nonce, sealed[SEALED_BYTES:], 0, sealed[:SEALED_BYTES])


def open_metadata(wrap_key: Key128, envelope: Envelope) -> bytes | None:
    """The 3884 opened bytes, or None where the key is wrong or the node was altered (no telling which)."""
    key = metadata_key(wrap_key, envelope.nonce)
    try:
        return AESGCM(key).decrypt(_ZERO_IV, envelope.sealed + envelope.tag, None)
    except InvalidTag:
        return None
