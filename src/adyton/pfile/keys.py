"""The metadata key: NIST SP 800-108 in counter mode, one block of AES-128-CMAC under the wrap key."""

from __future__ import annotations

import struct
from typing import Final

from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from adyton.pfile.layout import KEY_BYTES, NONCE_BYTES
from adyton.values import Key128

_LABEL: Final = b"SGX-PROTECTED-FS-METADATA-KEY".ljust(64, b"\0")
_COUNTER: Final = struct.pack("<I", 1)
_BITS: Final = struct.pack("<I", 8 * KEY_BYTES)


def metadata_key(wrap_key: Key128, nonce: bytes) -> bytes:
    """The 16-byte key that seals node 0 under `nonce`, 32 bytes."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"the nonce has {NONCE_BYTES} bytes, got {len(nonce)}")
    mac = CMAC(AES128(wrap_key.reveal()))
    mac.update(_COUNTER + _LABEL + nonce + _BITS)
    return mac.finalize()
