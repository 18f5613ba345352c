"""Sealing the records of a history, each under a key of its own, chained to the one before.

::

    salt      = HMAC-SHA-256(32 bytes from the kernel, record)
    key       = HMAC-SHA-256(wrap key, "adyton-roots/1 key\\0" ‖ salt)
    sealed    = AES-256-GCM(key, IV zero, record, additional data: the head before)
    head      = SHA-256("adyton-roots/1 head\\0" ‖ head before ‖ SHA-256(record))
    frame     = length of sealed u32 ‖ salt ‖ sealed

The record goes into its salt. So a machine that draws the same random bytes twice seals another record under another
key. A frame opens behind its predecessor only: one cannot be left out, moved, or taken from another folder. The head
before the first record is SHA-256("adyton-roots/1 folder\\0" ‖ folder id).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from adyton.values import Key128

SALT_BYTES: Final = 32
TAG_BYTES: Final = 16
LENGTH: Final = struct.Struct(">I")
OVERHEAD_BYTES: Final = LENGTH.size + SALT_BYTES + TAG_BYTES
_IV: Final = bytes(12)


def first_head(folder: str) -> bytes:
    """The head before the first record of a folder."""
    return hashlib.sha256(b"adyton-roots/1 folder\0" + folder.encode("ascii")).digest()


def next_head(head: bytes, record: bytes) -> bytes:
    """The head once a record is added."""
    return hashlib.sha256(b"adyton-roots/1 head\0" + head + hashlib.sha256(record).digest()).digest()


def seal(key: Key128, head: bytes, record: bytes) -> bytes:
    """The frame of a record behind `head`."""
    salt = hmac.digest(os.urandom(SALT_BYTES), record, "sha256")
    sealed = AESGCM(_frame_key(key, salt)).encrypt(_IV, record, head)
    return LENGTH.pack(len(sealed)) + salt + sealed


def open_frame(key: Key128, head: bytes, salt: bytes, sealed: bytes) -> bytes | None:
    """The record in a frame, or None where the frame is not the next one behind `head` under this key."""
    try:
        return AESGCM(_frame_key(key, salt)).decrypt(_IV, sealed, head)
    except InvalidTag:
        return None


def _frame_key(key: Key128, salt: bytes) -> bytes:
    return hmac.digest(key.reveal(), b"adyton-roots/1 key\0" + salt, "sha256")
