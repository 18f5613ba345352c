"""A second, plain implementation of the protected-file format, to make vectors and to check the first against.

It shares no code with the package.  Its keys come from the caller, so that the result is the same every
time: never use it for anything but tests.  Source: docs/protected-file.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

NODE = 4096
INLINE = 3072
IV = bytes(12)


def derive(wrap_key: bytes, nonce: bytes) -> bytes:
    """The metadata key."""
    mac = CMAC(AES(wrap_key))
    mac.update(struct.pack("<I64s32sI", 1, b"SGX-PROTECTED-FS-METADATA-KEY", nonce, 128))
    return mac.finalize()


def write(
    wrap_key: bytes, path: bytes, content: bytes, *, version: int, key: Callable[[], bytes], nonce: Callable[[], bytes]
) -> bytes:
    """The host file of `content`; `key` is asked once per node: data nodes, then tree nodes from the last."""
    rest = content[INLINE:]
    data = [rest[at : at + NODE].ljust(NODE, b"\0") for at in range(0, len(rest), NODE)]
    trees = [bytearray(NODE) for _ in range((len(data) + 95) // 96)]
    host: dict[int, bytes] = {}
    for number, plain in enumerate(data):
        fresh = key()
        sealed = AESGCM(fresh).encrypt(IV, plain, None)
        host[2 + number + number // 96] = sealed[:NODE]
        slot = 32 * (number % 96)
        trees[number // 96][slot : slot + 32] = fresh + sealed[NODE:]
    root = bytes(32)
    for number in range(len(trees) - 1, -1, -1):
        fresh = key()
        sealed = AESGCM(fresh).encrypt(IV, bytes(trees[number]), None)
        host[1 + 97 * number] = sealed[:NODE]
        if number:
            slot = 3072 + 32 * ((number - 1) % 32)
            trees[(number - 1) // 32][slot : slot + 32] = fresh + sealed[NODE:]
        else:
            root = fresh + sealed[NODE:]
    salt = nonce()
    opened = path.ljust(772, b"\0") + struct.pack("<Q", len(content)) + root + content[:INLINE].ljust(INLINE, b"\0")
    sealed = AESGCM(derive(wrap_key, salt)).encrypt(IV, opened, None)
    flags = b"" if version == 1 else b"\0"
    host[0] = (b"GRAFS_PF" + bytes([version, 0]) + salt + sealed[3884:] + flags + sealed[:3884]).ljust(NODE, b"\0")
    return b"".join(host[number] for number in sorted(host))


def read(wrap_key: bytes, host: bytes) -> tuple[bytes, bytes]:
    """Path and content; whatever is wrong raises something."""
    start = {1: 58, 2: 59}[host[8]]
    opened = AESGCM(derive(wrap_key, host[10:42])).decrypt(IV, host[start : start + 3884] + host[42:58], None)
    path = opened[: opened.index(0)]
    (size,) = struct.unpack_from("<Q", opened, 772)
    content = opened[812:]

    def node(number: int, slot: bytes) -> bytes:
        return AESGCM(slot[:16]).decrypt(IV, host[number * NODE : (number + 1) * NODE] + slot[16:], None)

    @cache
    def tree(number: int) -> bytes:
        if number == 0:
            return node(1, opened[780:812])
        at = 3072 + 32 * ((number - 1) % 32)
        return node(1 + 97 * number, tree((number - 1) // 32)[at : at + 32])

    parts = [content]
    for number in range(max(0, -(-(size - INLINE) // NODE))):
        at = 32 * (number % 96)
        parts.append(node(2 + number + number // 96, tree(number // 96)[at : at + 32]))
    return path, b"".join(parts)[:size]
